"""What both sides of a scenario start from: model, rows, adapter, environment.

    bench = Bench(folder=folder, peer=".venv-trl/bin/python", data={})
    ready = prepare(bench, SCENARIOS["lora-4-bf16"])

The heavy part is a child, `benchmarks/speed/setup.py`: this process stays small, for children are
born with the peak memory of their parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.speed.rows import write_made, write_sample
from benchmarks.speed.scenarios import ROWS_PER_UPDATE, RowKind, Scenario
from benchmarks.speed.watch import Failed

ROOT = Path(__file__).parents[2]
TINY_ROWS = ROOT / "src" / "duiti" / "tiny" / "assets" / "train.jsonl"


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
        "map": mapping_of(bench, scenario),
        "template": template_of(scenario),
        "method": scenario.method,
        "updates": str(folder / "updates.json"),
        "adapter": str(folder / "adapter"),
    }
    command = [sys.executable, "-m", "benchmarks.speed.setup"]
    facts = json.loads(output_of(command, bench, stdin=json.dumps(job)))
    counts = [len(update) for update in facts["lengths"]]
    if counts != [ROWS_PER_UPDATE] * scenario.num_updates:
        raise Failed(f"rows were lost in preparing: {counts} of each update")
    return Ready(scenario=scenario, folder=folder, source=source, **facts)


def mapping_of(bench: Bench, scenario: Scenario) -> dict[str, str]:
    """How fields of the rows are renamed: `{"question": "prompt"}`."""
    if scenario.rows != "gsm8k" or "gsm8k" not in bench.data or not bench.mapping:
        return {}
    pairs = (pair.partition("=") for pair in bench.mapping.split(","))
    return {old: new for old, _, new in pairs}


def template_of(scenario: Scenario) -> str:
    """duiti's name of the chat template: the embedded model has its own."""
    return "auto" if scenario.shape is None else "chatml"


def environment_of(bench: Bench, threads: int) -> dict[str, str]:
    """Of every child. How waiting threads behave (`OMP_WAIT_POLICY`) is left to each side."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(bench.folder / "datasets"),
        "DUITI_CACHE": str(bench.folder / "cache"),
    }


def output_of(command: list[str], bench: Bench, *, stdin: str = "", threads: int = 2) -> str:
    """What a child prints.

    Raises:
        Failed: it ended with an error.
    """
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment_of(bench, threads),
        check=False,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command[:3])} … failed:\n{done.stderr}")
    return done.stdout


def _write_rows(bench: Bench, scenario: Scenario, out: Path) -> str:
    num_rows = ROWS_PER_UPDATE * scenario.num_updates
    source = TINY_ROWS if scenario.rows == "tiny" else bench.data.get(scenario.rows)
    if source is None:
        write_made(out, scenario.rows, num_rows=num_rows)
        return f"made up, with the lengths of {scenario.rows}"
    write_sample(source, out, num_rows=num_rows)
    return source.name
