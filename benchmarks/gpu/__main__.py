"""Training speed and memory of duiti on one CUDA GPU, beside TRL, TRL + Liger and Unsloth.

    benchmarks/gpu.sh                                # makes the environments, then calls this
    python -m benchmarks.gpu --trl .venv-gpu-trl/bin/python --unsloth .venv-gpu-unsloth/bin/python
    python -m benchmarks.gpu --dry-run --trl .venv-trl/bin/python        # on the CPU, tiny models

The same on all sides: random weights, rows, the rows of every update and their order, rows per
update, precision (products in bfloat16, what is trained in float32), learning rate, clipping,
AdamW. Peers get duiti's token ids and labels, and (TRL) its adapter, so the loss of the first
update has to agree, or the case is marked as not comparable and the exit code says so.

Each family of peers runs at its fastest setting (`cases.SETTINGS`), tried in the same run; a
setting that fails, for want of memory or of a package, is said and left out. Then duiti and the
peers take turns; medians are shown. Every run is a process of its own, watched from outside.

- tokens/s: of rows; padding does not count.
- MFU: necessary FLOPs (`speed/flops.py`) / time / the product rate measured in the same run.
- memory: the most that tensors held on the GPU (`torch.cuda.max_memory_allocated`).

Bars are printed as met or missed, and decide nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import CASES, DRY_CASES, SETTINGS, TOLERANCE, Case, dry
from benchmarks.gpu.report import disagreement, report, summary
from benchmarks.gpu.run import (
    ROOT,
    Place,
    Ready,
    Run,
    gpu,
    prepare,
    product_rate,
    run_duiti,
    run_peer,
    versions,
)
from benchmarks.speed.flops import necessary_flops
from benchmarks.speed.scenarios import RANK
from benchmarks.speed.watch import Failed

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
DRY_RESULTS = ROOT / "build" / "gpu_dry_run.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep. Returns the exit code."""
    options = _options(arguments)
    failed = []
    with tempfile.TemporaryDirectory(prefix="duiti-gpu-") as folder:
        place = Place(
            folder=Path(folder),
            device="cpu" if options.dry_run else "cuda",
            dtype="float32" if options.dry_run else "bfloat16",
            pythons=_pythons(options),
            data=options.data,
            mapping=options.map,
            tokenizer=options.tokenizer,
        )
        card = {} if options.dry_run else gpu(place)
        if not card and not options.dry_run:
            raise SystemExit("no CUDA GPU here; --dry-run goes the same way on the CPU")
        families = _families(place)
        results: dict[str, Any] = {
            "gpu": card,
            "python": platform.python_version(),
            "duiti": version("duiti"),
            "versions": {who: versions(place, who) for who in place.pythons},
            "cases": {},
        }
        for name in options.case or (DRY_CASES if options.dry_run else tuple(CASES)):
            case = dry(CASES[name]) if options.dry_run else CASES[name]
            print(f"\n{name} · {case.title}", flush=True)
            if card and card["memory_bytes"] < case.min_memory_bytes:
                _say("skipped", f"needs {case.min_memory_bytes / 1e9:.0f} GB of GPU memory")
                continue
            try:
                entry = measure(place, case, families, repeats=options.repeats)
            except Failed as error:
                _say("failed", str(error))
                failed.append(name)
                continue
            results["cases"][name] = entry
            failed += [name] if entry["disagreements"] else []
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if failed:
        print(f"\nfailed or not comparable: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(place: Place, case: Case, families: set[str], *, repeats: int) -> dict[str, Any]:
    """One case: trials, then turn by turn.

    Raises:
        Failed: duiti does not get through, or the case cannot be set up.
    """
    ready = prepare(place, case)
    timed = slice(case.warmup, None)
    _say(
        "rows",
        f"{ready.source}; {case.updates} updates of {case.rows} rows, {sum(ready.tokens[timed])}"
        f" tokens, {sum(ready.supervised[timed])} trained",
    )
    trials, best = choose(place, ready, families)
    runs: dict[str, list[Run]] = {"duiti": [], **{name: [] for name in best}}
    rates = []
    for number in range(1, repeats + 1):
        take_turns(place, ready, runs)
        rates.append(product_rate(place))
        shown = [f"{name} {_shown(own[-1])}" for name, own in runs.items()]
        _say(f"{number}/{repeats}", " · ".join([*shown, f"{rates[-1] / 1e12:.3g} TFLOP/s"]))
    peers = [name for name in runs if name != "duiti"]
    disagreements = [
        line
        for name in peers
        for line in disagreement(runs["duiti"][0], runs[name][0], name, TOLERANCE[place.dtype])
    ]
    flops = sum(
        necessary_flops(
            case.shape,
            method=case.method,
            rank=RANK,
            lengths=lengths,
            num_supervised=supervised,
        )
        for lengths, supervised in zip(ready.lengths[timed], ready.supervised[timed], strict=True)
    )
    entry = {
        "title": case.title,
        "source": ready.source,
        "tokens": ready.tokens,
        "supervised": ready.supervised,
        "warmup": case.warmup,
        "flops": flops,
        "product_rates": rates,
        "trials": trials,
        "settings": {name: asdict(SETTINGS[name]) for name in peers},
        "disagreements": disagreements,
        "runs": {name: [asdict(run) for run in own] for name, own in runs.items()},
    }
    entry["summary"] = summary(runs, flops=flops, product_rate=max(rates))
    for line in report(case, entry, is_dry=place.device == "cpu"):
        print(line, flush=True)
    return entry


def take_turns(place: Place, ready: Ready, runs: dict[str, list[Run]]) -> None:
    """One more run of everyone. A peer that fails is said and leaves.

    Raises:
        Failed: duiti does.
    """
    num_updates = ready.case.num_updates
    runs["duiti"].append(run_duiti(place, ready, num_updates=num_updates))
    for name in [name for name in runs if name != "duiti"]:
        try:
            runs[name].append(run_peer(place, ready, name, num_updates=num_updates))
        except Failed as error:
            _say("failed", f"{name}: {_last_line(error)}")
            del runs[name]


def choose(
    place: Place, ready: Ready, families: set[str]
) -> tuple[dict[str, float | str], list[str]]:
    """Tokens/s of every setting that was tried, or why it failed; the fastest of each family."""
    found: dict[str, float | str] = {}
    num_updates = ready.case.warmup + max(2, ready.case.updates // 10)
    wanted = [name for name in ready.case.settings if SETTINGS[name].family in families]
    if len(wanted) < 2:
        return found, wanted
    for name in wanted:
        try:
            found[name] = round(run_peer(place, ready, name, num_updates=num_updates).rate, 1)
        except Failed as error:
            found[name] = _last_line(error)
        rate = found[name]
        _say("trial", f"{name}: {rate if isinstance(rate, str) else f'{rate:,.0f} tokens/s'}")
    best: dict[str, str] = {}
    for name, rate in found.items():
        family = SETTINGS[name].family
        if isinstance(rate, float) and rate > _number(found.get(best.get(family, ""))):
            best[family] = name
    return found, list(best.values())


def _families(place: Place) -> set[str]:
    """Families that can run here; says why the others cannot."""
    found = set()
    reasons = {
        "trl": "no --trl",
        "liger": "no --trl",
        "unsloth": "no --unsloth",
    }
    for family, reason in reasons.items():
        if family not in place.pythons:
            _say("peer", f"{family} left out: {reason}")
        elif family == "liger" and "liger-kernel" not in versions(place, family):
            _say("peer", "liger left out: liger-kernel is not installed beside TRL")
        elif family != "trl" and place.device == "cpu":
            _say("peer", f"{family} left out: it needs a GPU")
        else:
            found.add(family)
    return found


def _pythons(options: argparse.Namespace) -> dict[str, str]:
    found = {"duiti": sys.executable}
    if options.trl:
        found |= {"trl": options.trl, "liger": options.trl}
    if options.unsloth:
        found["unsloth"] = options.unsloth
    return found


def _last_line(error: Failed) -> str:
    return str(error).splitlines()[-1]


def _number(rate: float | str | None) -> float:
    return rate if isinstance(rate, float) else 0.0


def _shown(run: Run) -> str:
    return f"{run.rate:,.0f} tokens/s {run.peak_bytes / 1e9:.2f} GB"


def _say(label: str, text: str) -> None:
    print(f"  {label:<9} {text}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), help="default: all")
    parser.add_argument("--repeats", type=int, help="default: 3, and 1 in a dry run")
    parser.add_argument("--trl", help="a Python with trl and peft, and liger-kernel for Liger")
    parser.add_argument("--unsloth", help="a Python with unsloth")
    parser.add_argument("--data", type=Path, help="rows to sample, as JSONL or a JSON array")
    parser.add_argument("--map", default="", help="fields of --data, as for duiti train")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json with ChatML's tokens")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, no verdict")
    options = parser.parse_args(arguments)
    if options.data and not options.tokenizer:
        parser.error("real rows need --tokenizer: the made-up one has a token for every byte")
    for python in (options.trl, options.unsloth):
        if python and not Path(python).is_file():
            parser.error(f"{python} is not there")
    if options.data and options.dry_run:
        parser.error("a dry run has rows of its own: its model has a vocabulary of 512")
    options.repeats = options.repeats or (1 if options.dry_run else 3)
    options.output = options.output or (DRY_RESULTS if options.dry_run else RESULTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
