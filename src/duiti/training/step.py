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
from dataclasses import dataclass, replace

import torch

from duiti.data.batch import collate, epoch_updates, micro_batches
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.training.optim import RatePlan, learning_rate_at
from duiti.training.out_of_memory import (
    is_out_of_memory,
    release_memory,
    smaller_budget,
    step_whole,
)
from duiti.training.random_state import RandomState
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
    micro_batch_tokens: int
    """Tokens that went through the model at once, at most (a longer row went alone)."""
    out_of_memory: int
    """Times that memory ran out in this update; it was made in spite of it."""


def train_steps(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    examples: Sequence[Example],
    plan: StepPlan,
) -> Iterator[tuple[StepMetrics, Progress]]:
    """Train to the end of the plan, yielding after every update.

    Where memory runs out, micro-batches are smaller from there on; updates stay what they are.

    Args:
        optimizer: as `make_optimizer` makes it.

    Raises:
        DuitiError: the loss or the gradient is not finite, or memory does not suffice for a row
            alone; that update is not made.
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
            plan = replace(plan, micro_batch_tokens=metrics.micro_batch_tokens)
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
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    plan: StepPlan,
    *,
    step: int,
    epoch: float,
) -> StepMetrics:
    """One update on `rows`, made whole or not at all.

    Where memory runs out the update is rolled back (parameters and optimizer are untouched until
    its very end; gradients are dropped, random streams put back) and made again from the same rows,
    in the same order, in micro-batches of half the size. Where rows go alone already it is tried
    once more as it is.

    Raises:
        DuitiError: the loss or the gradient is not finite, or memory does not suffice for the
            longest row alone; the update is not made.
    """
    started = time.perf_counter()
    device = optimizer.param_groups[0]["params"][0].device
    random = RandomState.now(device)
    budget, was_last_try, num_failures = plan.micro_batch_tokens, False, 0
    while True:
        try:
            made = _update(sft, optimizer, rows, plan, budget=budget, step=step)
            break
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Here the error is gone, and with it the last reference to what was computed.
        num_failures += 1
        optimizer.zero_grad(set_to_none=True)
        release_memory(device)
        random.restore()
        smaller = smaller_budget(budget, [len(row) for row in rows])
        if was_last_try:
            raise _gave_up(step, rows, reason)
        was_last_try = smaller is None
        budget = smaller or budget
    return StepMetrics(
        step=step,
        epoch=round(epoch, 4),
        loss=made.loss,
        num_tokens=made.num_tokens,
        supervised_tokens=made.num_supervised,
        lr=made.lr,
        grad_norm=made.grad_norm,
        tokens_per_s=made.num_tokens / (time.perf_counter() - started),
        peak_memory_bytes=peak_memory_bytes(device),
        micro_batch_tokens=budget,
        out_of_memory=num_failures + made.num_failures,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What an update was."""

    loss: float
    grad_norm: float
    num_tokens: int
    num_supervised: int
    lr: float
    num_failures: int
    """Times that memory ran out without a need to begin anew."""


def _update(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    plan: StepPlan,
    *,
    budget: int,
    step: int,
) -> _Made:
    """Accumulate over micro-batches, divide once, clip, step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    if not (sft.training and sft.model.training):  # going through all modules takes a millisecond
        sft.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    num_supervised = num_tokens = 0
    weight_sum: int | float = 0
    lengths = [len(row) for row in rows]
    for part in micro_batches(range(len(rows)), lengths, budget=budget):
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
    mean_loss, grad_norm = torch.stack([loss_sum / weight_sum, norm]).tolist()  # one wait for a GPU
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
    num_failures = step_whole(optimizer)
    return _Made(
        loss=mean_loss,
        grad_norm=grad_norm,
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        lr=rate,
        num_failures=num_failures,
    )


def _gave_up(step: int, rows: Sequence[Example], reason: str) -> DuitiError:
    longest = max(rows, key=len)
    return DuitiError(
        f"step {step}: out of memory, even with one row at a time",
        why=f"the longest row of this update, {longest.origin}, has {len(longest):,} tokens"
        f" ({reason})",
        fix=f"--activation-checkpointing, --max-length below {len(longest)}, a smaller model, or"
        " --method lora where more is trained; nothing of this step was kept",
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that was in use: of the GPU, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _is_finite(value: float) -> bool:
    return value - value == 0.0
