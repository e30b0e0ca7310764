"""What the measurements of `benchmarks.gpu` amount to: medians, ratios, bars, lines to print.

    found = summary(runs, flops=flops, product_rate=rate)
    print("\n".join(report(case, entry, is_dry=False)))

Pure functions; nothing here measures.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.gpu.cases import Case
from benchmarks.gpu.run import Run


def disagreement(ours: Run, theirs: Run, name: str, limit: float) -> list[str]:
    """What both should have computed alike in the first update, and did not."""
    pairs = [("loss", ours.loss, theirs.loss)]
    if ours.grad_norm is not None and theirs.grad_norm is not None:
        pairs.append(("gradient norm", ours.grad_norm, theirs.grad_norm))
    return [
        f"the first {what} is {one:.6f} with duiti and {other:.6f} with {name}"
        for what, one, other in pairs
        if not abs(one - other) <= limit * abs(one)  # not: NaN is no agreement
    ]


def summary(runs: dict[str, list[Run]], *, flops: int, product_rate: float) -> dict[str, Any]:
    """Medians of everyone; duiti's MFU, and its ratios to the fastest peer."""
    medians = {
        name: {
            "tokens_per_s": median(run.rate for run in own),
            "mfu": flops / median(run.seconds for run in own) / product_rate,
            "peak_bytes": median(run.peak_bytes for run in own),
        }
        for name, own in runs.items()
    }
    ours = medians["duiti"]
    peers = {name: found for name, found in medians.items() if name != "duiti"}
    best = max(peers, key=lambda name: peers[name]["tokens_per_s"], default=None)
    values: dict[str, float] = {"mfu": ours["mfu"]}
    if best is not None:
        values["speed"] = ours["tokens_per_s"] / peers[best]["tokens_per_s"]
        values["memory"] = ours["peak_bytes"] / peers[best]["peak_bytes"]
    return {"medians": medians, "best_peer": best, "values": values}


def report(case: Case, entry: dict[str, Any], *, is_dry: bool) -> list[str]:
    """The lines that are printed at the end of a case."""
    found = entry["summary"]
    lines = [f"  {'differs':<9} {line}" for line in entry["disagreements"]]
    if len(entry["runs"]) > 1 and not entry["disagreements"]:
        lines.append(f"  {'agrees':<9} the first update's loss and gradient, with every peer")
    for name, one in found["medians"].items():
        lines.append(
            f"  {'result':<9} {name}: {one['tokens_per_s']:,.0f} tokens/s, MFU {one['mfu']:.3f},"
            f" {one['peak_bytes'] / 1e9:.2f} GB"
        )
    for bar in case.bars:
        if bar.quantity in found["values"]:
            verdict = bar.verdict(found["values"][bar.quantity])
            lines.append(f"  {'bar':<9} {verdict}{' (a dry run: means nothing)' if is_dry else ''}")
        else:
            lines.append(f"  {'bar':<9} {bar.quantity}: there is no peer to compare with")
    return lines
