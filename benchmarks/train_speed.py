"""Training speed of duiti beside TRL + PEFT on this machine's CPU. Writes the table of the READMEs.

    python -m benchmarks.train_speed                        # every scenario, made-up rows
    python -m benchmarks.train_speed --data gsm8k.jsonl --map question=prompt,answer=response \
        --data-zh alpaca_zh.json --tokenizer tokenizer.json --write
    python -m benchmarks.train_speed --scenario lora-4-bf16 --updates 2 --repeats 1
    python -m benchmarks.train_speed --quick                # minutes: does it work, no verdict

**What is the same on both sides.** Weights (random, in Qwen3-0.6B's shape, cut to 4 layers or
whole), rows, the rows of every update and their order, batch (8 rows per update), precision,
threads, learning rate, clipping, AdamW. duiti prepares the rows once; TRL is given its ids and
labels (`benchmarks/speed/setup.py`), so the supervised tokens are the same by construction, and the
adapter that duiti starts from, so that loss and gradient can be compared and not only look alike.

**What is compared first.** One update in float32 on both sides: loss and gradient norm must agree
to 1e-3, or there is no benchmark. Every process is also held to the tokens that it should see.

**What is timed.** Each run is a process of its own: `duiti train` as a user calls it, and TRL's
`SFTTrainer` (`benchmarks/speed/peer.py`) in its own environment. Both write a line per update and
are watched from outside; the clock runs from the end of the warm-up update to the end of the last.
The two take turns, several times; medians are shown. TRL runs at its best settings, the fastest of
those in `speed/scenarios.PEERS` that a scenario names, tried at the start of the same run; and once
as it comes. Tokens are those of the rows: padding does not count. Peak memory is the most that the
process ever held.

**Roofline**: necessary FLOPs (`speed/flops.py` has the formula) / time / the matrix-product
rate of the same run, in the same dtype and threads, the best that was seen.

Bars (`speed/scenarios.py`) are printed with met or missed and decide nothing: the exit code tells
of errors and of losses that disagree. The JSON goes to `--output`; scenarios that are measured
again on the same machine and versions replace those in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import machine
from benchmarks.speed.measure import Checked, measure
from benchmarks.speed.run import Unequal, peer_versions
from benchmarks.speed.scenarios import QUICK, SCENARIOS, RowKind, Scenario, quick
from benchmarks.speed.start import ROOT, Bench
from benchmarks.speed.table import QUIET, summary, verdicts, write_pages
from benchmarks.speed.watch import Failed

RESULTS = ROOT / "benchmarks" / "results" / "train_speed.json"
QUICK_RESULTS = ROOT / "build" / "train_speed_quick.json"


def main() -> None:
    """Measure, print, keep."""
    arguments = _arguments()
    names = arguments.scenario or (QUICK if arguments.quick else tuple(SCENARIOS))
    output = arguments.output or (QUICK_RESULTS if arguments.quick else RESULTS)
    data: dict[RowKind, Path] = {}
    if arguments.data:
        data["gsm8k"] = arguments.data
    if arguments.data_zh:
        data["alpaca-zh"] = arguments.data_zh
    with tempfile.TemporaryDirectory(prefix="train-speed-") as folder:
        bench = Bench(
            folder=Path(folder),
            peer=arguments.peer,
            data=data,
            mapping=arguments.map,
            tokenizer=arguments.tokenizer,
        )
        results = _results(bench, output)
        checked: Checked = {}
        for name in names:
            scenario = quick(SCENARIOS[name]) if arguments.quick else SCENARIOS[name]
            if arguments.updates:
                scenario = replace(scenario, updates=arguments.updates)
            print(f"\n{name} · {scenario.title}", flush=True)
            try:
                entry = measure(
                    bench,
                    scenario,
                    repeats=arguments.repeats,
                    has_defaults=not arguments.quick,
                    checked=checked,
                )
            except (Failed, Unequal) as error:
                raise SystemExit(f"{name}: {error}") from None
            results["scenarios"][name] = entry
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            for line in _report(scenario, entry):
                print(line, flush=True)
    if arguments.write:
        write_pages(results)


def _report(scenario: Scenario, entry: dict[str, Any]) -> list[str]:
    found = summary(entry)
    roofline = "" if found.roofline is None else f", roofline {found.roofline:.2f}"
    supervised = sum(entry["supervised"][scenario.warmup :]) / sum(
        entry["tokens"][scenario.warmup :]
    )
    lines = [
        f"  {'result':<9} {found.tokens_per_s:,.1f} tokens/s ({supervised:.0%} trained,"
        f" {found.steps_per_s:.3g} steps/s), TRL {found.peer_tokens_per_s:,.1f}"
        f" ({entry['settings']['trl']['name']}): {found.speed:.2f}x; memory {found.memory:.2f}x"
        f"{roofline}"
    ]
    lines += [f"  {'bar':<9} {phrase}" for phrase in verdicts(scenario, found)]
    others = entry["others_share"]
    if others is not None and others > QUIET:
        what = f"other processes took {others:.0%} of the machine: times say little"
        lines.append(f"  {'busy':<9} {what}")
    return lines


def _results(bench: Bench, output: Path) -> dict[str, Any]:
    """Empty, or what stands in `output` where it was measured with the same things."""
    packages = ("duiti", "torch", "transformers", "numpy")
    theirs = peer_versions(bench)
    facts = machine()
    versions = {name: version(name) for name in packages}
    versions |= {name: theirs[name] for name in ("trl", "peft", "accelerate")}
    results: dict[str, Any] = {"machine": facts, "versions": versions, "scenarios": {}}
    if output.exists():
        before = json.loads(output.read_text(encoding="utf-8"))
        if before["machine"] == facts and before["versions"] == versions:
            results["scenarios"] = before["scenarios"]
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scenario", nargs="+", choices=tuple(SCENARIOS), help="default: all")
    parser.add_argument("--repeats", type=_count, help="default: 3")
    parser.add_argument("--updates", type=_count, help="timed updates of a run, instead of its own")
    parser.add_argument("--data", type=Path, help="rows to sample, as JSONL or a JSON array")
    parser.add_argument("--map", default="", help="fields of --data, as for duiti train")
    parser.add_argument("--data-zh", type=Path, help="rows to sample for alpaca-zh")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json with ChatML's tokens, or its folder"
    )
    parser.add_argument("--peer", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/train_speed.json")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    parser.add_argument("--quick", action="store_true", help="small models, one repeat, no verdict")
    arguments = parser.parse_args()
    if arguments.tokenizer and arguments.tokenizer.is_dir():
        arguments.tokenizer /= "tokenizer.json"
    for file in (arguments.data, arguments.data_zh, arguments.tokenizer):
        if file is not None and not file.is_file():
            parser.error(f"no such file: {file}")
    if (arguments.data or arguments.data_zh) and not arguments.tokenizer:
        parser.error("real rows need --tokenizer: the made-up one has a token for every byte")
    if arguments.quick and arguments.tokenizer:
        parser.error("--quick has its own rows: its vocabulary is too small for others")
    if arguments.write and arguments.quick:
        parser.error("--quick measures nothing that could be written")
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    if not Path(arguments.peer).is_file():
        parser.error(f"no TRL: {arguments.peer} is missing (make .venv-trl/.ready)")
    return arguments


def _count(text: str) -> int:
    """A number of things, at least one."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    main()
