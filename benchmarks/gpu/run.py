"""Runs the children of `benchmarks.gpu`: set a case up, train with duiti or a peer, measure the
product rate. One process at a time, so that each has the GPU to itself.

    ready = prepare(place, case)
    run = run_duiti(place, ready, num_updates=23)
    run = run_peer(place, ready, "liger", num_updates=23)
    rate = product_rate(place)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import SETTINGS, Case, Family
from benchmarks.speed.rows import write_made, write_sample
from benchmarks.speed.scenarios import ALPHA, RANK, SEED
from benchmarks.speed.watch import Failed, Seen, watch

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "liger-kernel",
    "unsloth",
    "flash-attn",
    "kernels",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where things are, for a whole run."""

    folder: Path
    """For models, rows and logs; thrown away afterwards."""
    device: str
    """`cuda`, or for a dry run `cpu`."""
    dtype: str
    """Of the matrix products: `bfloat16`, and `float32` in a dry run."""
    pythons: Mapping[str, str]
    """Of `duiti` and of each family of peers."""
    data: Path | None = None
    """A file of real rows; without it rows are made up."""
    mapping: str = ""
    """`--map` for it."""
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A case that all sides can start from."""

    case: Case
    folder: Path
    model: Path
    source: str
    """Where the rows come from."""
    lengths: list[list[int]]
    """Tokens of each row of each update, in duiti's order."""
    supervised: list[int]
    """Trained tokens of each update."""

    @property
    def tokens(self) -> list[int]:
        """Of each update; without padding."""
        return [sum(update) for update in self.lengths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process did."""

    seconds: float
    """From the end of the warm-up to the end of the last update."""
    num_tokens: int
    """In this time; padding does not count."""
    peak_bytes: int
    """The most that tensors held on the GPU; in a dry run, the process in memory."""
    loss: float
    """Of the first update."""
    grad_norm: float | None
    """Likewise, before clipping; None where the adapter starts elsewhere."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.num_tokens / self.seconds


def prepare(place: Place, case: Case) -> Ready:
    """Make the model, the rows and the adapter to start from."""
    folder = place.folder / case.name
    folder.mkdir(parents=True)
    data = folder / "rows.jsonl"
    num_rows = case.rows * case.num_updates
    if place.data is None:
        write_made(data, "gsm8k", num_rows=num_rows)
    else:
        write_sample(place.data, data, num_rows=num_rows)
    model = place.folder / f"model-{case.shape.hidden}-{case.shape.layers}"
    job = {
        "model": str(model),
        "shape": asdict(case.shape),
        "tokenizer": None if place.tokenizer is None else str(place.tokenizer),
        "data": str(data),
        "map": dict(pair.split("=") for pair in place.mapping.split(",") if pair),
        "rows": case.rows,
        "method": case.method,
        "updates": str(folder / "updates.json"),
        "adapter": str(folder / "adapter"),
    }
    command = [place.pythons["duiti"], "-m", "benchmarks.gpu.setup"]
    facts = json.loads(_output(place, command, stdin=json.dumps(job)))
    counts = [len(update) for update in facts["lengths"]]
    if counts != [case.rows] * case.num_updates:
        raise Failed(f"rows were lost in preparing: {counts} of each update")
    source = "made up, with the lengths of GSM8K" if place.data is None else place.data.name
    return Ready(case=case, folder=folder, model=model, source=source, **facts)


def run_duiti(place: Place, ready: Ready, *, num_updates: int) -> Run:
    """`duiti train` on the first updates, as a user calls it: what is not said here is `auto`."""
    case, output = ready.case, _fresh(ready.folder, "duiti")
    command = [
        *(place.pythons["duiti"], "-m", "duiti", "train", str(ready.folder / "rows.jsonl")),
        *("--model", str(ready.model), "--output", str(output), "--device", place.device),
        *("--template", "chatml", "--method", case.method, "--dtype", place.dtype),
        *("--batch-size", str(case.rows), "--learning-rate", str(case.learning_rate)),
        *("--schedule", "constant", "--warmup-steps", "0", "--epochs", "1"),
        *("--max-steps", str(num_updates), "--seed", str(SEED), "--plain", "--no-proof"),
    ]
    if place.mapping:
        command += ["--map", place.mapping]
    if case.method == "lora":
        command += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    seen = watch(
        command,
        lines=output / "metrics.jsonl",
        log=output.with_suffix(".log"),
        environment=_environment(place),
    )
    steps = [json.loads(line) for line in seen.lines]
    found = [(step["num_tokens"], step["supervised_tokens"]) for step in steps]
    expected = list(zip(ready.tokens, ready.supervised, strict=True))[:num_updates]
    if found != expected:
        raise Failed(f"duiti trained on {found} tokens, and the peers would on {expected}")
    shutil.rmtree(output)  # with full fine-tuning it is as large as the model
    is_gpu = place.device != "cpu"
    return _run(
        ready,
        seen,
        peak_bytes=steps[-1]["peak_memory_bytes"] if is_gpu else seen.peak_bytes,
        loss=steps[0]["loss"],
        grad_norm=steps[0]["grad_norm"],
    )


def run_peer(place: Place, ready: Ready, name: str, *, num_updates: int) -> Run:
    """A peer on the same, with one of `SETTINGS`."""
    case, setting = ready.case, SETTINGS[name]
    output = _fresh(ready.folder, name)
    result, lines = output.with_suffix(".result"), output.with_suffix(".lines")
    job = {
        "model": str(ready.model),
        "adapter": str(ready.folder / "adapter"),
        "updates": str(ready.folder / "updates.json"),
        "longest": max(length for update in ready.lengths for length in update),
        "method": case.method,
        "dtype": place.dtype,
        "device": place.device,
        "attention": "sdpa" if place.device == "cpu" else setting.attention,
        "parts": setting.parts,
        "is_checkpointed": setting.is_checkpointed,
        "options": dict(setting.options),
        "learning_rate": case.learning_rate,
        "warmup": case.warmup,
        "num_updates": num_updates,
        "seed": SEED,
        "output": str(output),
        "lines": str(lines),
        "result": str(result),
    }
    module = "unsloth" if setting.family == "unsloth" else "peer"
    seen = watch(
        [place.pythons[setting.family], "-m", f"benchmarks.gpu.{module}"],
        lines=lines,
        log=output.with_suffix(".log"),
        environment=_environment(place),
        stdin=json.dumps(job),
    )
    first = json.loads(result.read_text(encoding="utf-8"))
    seen_tokens = first.get("num_tokens")  # Unsloth's trainer may not count them
    if seen_tokens not in (None, ready.tokens[0]):
        raise Failed(f"{name} saw {seen_tokens} tokens first, and duiti {ready.tokens[0]}")
    return _run(
        ready,
        seen,
        peak_bytes=first["peak_bytes"] or seen.peak_bytes,
        loss=first["loss"],
        grad_norm=None if setting.family == "unsloth" else first["grad_norm"],
    )


def product_rate(place: Place) -> float:
    """FLOPs per second of large products (`benchmarks/gpu/matmul.py`)."""
    command = [place.pythons["duiti"], "-m", "benchmarks.gpu.matmul", place.device, place.dtype]
    return float(_output(place, command))


def versions(place: Place, family: Family | str) -> dict[str, str]:
    """Of the packages in the environment of a family."""
    code = (
        "import importlib.metadata as m, json\n"
        "found = {}\n"
        f"for name in {PACKAGES!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(_output(place, [place.pythons[family], "-c", code]))
    return found


def gpu(place: Place) -> dict[str, Any]:
    """Name, memory and driver's CUDA of the GPU; empty on a machine without one."""
    code = (
        "import json, torch\n"
        "p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None\n"
        "print(json.dumps({'name': p.name, 'memory_bytes': p.total_memory,"
        " 'capability': [p.major, p.minor], 'cuda': torch.version.cuda} if p else {}))"
    )
    found: dict[str, Any] = json.loads(_output(place, [place.pythons["duiti"], "-c", code]))
    return found


def _run(ready: Ready, seen: Seen, *, peak_bytes: int, loss: float, grad_norm: float | None) -> Run:
    warmup, num_updates = ready.case.warmup, len(seen.at_s)
    if num_updates <= warmup:
        raise Failed(f"only {num_updates} updates were made")
    return Run(
        seconds=seen.at_s[-1] - seen.at_s[warmup - 1],
        num_tokens=sum(ready.tokens[warmup:num_updates]),
        peak_bytes=peak_bytes,
        loss=loss,
        grad_norm=grad_norm,
    )


def _fresh(folder: Path, kind: str) -> Path:
    """A folder that is not there yet."""
    number = sum(path.name.startswith(f"{kind}-run") for path in folder.glob("*.log"))
    return folder / f"{kind}-run{number}"


def _environment(place: Place) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1"} if place.device == "cpu" else {}  # kernels come from the hub
    return {
        **os.environ,
        **offline,
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(place.folder / "datasets"),
        "DUITI_CACHE": str(place.folder / "cache"),
    }


def _output(place: Place, command: list[str], *, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=_environment(place), check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(command[:3])} … failed:\n{done.stderr.strip()}")
    return done.stdout
