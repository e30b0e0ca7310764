"""Whether rows that were spoilt on purpose are found, and what the strength dial shows, on the
embedded model. Writes the tables of `docs/rows.md` and `docs/strength.md`.

    python -m benchmarks.rows [--write]

Of 1,500 rows that ask about entities (two thirds of them in the train file, so that a tenth may be
held out), 40 get the answer of another row, and 20 prompts come twice, once with a wrong answer.
They are trained with the defaults for 3 and for 12 epochs; then each kind is counted among the
spoilt rows and among the others. The dial is swept on the held-out rows and on an anchor of text
that the base writes. A JSON with machine and versions goes to `benchmarks/results/rows.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import processor
from benchmarks.tiny_figures import not_begun, versions
from duiti import tiny
from duiti.config import Config
from duiti.eval.anchor import make_anchor
from duiti.eval.drift import Watch
from duiti.eval.judge import held_out, write_rows
from duiti.eval.row_losses import ROW_LOSSES_FILE, RowLosses
from duiti.eval.rows import KINDS, SortedRows
from duiti.eval.strength import Sweep, sweep_strength
from duiti.training.step import train_steps
from duiti.workshop import Job, Workshop

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "rows.json"
PAGES = {"rows": ("docs/rows.md", "docs/rows.zh-CN.md"),
         "strength": ("docs/strength.md", "docs/strength.zh-CN.md")}  # fmt: skip
NUM_ROWS, NUM_WRONG, NUM_TWICE = 1500, 40, 20
EPOCHS = (3, 12)
GROUPS = ("wrong", "twice", "others")


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from a second
    found: dict[str, Any] = {"rows": [], "strength": {}}
    for epochs in EPOCHS:
        counts, sweep = _measured(epochs)
        found["rows"].append({"epochs": epochs, **counts})
        if epochs == EPOCHS[0]:
            found["strength"] = sweep.as_dict()
    found["machine"] = {"cpu": processor(), "threads": torch.get_num_threads()}
    found["versions"] = versions()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    tables = {"rows": _rows_table(found["rows"]), "strength": _strength_table(found["strength"])}
    for name, lines in tables.items():
        print("\n".join(lines), flush=True)
        for page in PAGES[name] if arguments.write else ():
            write_table(ROOT / page, name, lines)


def spoilt() -> tuple[list[dict[str, str]], dict[int, str]]:
    """Rows, and by line (from 1) what was done to some of them."""
    chance = random.Random(0)
    with tiny.data_path("train").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = chance.sample(rows, NUM_ROWS)
    done: dict[int, str] = {}
    chosen = chance.sample(range(NUM_ROWS), NUM_WRONG + NUM_TWICE)
    answers = [rows[place]["response"] for place in chance.sample(range(NUM_ROWS), len(chosen))]
    for place, answer in zip(chosen, answers, strict=True):
        if len(done) < NUM_WRONG:
            rows[place] = {**rows[place], "response": answer}
            done[place + 1] = "wrong"
        else:
            done[place + 1] = "twice"
            rows.append({**rows[place], "response": answer})
            done[len(rows)] = "twice"
    return rows, done


def _measured(epochs: int) -> tuple[dict[str, dict[str, int]], Sweep]:
    rows, done = spoilt()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "train.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        data.write_text("".join(lines), encoding="utf-8")
        job, shop = _made(folder, data, epochs)
        model = shop.sft.model
        anchor = make_anchor(model, job.material.tokenizer, seed=0)
        watch = Watch(shop.sft, anchor, is_adapter=True)
        with RowLosses(folder / ROW_LOSSES_FILE) as file:
            for metrics, progress in train_steps(
                shop.sft, shop.optimizer, job.material.train, shop.plan
            ):
                file.add(metrics.row_losses, cursor=progress.cursor)
        val = job.material.val
        found = write_rows(
            folder, job.material.train, seed=shop.plan.seed, held_out=held_out(shop.sft, val)
        )
        return _counted(found, done), sweep_strength(shop.sft, val, watch)


def _made(folder: Path, data: Path, epochs: int) -> tuple[Job, Workshop]:
    config = Config(data=(str(data),), model="tiny", val="10%", epochs=epochs)
    return not_begun(folder, config)


def _counted(found: SortedRows, done: dict[int, str]) -> dict[str, dict[str, int]]:
    """Rows of each kind, by what was done to them."""
    counts = {group: dict.fromkeys(KINDS, 0) for group in GROUPS}
    for kind in KINDS:
        for row in found.of_kind(kind):
            counts[done.get(row.origin.line, "others")][kind] += 1
    return counts


def _rows_table(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"| {run['epochs']} | {group} | " + " | ".join(str(run[group][k]) for k in KINDS) + " |"
        for run in found
        for group in GROUPS
    ]


def _strength_table(sweep: dict[str, Any]) -> list[str]:
    lines = []
    for point in sweep["points"]:
        strength = f"{point['strength']:g}"
        if point["strength"] == sweep["recommended"]:
            strength = f"**{strength}**"
        lines.append(
            f"| {strength} | {point['val_loss']:.4f} | {point['anchor_kl']:.4f}"
            f" | {point['anchor_nll_change']:+.4f} |"
        )
    return lines


def write_table(path: Path, part: str, lines: list[str]) -> None:
    """Replace the lines between the marks of this part; its head is the page's own language."""
    begin, end = f"<!-- {part}: made by benchmarks/rows.py -->", f"<!-- /{part} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    head, _, after = rest.partition(end)
    header = "\n".join(head.strip("\n").splitlines()[:2])
    table = "\n".join(lines)
    path.write_text(f"{before}{begin}\n{header}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
