"""One worker at a time: train with duiti or with TRL, measure the product rate.

    run = train_duiti(bench, ready, threads=2, num_updates=4)
    run = train_trl(bench, ready, "padding-free", threads=2, num_updates=4)
    rate = matmul_rate(bench, "bfloat16", threads=2)

duiti is run as a user runs it, `duiti train … --plain`, and leaves its line per update in
`metrics.jsonl`; TRL runs in `benchmarks/speed/peer.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.speed.scenarios import (
    ALPHA,
    DEFAULTS,
    PEERS,
    RANK,
    ROWS_PER_UPDATE,
    SEED,
    Dtype,
    Scenario,
)
from benchmarks.speed.start import (
    ROOT,
    Bench,
    Ready,
    environment_of,
    mapping_of,
    output_of,
    template_of,
)
from benchmarks.speed.watch import Failed, Seen, watch


class Unequal(Exception):
    """The two sides do not do the same, so that comparing them would say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process did."""

    seconds: list[float]
    """Of each update after the warm-up, by the clock outside."""
    peak_bytes: int
    loss: float
    """Of the first update."""
    grad_norm: float
    """Likewise, before clipping."""

    def rate(self, tokens: list[int]) -> float:
        """Tokens per second; `tokens` of every update, those of the warm-up too."""
        timed = len(self.seconds)
        warmup = len(tokens) - timed
        return sum(tokens[warmup:]) / sum(self.seconds)


def train_duiti(
    bench: Bench, ready: Ready, *, threads: int, num_updates: int, dtype: Dtype | None = None
) -> Run:
    """`duiti train` on the first updates.

    Args:
        dtype: default: that of the scenario.

    Raises:
        Failed: it did not end well.
        Unequal: it trained on other tokens than the peer would.
    """
    scenario = ready.scenario
    output = _fresh(ready.folder, "duiti")
    mapping = mapping_of(bench, scenario)
    command = [
        *(sys.executable, "-m", "duiti", "train", str(ready.folder / "rows.jsonl")),
        # The peer measures no forgetting; with so few updates it would be most of the time.
        *("--anchor", "none"),
        *("--model", "tiny" if scenario.shape is None else ready.model),
        *("--output", str(output)),
        *("--template", template_of(scenario)),
        *("--method", scenario.method),
        *("--dtype", dtype or scenario.dtype),
        *("--batch-size", str(ROWS_PER_UPDATE)),
        *("--learning-rate", str(scenario.learning_rate)),
        *("--schedule", "constant", "--warmup-steps", "0"),
        *("--epochs", "1", "--max-steps", str(num_updates)),
        *("--seed", str(SEED), "--plain", "--no-proof"),
    ]
    if mapping:
        command += ["--map", ",".join(f"{old}={new}" for old, new in mapping.items())]
    if scenario.method == "lora":
        command += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    seen = watch(
        command,
        lines=output / "metrics.jsonl",
        log=output.with_suffix(".log"),
        environment=environment_of(bench, threads),
    )
    steps = [json.loads(line) for line in seen.lines]
    found = [(step["num_tokens"], step["supervised_tokens"]) for step in steps]
    expected = list(zip(ready.tokens, ready.supervised, strict=True))[:num_updates]
    if found != expected:
        raise Unequal(
            f"duiti trained on {found} (tokens, supervised tokens) of each update,"
            f" and the peer would on {expected}: the comparison would not be one"
        )
    first = steps[0]
    return _run(seen, scenario, num_updates, loss=first["loss"], grad_norm=first["grad_norm"])


def train_trl(
    bench: Bench,
    ready: Ready,
    settings: str,
    *,
    threads: int,
    num_updates: int,
    dtype: Dtype | None = None,
) -> Run:
    """TRL on the same, with settings of `PEERS`.

    Raises:
        Failed: it did not end well.
        Unequal: it saw other tokens than duiti.
    """
    scenario = ready.scenario
    output = _fresh(ready.folder, "trl")
    given = PEERS[settings]
    # Threads that spin starve one another as soon as anything else runs; duiti's command sees to it
    # by itself. One of the settings tries the contrary, and the defaults are left alone.
    waiting = {} if settings == DEFAULTS else {"OMP_WAIT_POLICY": "PASSIVE"}
    result, lines = output.with_suffix(".result"), output.with_suffix(".lines")
    lines.unlink(missing_ok=True)
    job = {
        "model": ready.model,
        "adapter": str(ready.folder / "adapter"),
        "updates": str(ready.folder / "updates.json"),
        "method": scenario.method,
        "dtype": dtype or scenario.dtype,
        "learning_rate": scenario.learning_rate,
        "num_updates": num_updates,
        "seed": SEED,
        "settings": {key: value for key, value in given.items() if key != "environment"},
        "is_default": settings == DEFAULTS,
        "output": str(output),
        "lines": str(lines),
        "result": str(result),
    }
    seen = watch(
        [bench.peer, str(ROOT / "benchmarks" / "speed" / "peer.py")],
        lines=lines,
        log=output.with_suffix(".log"),
        environment=environment_of(bench, threads) | waiting | given.get("environment", {}),
        stdin=json.dumps(job),
    )
    first = json.loads(result.read_text(encoding="utf-8"))
    if first["num_tokens"] != ready.tokens[0]:
        raise Unequal(
            f"TRL saw {first['num_tokens']:.0f} tokens in the first update, and"
            f" duiti {ready.tokens[0]}: the comparison would not be one"
        )
    return _run(seen, scenario, num_updates, loss=first["loss"], grad_norm=first["grad_norm"])


def matmul_rate(bench: Bench, dtype: Dtype, *, threads: int) -> float:
    """FLOPs per second of a large product (`benchmarks/speed/matmul_rate.py`)."""
    command = [sys.executable, "-m", "benchmarks.speed.matmul_rate", dtype]
    return float(output_of(command, bench, threads=threads))


def peer_versions(bench: Bench) -> dict[str, str]:
    """Of the packages of the other side."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in"
        " ('trl', 'peft', 'accelerate', 'transformers', 'torch')}))"
    )
    found: dict[str, str] = json.loads(output_of([bench.peer, "-c", code], bench))
    return found


def _run(seen: Seen, scenario: Scenario, num_updates: int, *, loss: float, grad_norm: float) -> Run:
    if len(seen.at_s) != num_updates:
        raise Failed(f"{len(seen.at_s)} updates of {num_updates} were made")
    ends = seen.at_s[min(scenario.warmup, num_updates) - 1 :]
    seconds = [end - start for start, end in pairwise(ends)]
    return Run(seconds=seconds, peak_bytes=seen.peak_bytes, loss=loss, grad_norm=grad_norm)


def _fresh(folder: Path, kind: str) -> Path:
    """A folder that is not there yet."""
    number = sum(path.name.startswith(f"{kind}-") for path in folder.glob("*.log"))
    return folder / f"{kind}-{number}"
