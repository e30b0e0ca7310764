"""What an epoch costs when the output of frozen layers is kept: measured, beside its FLOPs.

    python -m benchmarks.trunk [--dtype bfloat16] [--repeats 3] [--rows 64]
    python -m benchmarks.trunk --quick               # a small model: does it work, no verdict

A random model in Qwen3-0.6B's shape, cut to 4 layers, of which the last is trained with the final
norm (`--method last-n --last-n.layers 1`); made-up rows with the lengths of GSM8K, 8 per update.
Two runs take turns, several times: one keeps the output of the lower three layers, one does not.
Both start with an update on other rows, which is not counted. Each epoch is timed by itself.

FLOPs are those of matrix products (`speed/flops.py` has the table). Of T tokens, S of them
trained, with P weights in the linear layers of one decoder layer, H heads of width E, vocabulary V,
width D, and documents of L tokens:

    lower layers, forward only   3 (2 T P + sum of 2 H E L (L+1))
    the last layer               6 T P + sum of 6 H E L (L+1)
    head, frozen                 4 S V D

The first epoch needs all of it, a later one all but the first line. *Of the ideal* is how much
faster a later epoch is than the first, over how much faster it would be by its FLOPs. *Of the
roofline* is the rate of a later epoch over that of one large product.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.speed.flops import Shape
from benchmarks.speed.machine import processor
from benchmarks.speed.matmul_rate import best_rate
from benchmarks.speed.rows import LENGTHS, made_lengths
from benchmarks.speed.scenarios import FOUR_LAYERS, ROWS_PER_UPDATE, SEED, SMALL
from duiti.config import Config, LastNConfig
from duiti.data.batch import collate, epoch_updates
from duiti.model.choose_trunk import choose_trunk
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.step import StepPlan, train_step, train_steps
from duiti.types import IGNORE_INDEX, Example, Origin

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "trunk.json"
TEMPLATE_TOKENS = 9
"""What ChatML adds to a prompt; an answer gets its stop token."""
EPOCHS = 3
BAR = 0.8
"""Of the ideal, that a later epoch has to reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Matrix products of one epoch."""

    below: float
    """Of the frozen layers."""
    above: float
    """Of the trained layer and the head, forward and backward."""


def main() -> None:
    """Measure, print a table, write a JSON."""
    arguments = _arguments()
    shape = SMALL if arguments.quick else FOUR_LAYERS
    rows = made_examples(arguments.rows, shape.vocab)
    flops = epoch_flops(shape, rows)
    found: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        },
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "rows": len(rows),
        "tokens": sum(map(len, rows)),
        "supervised": sum(row.num_supervised for row in rows),
        "gflops": {"below": flops.below / 1e9, "above": flops.above / 1e9},
        "dtypes": {},
    }
    for name in arguments.dtype:
        found["dtypes"][name] = measured(shape, rows, name, flops, arguments.repeats)
        print(shown(name, found["dtypes"][name]), flush=True)
    output = arguments.output or (
        ROOT / "build" / "trunk_quick.json" if arguments.quick else RESULTS
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"written: {output}")


def measured(
    shape: Shape, rows: list[Example], dtype: str, flops: Flops, repeats: int
) -> dict[str, Any]:
    """Seconds of the epochs with and without, and what follows from them."""
    kept: list[list[float]] = []
    anew: list[list[float]] = []
    rates = []
    for _ in range(repeats):
        rates.append(best_rate(getattr(torch, dtype)))
        kept.append(epoch_seconds(shape, rows, dtype, is_kept=True, epochs=EPOCHS))
        anew.append(epoch_seconds(shape, rows, dtype, is_kept=False, epochs=1))
    first = median(run[0] for run in kept)
    later = median(seconds for run in kept for seconds in run[1:])
    without = median(seconds for run in anew for seconds in run)
    rate = median(rates)
    return {
        "seconds": {"kept": kept, "anew": anew},
        "product_gflops_per_s": rate / 1e9,
        "first_s": first,
        "later_s": later,
        "anew_s": without,
        "ideal": (flops.below + flops.above) / flops.above,
        "of_the_ideal": first / later / ((flops.below + flops.above) / flops.above),
        "of_the_ideal_without": without / later / ((flops.below + flops.above) / flops.above),
        "roofline": flops.above / later / rate,
        "roofline_first": (flops.below + flops.above) / first / rate,
        "bar": BAR,
    }


def epoch_seconds(
    shape: Shape, rows: list[Example], dtype: str, *, is_kept: bool, epochs: int
) -> list[float]:
    """Train for some epochs and time each."""
    config = Config(
        method="last-n",
        last_n=LastNConfig(layers=1),
        batch_size=ROWS_PER_UPDATE,
        micro_batch_tokens=2048,
        cache=is_kept,
        seed=SEED,
    )
    compute_dtype = getattr(torch, dtype)
    model = random_model(shape, compute_dtype)
    is_packed = why_alone(model, collate(probe_rows(model, rows))) is None
    trained = choose_trained(model, config)
    sft = SFTModel(model, compute_dtype=compute_dtype, is_packed=is_packed)
    optimizer = make_optimizer(trained.parameters.values(), weight_decay=0.0)
    num_updates = -(-len(rows) // ROWS_PER_UPDATE)
    plan = StepPlan(
        rate=RatePlan(
            peak=1e-4, schedule="constant", warmup_steps=0, total_steps=epochs * num_updates
        ),
        batch_size=ROWS_PER_UPDATE,
        micro_batch_tokens=2048,
        max_grad_norm=1.0,
        seed=SEED,
    )
    order = [i for u in epoch_updates(len(rows), ROWS_PER_UPDATE, seed=SEED, epoch=0) for i in u]
    first_time = [rows[index] for index in order]
    with tempfile.TemporaryDirectory() as folder:
        probe = collate(probe_rows(model, first_time))
        trunk, what = choose_trunk(sft, [first_time], probe, Path(folder), config)
        assert (trunk is not None) == is_kept, what
        train_step(sft, optimizer, made_examples(ROWS_PER_UPDATE, shape.vocab, seed=1), plan,
                   step=1, epoch=0)  # fmt: skip
        sft.trunk = trunk
        steps = train_steps(sft, optimizer, rows, plan)
        seconds = []
        for _ in range(epochs):
            started = time.perf_counter()
            assert len(list(islice(steps, num_updates))) == num_updates
            seconds.append(time.perf_counter() - started)
    return seconds


def random_model(shape: Shape, dtype: torch.dtype) -> PreTrainedModel:
    """Qwen3's architecture, head tied as in the published model."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = Qwen3ForCausalLM(config).to(dtype)  # type: ignore[arg-type]
    model.eval()
    return model


