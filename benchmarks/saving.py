"""What checkpoints cost: the time that training waits for one, and the time that another thread
needs to write it, bring it to the disk, hash it, read it back and compare.

    python -m benchmarks.saving                   # Qwen3-0.6B's shape; some minutes, 8 GB of disk
    python -m benchmarks.saving --write           # and put the table into docs/reliability.md
    python -m benchmarks.saving --quick           # small models: does it work

By default a checkpoint is made every ten minutes. The share of a run is therefore (waiting +
writing) / ten minutes, as if the writing took a core from training all the time; it does not where
it waits for the disk. Every figure is the median of several checkpoints, all on this machine's disk
(`--folder`: another one). Nothing is trained, but the moments are those of an update.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.speed.flops import Shape
from benchmarks.speed.scenarios import FOUR_LAYERS, QWEN3_06B, SMALL
from benchmarks.trunk import random_model
from duiti.config import Config, LastNConfig, LoraConfig
from duiti.model.freeze import choose_trained
from duiti.quantities import SaveEvery
from duiti.training.keeper import save
from duiti.training.optim import make_optimizer
from duiti.training.state import RunState, checkpoint_bytes, snapshot, write_state
from duiti.training.tensors import Snapshot

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "reliability.md", DOCS / "reliability.zh-CN.md"]
BEGIN, END = "<!-- saving: made by benchmarks/saving.py -->", "<!-- /saving -->"
BAR = 0.02
"""Of a run's time that saving may take."""


@dataclass(frozen=True, slots=True)
class Case:
    """Something that is trained."""

    title: str
    shape: Shape
    config: Config


CASES = (
    Case("LoRA r=16, 28 layers", QWEN3_06B, Config(method="lora", lora=LoraConfig(rank=16))),
    Case("last 2 of 28 layers", QWEN3_06B, Config(method="last-n", last_n=LastNConfig(layers=2))),
    Case("full, 4 layers", FOUR_LAYERS, Config(method="full")),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one checkpoint."""

    num_bytes: int
    waits_s: float
    writes_s: float

    @property
    def share(self) -> float:
        """Of the time from one checkpoint to the next."""
        every_s = SaveEvery.parse(Config.model_fields["save_every"].default).seconds
        assert every_s is not None  # the default is a time
        return (self.waits_s + self.writes_s) / every_s


def measured(case: Case, folder: Path, repeats: int) -> Cost:
    """The medians of some checkpoints."""
    model = random_model(case.shape, torch.bfloat16)
    trained = choose_trained(model, case.config).parameters
    optimizer = make_optimizer(trained.values(), weight_decay=0.0)
    for parameter in trained.values():  # numbers as of training: zeros are written faster
        for moment in ("exp_avg", "exp_avg_sq"):
            nn.init.uniform_(optimizer.state[parameter][moment], 0.0, 1e-4)
    found = [one_checkpoint(trained, optimizer, folder, step) for step in range(1, repeats + 1)]
    return Cost(
        num_bytes=checkpoint_bytes(trained),
        waits_s=median(waits for waits, _ in found),
        writes_s=median(writes for _, writes in found),
    )


def one_checkpoint(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW, folder: Path, step: int
) -> tuple[float, float]:
    """Seconds of the copy, and of all that follows."""
    began = time.perf_counter()
    tensors = snapshot(trained, optimizer)
    copied = time.perf_counter()
    state = RunState(micro_batch_tokens=2048)
    save(folder, step, partial(_write, state, tensors), {}, keep=1)
    return copied - began, time.perf_counter() - copied


def _write(state: RunState, tensors: Snapshot, folder: Path) -> None:
    write_state(folder, state, tensors)


def row(case: Case, cost: Cost) -> str:
    return (
        f"| {case.title} | {cost.num_bytes / 1e6:,.0f} MB | {cost.waits_s:.2f} s"
        f" | {cost.writes_s:.1f} s | {cost.share:.2%} |"
    )


def write_table(page: Path, rows: list[str]) -> None:
    """Replace the rows between the marks; the titles are the page's own language."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    head, _, after = rest.partition(END)
    table = "\n".join([*head.strip("\n").splitlines()[:2], *rows])
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="What checkpoints cost.")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into the pages")
    parser.add_argument("--quick", action="store_true", help="small models")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        small = Case(case.title, SMALL, case.config) if arguments.quick else case
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="saving-") as folder:
            cost = measured(small, Path(folder), arguments.repeats)
        rows.append(row(case, cost))
        verdict = "met" if cost.share <= BAR else "missed"
        print(f"{rows[-1]}  (at most {BAR:.0%}: {verdict})", flush=True)
    if arguments.write and not arguments.quick:
        for page in PAGES:
            write_table(page, rows)


if __name__ == "__main__":
    main()
