"""One worker at a time: set a scenario up, train with duiti or with TRL, measure the product rate.

    ready = prepare(bench, scenario)
    run = train_duiti(bench, ready, threads=2, num_updates=4)
    run = train_trl(bench, ready, "padding-free", threads=2, num_updates=4)
    rate = matmul_rate(bench, "bfloat16", threads=2)

duiti is run as a user runs it, `duiti train … --plain`, and leaves its line per update in
`metrics.jsonl`. Both sides get one environment, with duiti's own choices left to duiti.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.speed_rows import write_made, write_sample
from benchmarks.speed_scenarios import (
    ALPHA,
    DEFAULTS,
    PEERS,
    RANK,
    ROWS_PER_UPDATE,
    SEED,
    Dtype,
    RowKind,
    Scenario,
)
from benchmarks.speed_watch import Failed, Seen, watch

ROOT = Path(__file__).parent.parent
TINY_ROWS = ROOT / "src" / "duiti" / "tiny" / "assets" / "train.jsonl"


class Unequal(Exception):
    """The two sides do not do the same, so that comparing them would say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where things are, for a whole run."""

    folder: Path
    """For models, rows and logs; thrown away afterwards."""
    peer: str
    """A Python with trl and peft."""
    data: dict[RowKind, Path]
    """Files of real rows; for kinds that are not here rows are made up."""
    mapping: str = ""
    """`--map` for the first of them."""
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A scenario that both sides can start from."""

    scenario: Scenario
    folder: Path
    model: str
    lengths: list[list[int]]
    """Tokens of each row of each update, in duiti's order."""
    supervised: list[int]
    """Trained tokens of each update."""
    source: str
    """Where the rows come from."""

    @property
    def tokens(self) -> list[int]:
        """Of each update; without padding."""
        return [sum(update) for update in self.lengths]


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


def prepare(bench: Bench, scenario: Scenario) -> Ready:
    """Make the model, the rows and the adapter to start from.

    Raises:
        Failed: it cannot be made.
    """
    folder = bench.folder / scenario.name
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    source = _write_rows(bench, scenario, rows)
    shape = scenario.shape
    kind = "tiny" if shape is None else f"model-{shape.hidden}-{shape.layers}"
    job = {
        "model": str(bench.folder / kind),
        "shape": None if shape is None else asdict(shape),
        "tokenizer": None if bench.tokenizer is None else str(bench.tokenizer),
        "rows": str(rows),
        "map": _mapping(bench, scenario),
        "template": _template(scenario),
        "method": scenario.method,
        "updates": str(folder / "updates.json"),
        "adapter": str(folder / "adapter"),
    }
    command = [sys.executable, "-m", "benchmarks.speed_setup"]
    facts = json.loads(_output(command, bench, stdin=json.dumps(job)))
    counts = [len(update) for update in facts["lengths"]]
    if counts != [ROWS_PER_UPDATE] * scenario.num_updates:
        raise Failed(f"rows were lost in preparing: {counts} of each update")
    return Ready(scenario=scenario, folder=folder, source=source, **facts)


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
    mapping = _mapping(bench, scenario)
    command = [
        *(sys.executable, "-m", "duiti", "train", str(ready.folder / "rows.jsonl")),
        *("--model", "tiny" if scenario.shape is None else ready.model),
        *("--output", str(output)),
        *("--template", _template(scenario)),
        *("--method", scenario.method),
        *("--dtype", dtype or scenario.dtype),
        *("--batch-size", str(ROWS_PER_UPDATE)),
        *("--learning-rate", str(scenario.learning_rate)),
        *("--schedule", "constant", "--warmup-steps", "0"),
        *("--epochs", "1", "--max-steps", str(num_updates)),
        *("--seed", str(SEED), "--plain"),
    ]
    if mapping:
        command += ["--map", ",".join(f"{old}={new}" for old, new in mapping.items())]
    if scenario.method == "lora":
        command += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    seen = watch(
        command,
        lines=output / "metrics.jsonl",
        log=output.with_suffix(".log"),
        environment=_environment(bench, threads),
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
        "settings": PEERS[settings],
        "is_default": settings == DEFAULTS,
        "output": str(output),
        "lines": str(lines),
        "result": str(result),
    }
    seen = watch(
        [bench.peer, str(ROOT / "benchmarks" / "peer_train.py")],
        lines=lines,
        log=output.with_suffix(".log"),
        environment=_environment(bench, threads),
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
    """FLOPs per second of a large product (`benchmarks/matmul_rate.py`)."""
    command = [sys.executable, "-m", "benchmarks.matmul_rate", dtype]
    return float(_output(command, bench, threads=threads))


def peer_versions(bench: Bench) -> dict[str, str]:
    """Of the packages of the other side."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in"
        " ('trl', 'peft', 'accelerate', 'transformers', 'torch')}))"
    )
    found: dict[str, str] = json.loads(_output([bench.peer, "-c", code], bench))
    return found


def _run(seen: Seen, scenario: Scenario, num_updates: int, *, loss: float, grad_norm: float) -> Run:
    if len(seen.at_s) != num_updates:
        raise Failed(f"{len(seen.at_s)} updates of {num_updates} were made")
    ends = seen.at_s[min(scenario.warmup, num_updates) - 1 :]
    seconds = [end - start for start, end in pairwise(ends)]
    return Run(seconds=seconds, peak_bytes=seen.peak_bytes, loss=loss, grad_norm=grad_norm)


def _write_rows(bench: Bench, scenario: Scenario, out: Path) -> str:
    num_rows = ROWS_PER_UPDATE * scenario.num_updates
    source = TINY_ROWS if scenario.rows == "tiny" else bench.data.get(scenario.rows)
    if source is None:
        write_made(out, scenario.rows, num_rows=num_rows)
        return f"made up, with the lengths of {scenario.rows}"
    write_sample(source, out, num_rows=num_rows)
    return source.name


def _mapping(bench: Bench, scenario: Scenario) -> dict[str, str]:
    if scenario.rows != "gsm8k" or "gsm8k" not in bench.data or not bench.mapping:
        return {}
    pairs = (pair.partition("=") for pair in bench.mapping.split(","))
    return {old: new for old, _, new in pairs}


def _template(scenario: Scenario) -> str:
    return "auto" if scenario.shape is None else "chatml"


def _fresh(folder: Path, kind: str) -> Path:
    """A folder that is not there yet."""
    number = sum(path.name.startswith(f"{kind}-") for path in folder.glob("*.log"))
    return folder / f"{kind}-{number}"


def _environment(bench: Bench, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(bench.folder / "datasets"),
        "DUITI_CACHE": str(bench.folder / "cache"),
    }


def _output(command: list[str], bench: Bench, *, stdin: str = "", threads: int = 2) -> str:
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=_environment(bench, threads),
        check=False,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command[:3])} … failed:\n{done.stderr}")
    return done.stdout