def made_examples(num_rows: int, vocab: int, *, seed: int = SEED) -> list[Example]:
    """Rows of random tokens with the lengths of GSM8K's."""
    chance = np.random.default_rng(seed)
    rows = []
    for line, (prompt, response) in enumerate(made_lengths(LENGTHS["gsm8k"], num_rows), start=1):
        given = prompt + TEMPLATE_TOKENS
        ids = chance.integers(0, vocab, given + response + 1).astype(np.int32)
        labels = ids.copy()
        labels[:given] = IGNORE_INDEX
        rows.append(Example(input_ids=ids, labels=labels, origin=Origin("made", line)))
    return rows


def epoch_flops(shape: Shape, rows: list[Example]) -> Flops:
    """Necessary for one epoch with the last layer trained."""
    tokens = sum(map(len, rows))
    linear = 2 * tokens * sum(inside * outside for inside, outside in shape.linear().values())
    pairs = sum(len(row) * (len(row) + 1) // 2 for row in rows)
    attention = 4 * shape.heads * shape.head_dim * pairs
    head = 4 * shape.vocab * shape.hidden * sum(row.num_supervised for row in rows)
    layer = linear + attention
    return Flops(below=(shape.layers - 1) * layer, above=3 * layer + head)


def shown(dtype: str, found: dict[str, Any]) -> str:
    """A few lines for people."""
    return "\n".join(
        [
            f"{dtype}: first epoch {found['first_s']:.2f} s ({found['roofline_first']:.0%} of the"
            f" roofline), later {found['later_s']:.2f} s ({found['roofline']:.0%}), without"
            f" {found['anew_s']:.2f} s",
            f"  {found['first_s'] / found['later_s']:.2f} times as fast as the first,"
            f" {found['ideal']:.2f} by FLOPs: {found['of_the_ideal']:.2f} of the ideal"
            f" (bar {found['bar']}); against an epoch without:"
            f" {found['of_the_ideal_without']:.2f}",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a small model, no verdict")
    parser.add_argument("--output", type=Path, help="JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
