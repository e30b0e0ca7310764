"""Where the time of an update goes: by part, products apart from everything else.

    python -m benchmarks.profile_update [--dtype float32] [--layers 4] [--method full] [--write]

A random model in Qwen3-0.6B's shape, made-up rows with the lengths of GSM8K, 8 per update, as in
`benchmarks/train_speed.py`; torch's profiler around one update after two that warm up. Every
operation is charged to the nearest of our own steps above it:

| part | what |
|---|---|
| frozen layers and adapters | the fused step of an adapted layer (`model/low_rank.py`) |
| head and loss | `model/loss.py` |
| attention | `model/short_attention.py`, `model/attention.py` |
| optimizer | AdamW, clipping |
| model code | norms, rotations, activations, residuals: transformers' own modules |

*Products* are matrix products; *ideal* is the time that the necessary ones (`speed/flops.py`)
take at the rate of one large product, measured in the same process. What is left of the update's
time outside of operations is Python. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.flops import necessary_flops
from benchmarks.speed.matmul_rate import best_rate
from benchmarks.speed.scenarios import ALPHA, FOUR_LAYERS, RANK, ROWS_PER_UPDATE
from benchmarks.trunk import made_examples, random_model
from duiti.config import Config, LoraConfig
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.allocator import keep_freed_memory
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.step import StepPlan, train_step

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- profile: made by benchmarks/profile_update.py -->", "<!-- /profile -->"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::linear")
PARTS = {
    "_AdaptedLinear": "frozen layers and adapters",
    "_FrozenHead": "head and loss",
    "TrainedHead": "head and loss",
    "_ShortAttention": "attention",
    "aten::scaled_dot_product_attention": "attention",
    "ScaledDotProduct": "attention",
    "Optimizer.step": "optimizer",
    "Optimizer.zero_grad": "optimizer",
    "aten::_foreach": "optimizer",
    "aten::linalg_vector_norm": "optimizer",
}
OTHER = "model code"


def main() -> None:
    """Profile one update and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    lines = table(dtype, arguments.method, arguments.layers)
    print("\n".join(lines))
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"
        PAGE.write_text(text, encoding="utf-8")


def table(dtype: torch.dtype, method: str, layers: int) -> list[str]:
    """The lines of a Markdown table."""
    shape = replace(FOUR_LAYERS, layers=layers)
    keep_freed_memory()
    rows = made_examples(ROWS_PER_UPDATE, shape.vocab)
    model = random_model(shape, torch.float32 if method == "full" else dtype)
    lora = {"lora": LoraConfig(rank=RANK, alpha=ALPHA)} if method == "lora" else {}
    trained = choose_trained(model, Config(method=method, **lora))  # type: ignore[arg-type]
    sft = SFTModel(model, compute_dtype=dtype)
    optimizer = make_optimizer(trained.parameters.values(), weight_decay=0.0)
    rate = RatePlan(peak=1e-5, schedule="constant", warmup_steps=0, total_steps=10)
    plan = StepPlan(
        rate=rate, batch_size=len(rows), micro_batch_tokens=2048, max_grad_norm=1.0, seed=0
    )
    seconds = []
    for step in range(1, 6):
        started = time.perf_counter()
        train_step(sft, optimizer, rows, plan, step=step, epoch=0.0)
        seconds.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        train_step(sft, optimizer, rows, plan, step=6, epoch=0.0)
        profiled = time.perf_counter() - started
    needed = necessary_flops(
        shape,
        method="full" if method == "full" else "lora",
        rank=RANK,
        lengths=[len(row) for row in rows],
        num_supervised=sum(row.num_supervised for row in rows),
    )
    ideal = needed / best_rate(dtype)
    return _lines(charge(found.events()), profiled, ideal, min(seconds[2:]))


def charge(events: list[FunctionEvent]) -> dict[str, list[float]]:
    """Seconds of [products, everything else] by part."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        if event.device_type.name != "CPU":
            continue
        is_product = event.name in PRODUCTS
        spent[part_of(event)][0 if is_product else 1] += event.self_cpu_time_total / 1e6
    return spent


def part_of(event: FunctionEvent | None) -> str:
    """The nearest step above an operation that has a name of ours."""
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        for start, part in PARTS.items():
            if name.startswith(start):
                return part
        event = event.cpu_parent
    return OTHER


def _lines(
    spent: dict[str, list[float]], profiled: float, ideal: float, unprofiled: float
) -> list[str]:
    lines = ["| part | products | everything else |", "|---|---|---|"]
    for part in dict.fromkeys([*PARTS.values(), OTHER]):
        products, rest = spent.get(part, [0.0, 0.0])
        lines.append(f"| {part} | {products / profiled:.1%} | {rest / profiled:.1%} |")
    outside = profiled - sum(map(sum, spent.values()))
    lines.append(f"| Python, outside of operations | | {outside / profiled:.1%} |")
    lines += [
        "",
        f"The update took {unprofiled:.2f} s ({profiled:.2f} s under the profiler); its necessary"
        f" products take {ideal:.2f} s at the rate of one large product: {ideal / unprofiled:.0%}.",
    ]
    return lines


if __name__ == "__main__":
    main()
