"""Whether the default learning rates and the default rank are near the best, on the embedded model.
Writes the tables of `docs/learning-rate.md`.

    python -m benchmarks.learning_rate [--only lora] [--write]

For LoRA, the last two layers and full fine-tuning, and for each of the rates that `--find-lr` tries
around the default: the loss on held-out rows after a whole run (one epoch of 3,000 rows in updates
of 8), the same after the short training of the search, and the perplexity on text that was never
trained (forgetting). Then LoRA at its default rate with other ranks. Every run starts from the same
weights and gets the same rows. A JSON with machine and versions goes to
`benchmarks/results/learning_rate.json`, run by run: what is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import processor
from benchmarks.tiny_figures import not_begun, perplexity, versions
from duiti import tiny
from duiti.config import Config
from duiti.data.storage.store import ExampleStore
from duiti.eval.evaluate import held_out_loss
from duiti.searching.as_found import as_found
from duiti.searching.attempt import try_training
from duiti.searching.learning_rate import EACH_WAY, STEP, at_rate, rounded, short_plan
from duiti.training.signals import Stopping
from duiti.training.step import StepPlan
from duiti.workshop import Job, Workshop

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning_rate.json"
PAGES = ("docs/learning-rate.md", "docs/learning-rate.zh-CN.md")
METHODS = ("lora", "last-n", "full")
PARTS = (*METHODS, "ranks")
RANKS = (4, 8, 16, 32, 64)
NUM_ROWS = 3000


def main() -> None:
    """Measure every part, or one, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from a second
    found = _stored()
    for part in PARTS if arguments.only is None else (arguments.only,):
        for point in _ranks(found) if part == "ranks" else _rates(found, part):
            print((_rank_line if part == "ranks" else _rate_line)(point), flush=True)
            RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        for page in PAGES:
            for part in PARTS:
                write_table(ROOT / page, part, found[part])


def _stored() -> dict[str, Any]:
    """What the file has; it is begun anew with other versions or settings."""
    about = {
        "rows": NUM_ROWS,
        "machine": {"cpu": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if RESULTS.is_file():
        found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in about.items()):
            return found
    return about | {part: {"points": []} for part in PARTS}


def _rates(found: dict[str, Any], method: str) -> Iterator[dict[str, Any]]:
    points = found[method]["points"]
    with tempfile.TemporaryDirectory() as folder:
        job, shop = _made(Path(folder), method=method)
        default = shop.plan.rate.peak
        found[method]["before"] = _figures(shop, job.material.val)
        for number in range(-EACH_WAY, EACH_WAY + 1):
            rate = rounded(default * STEP**number)
            if any(point["learning_rate"] == rate for point in points):
                continue
            plan = at_rate(shop.plan, rate)
            short = _measured(job, shop, short_plan(plan))
            points.append({"learning_rate": rate, "is_default": rate == default,
                           "short": short, "whole": _measured(job, shop, plan)})  # fmt: skip
            points.sort(key=lambda point: float(point["learning_rate"]))
            yield next(point for point in points if point["learning_rate"] == rate)


def _ranks(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    points = found["ranks"]["points"]
    for rank in RANKS:
        if any(point["rank"] == rank for point in points):
            continue
        with tempfile.TemporaryDirectory() as folder:
            # alpha / rank stays what it is, so that only the rank differs.
            job, shop = _made(Path(folder), method="lora", lora={"rank": rank, "alpha": 2 * rank})
            figures = _measured(job, shop, shop.plan)
            points.append({"rank": rank, "parameters": shop.trained.num_parameters, **figures})
            yield points[-1]


def _made(folder: Path, **settings: Any) -> tuple[Job, Workshop]:
    """A run that has not begun."""
    config = Config(
        data=(f"{tiny.data_path('train')}#{NUM_ROWS}",), model="tiny", val="10%", epochs=1,
        batch_size=8, **settings,
    )  # fmt: skip
    return not_begun(folder, config)


def _measured(job: Job, shop: Workshop, plan: StepPlan) -> dict[str, Any]:
    """A training by this plan, from the start, and what became of the model."""
    parameters = list(shop.trained.parameters.values())
    with Stopping() as stopping, as_found(shop.sft, parameters, shop.optimizer):
        attempt = try_training(shop, shop.examples, plan, job.material.val, stopping=stopping)
        if attempt.problem is not None:
            return {"val_loss": None, "perplexity": None, "problem": attempt.problem}
        return _figures(shop, job.material.val)


def _figures(shop: Workshop, val: ExampleStore) -> dict[str, Any]:
    loss = held_out_loss(shop.sft, val)
    return {"val_loss": loss, "perplexity": perplexity(shop.tuned), "problem": None}


def _rate_line(point: dict[str, Any]) -> str:
    short, whole = point["short"], point["whole"]
    rate = f"{point['learning_rate']:.1e}"
    if point["is_default"]:
        rate = f"**{rate}**"
    return (
        f"| {rate} | {_number(short['val_loss'], 3)} | {_number(whole['val_loss'], 3)}"
        f" | {_number(whole['perplexity'], 2)} |"
    )


def _rank_line(point: dict[str, Any]) -> str:
    rank = f"**{point['rank']}**" if point["rank"] == 16 else str(point["rank"])
    size = f"{point['parameters'] / 1e6:.2f} M"
    loss, perplexity = _number(point["val_loss"], 3), _number(point["perplexity"], 2)
    return f"| {rank} | {size} | {loss} | {perplexity} |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def write_table(path: Path, part: str, found: dict[str, Any]) -> None:
    """Replace the lines between the marks of this part; its head is the page's own language."""
    begin, end = f"<!-- {part}: made by benchmarks/learning_rate.py -->", f"<!-- /{part} -->"
    before, mark, rest = path.read_text(encoding="utf-8").partition(begin)
    if not mark or not found["points"]:
        print(f"{path.name}: no table of {part}: no marks for it, or nothing is measured")
        return
    head, _, after = rest.partition(end)
    header = "\n".join(head.strip("\n").splitlines()[:2])
    line = _rank_line if part == "ranks" else _rate_line
    table = "\n".join(line(point) for point in found["points"])
    path.write_text(f"{before}{begin}\n{header}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
