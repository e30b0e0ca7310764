"""Methods compared on the embedded model: what each learns, forgets and costs. Writes the README's
table.

    python -m benchmarks.methods [--write]

For the base and for LoRA, the last two layers and full fine-tuning with the settings of the demo:
exact answers on held-out entities, on phrasings never trained, on control entities that were never
read about; perplexity on held-out documents of the pretraining (base knowledge: lower is better, a
rise is forgetting); seconds of training; trained parameters. 400 questions of each kind, greedy
answers. A
JSON of the run, with machine and versions, goes to `benchmarks/results/methods.json`; `--write`
puts the table into README.md and README.zh-CN.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import duiti
from benchmarks.speed.machine import processor
from benchmarks.tiny_figures import exact, perplexity, versions
from duiti import tiny
from duiti.infer.model import load
from duiti.tiny import DataName

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
QUESTIONS: tuple[DataName, ...] = ("heldout", "unseen", "control")
METHODS = {"lora": 4e-3, "last-n": 1e-3, "full": 1e-3}
"""Each with the learning rate that suits it here; one epoch in updates of 8 rows, as in the
demo."""
BEGIN, END = "<!-- methods: made by benchmarks/methods.py -->", "<!-- /methods -->"


def main() -> None:
    """Measure every method in turn and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="put the table into the READMEs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the demo: the model is too small to gain from a second
    rows = [measure_base()]
    print(line(rows[0]))
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            rows.append(measure(method, METHODS[method], Path(folder) / method))
            print(line(rows[-1]), flush=True)
    found = {
        "rows": rows,
        "machine": {"cpu": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        for name in ("README.md", "README.zh-CN.md"):
            write_table(ROOT / name, rows)


def measure_base() -> dict[str, Any]:
    """The model before training."""
    model = load("tiny")
    scores: dict[str, float] = {kind: exact(model, kind) for kind in QUESTIONS}
    return {
        "method": "base",
        **scores,
        "perplexity": perplexity(model),
        "seconds": 0.0,
        "parameters": 0,
    }


def measure(method: str, rate: float, folder: Path) -> dict[str, Any]:
    """One method with the demo's settings."""
    started = time.perf_counter()
    run = duiti.train(
        tiny.data_path("train"),
        model="tiny",
        method=method,
        learning_rate=rate,
        epochs=1,
        batch_size=8,
        output=str(folder),
        quiet=True,
    )
    seconds = time.perf_counter() - started
    model = load(run)
    return {
        "method": method,
        **{kind: exact(model, kind) for kind in QUESTIONS},
        "perplexity": perplexity(model),
        "seconds": seconds,
        "parameters": trained_parameters(run.path, method),
    }


def trained_parameters(folder: Path, method: str) -> int:
    """Read from the run's settings: what `duiti train` says it trains."""
    from duiti.model.freeze import choose_trained
    from duiti.model.load import load_model, resolve

    model = load_model(resolve("tiny"), dtype=torch.float32, device="cpu")
    return choose_trained(model, duiti.Run(folder).config).num_parameters


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    label = {"base": "base", "lora": "LoRA r=16", "last-n": "last 2 layers", "full": "full"}
    shares = " | ".join(f"{100 * row[kind]:.1f} %" for kind in QUESTIONS)
    cost = f"{row['seconds']:.0f} s" if row["seconds"] else "–"
    size = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "–"
    return f"| {label[row['method']]} | {shares} | {row['perplexity']:.2f} | {cost} | {size} |"


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace what stands between the two marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    head, _, after = rest.partition(END)
    header = "\n".join(head.strip("\n").splitlines()[:2])  # the titles are the page's own language
    table = "\n".join(line(row) for row in rows)
    path.write_text(f"{before}{BEGIN}\n{header}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
