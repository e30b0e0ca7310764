"""The loop, as a generator: one optimizer update per item. The only code that calls backward.

    for metrics in train_steps(sft, optimizer, examples, plan):
        ...                          # log, evaluate, save: the caller decides

The gradient of an update is the gradient of (weighted sum of the losses of its supervised tokens) /
(sum of their weights), over all its micro-batches: sums are accumulated, and divided once. So a
weight counts relative to the others of its update; without weights it is the mean over tokens.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from duiti.data.batch import collate, epoch_updates, micro_batches
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.training.optim import RatePlan, learning_rate_at
from duiti.types import Example, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What the loop does, decided before it starts."""

    rate: RatePlan
    batch_size: int
    """Rows per update."""
    micro_batch_tokens: int
    max_grad_norm: float
    """0: never clip."""
    seed: int

    @property
    def total_steps(self) -> int:
        return self.rate.total_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One update, measured."""

    step: int
    """From 1."""
    epoch: float
    """Passes over the data, this update included."""
    loss: float
    """Weighted mean over the update's supervised tokens, in nats, before the update."""
    num_tokens: int
    """Tokens of the update."""
    supervised_tokens: int
    """Cross-entropy terms of the update, whatever their weights."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens_per_s: float
    peak_memory_bytes: int
    """Of the GPU, or of the process."""


def train_steps(
    sft: SFTModel,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    plan: StepPlan,
) -> Iterator[tuple[StepMetrics, Progress]]:
    """Train to the end of the plan, yielding after every update.

    Raises:
        DuitiError: the loss or the gradient is not finite; that update is not made.
    """
    progress = Progress()
    epoch = 0
    while True:
        updates = epoch_updates(len(examples), plan.batch_size, seed=plan.seed, epoch=epoch)
        for indices in updates:
            if progress.step >= plan.total_steps:
                return
            rows = [examples[i] for i in indices]
            cursor = progress.cursor + len(rows)
            passes = cursor / len(examples)
            metrics = train_step(sft, optimizer, rows, plan, step=progress.step + 1, epoch=passes)
            progress = Progress(
                step=metrics.step,
                cursor=cursor,
                num_tokens=progress.num_tokens + metrics.num_tokens,
                supervised_tokens=progress.supervised_tokens + metrics.supervised_tokens,
            )
            yield metrics, progress
        epoch += 1


def train_step(
    sft: SFTModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Example],
    plan: StepPlan,
    *,
    step: int,
    epoch: float,
) -> StepMetrics:
    """One update on `rows`: accumulate over micro-batches, divide once, clip, step."""
    started = time.perf_counter()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    sft.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    num_supervised = num_tokens = 0
    weight_sum: int | float = 0
    lengths = [len(row) for row in rows]
    for part in micro_batches(range(len(rows)), lengths, budget=plan.micro_batch_tokens):
        batch = collate([rows[i] for i in part], device)
        loss, part_weight = sft(batch)
        loss.backward()
        loss_sum += loss.detach()
        weight_sum += part_weight
        num_supervised += batch.num_supervised
        num_tokens += batch.num_tokens
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, 1.0 / weight_sum)
    norm = torch.nn.utils.get_total_norm(grads)
    mean_loss, grad_norm = (loss_sum / weight_sum).item(), norm.item()
    if not (_is_finite(mean_loss) and _is_finite(grad_norm)):
        raise DuitiError(
            f"step {step}: the loss is {mean_loss}, the gradient's norm {grad_norm}",
            why="the rows of this update: " + ", ".join(str(row.origin) for row in rows),
            fix="a lower --learning-rate is the usual cure; nothing of this step was kept",
        )
    if plan.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, plan.max_grad_norm, norm)
    rate = learning_rate_at(step, plan.rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return StepMetrics(
        step=step,
        epoch=round(epoch, 4),
        loss=mean_loss,
        num_tokens=num_tokens,
        supervised_tokens=num_supervised,
        lr=rate,
        grad_norm=grad_norm,
        tokens_per_s=num_tokens / (time.perf_counter() - started),
        peak_memory_bytes=peak_memory_bytes(device),
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that was in use: of the GPU, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _is_finite(value: float) -> bool:
    return value - value == 0.0
