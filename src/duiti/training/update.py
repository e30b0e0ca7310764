"""One update of the weights: made whole, or not at all. The only code that calls backward.

    metrics = train_step(sft, optimizer, rows, plan, step=1, epoch=0.1)
    metrics.row_losses                     # of each row, before the update: they are there anyway

The gradient of an update is the gradient of (weighted sum of the losses of its supervised tokens) /
(sum of their weights), over all its micro-batches: sums are accumulated, and divided once. So a
weight counts relative to the others of its update; without weights it is the mean over tokens.
Where the drift is held (`duiti.training.hold`), a KL divergence to the base is added to it.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from duiti.data.batch import collate, micro_batches
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.training.anomalies import bad_rows
from duiti.training.hold import Hold, add_drift
from duiti.training.optim import RatePlan, learning_rate_at
from duiti.training.out_of_memory import (
    is_out_of_memory,
    release_memory,
    smaller_budget,
    step_whole,
)
from duiti.training.random_state import seed_streams
from duiti.types import Example

TIMED = frozenset({"tokens_per_s", "peak_memory_bytes"})
"""Fields of the metrics that differ between two runs of the same command; no other one does."""


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
    skip_bad_steps: int = 0
    """Updates of the whole run that may be left out because their numbers are not finite."""

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
    skipped: bool = False
    """The update was left out: its loss or its gradient's norm is not finite. Parameters and
    moments are as before; the schedule has gone on."""
    anomaly: str | None = None
    """What was unusual about this update, in words."""
    rows: tuple[str, ...] = ()
    """Where its rows were read, if there was anything unusual."""
    drift_weight: float | None = None
    """What the KL divergence to the base weighed in this update; None: the drift is not held."""
    drift_kl: float | None = None
    """That divergence on the documents of this update, before it, in nats per token."""
    row_losses: tuple[float, ...] = ()
    """Of each row of the update, in its order: the mean over its supervised tokens, whatever their
    weights, in nats, before the update. NaN where a row has none."""


class BadNumbers(DuitiError):
    """An update whose loss or gradient is not finite, and which was not made."""

    def __init__(self, metrics: StepMetrics) -> None:
        self.metrics = metrics
        super().__init__(
            f"step {metrics.step}: {metrics.anomaly}",
            why=f"the rows of this update: {', '.join(metrics.rows)}",
            fix="a lower --learning-rate is the usual cure, --skip-bad-steps N leaves out up to N"
            " such updates; nothing of this step was kept",
        )


def train_step(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    plan: StepPlan,
    *,
    step: int,
    epoch: float,
    spent_s: float = 0.0,
    hold: Hold | None = None,
    drift_weight: float = 0.0,
) -> StepMetrics:
    """One update on `rows`, made whole or not at all.

    Where memory runs out the update is rolled back (parameters and optimizer are untouched until
    its very end; gradients are dropped, random streams seeded again) and made again from the same
    rows, in the same order, in micro-batches of half the size. Where rows go alone already it is
    tried once more as it is.

    Args:
        spent_s: time spent before it, for a plan with a budget.
        hold: what holds the drift.
        drift_weight: of the KL divergence in the loss; without a `hold` it has no meaning.

    Raises:
        BadNumbers: the loss or the gradient is not finite; the update is not made.
        DuitiError: memory does not suffice for the longest row alone; the update is not made.
    """
    started = time.perf_counter()
    device = optimizer.param_groups[0]["params"][0].device
    rate = learning_rate_at(step, plan.rate, spent_s=spent_s)
    budget, was_last_try, num_failures = plan.micro_batch_tokens, False, 0
    while True:
        seed_streams(device, seed=plan.seed, step=step)
        try:
            made = _update(
                sft, optimizer, rows, plan,
                budget=budget, rate=rate, pull=_Pull(hold, step, drift_weight) if hold else None,
            )  # fmt: skip
            break
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Here the error is gone, and with it the last reference to what was computed.
        num_failures += 1
        optimizer.zero_grad(set_to_none=True)
        release_memory(device)
        lengths = [len(row) for row in rows]
        if hold is not None:
            lengths += hold.lengths_of(seed=plan.seed, step=step)
        smaller = smaller_budget(budget, lengths)
        if was_last_try:
            raise _gave_up(step, rows, reason)
        was_last_try = smaller is None
        budget = smaller or budget
    metrics = StepMetrics(
        step=step,
        epoch=round(epoch, 4),
        loss=made.loss,
        num_tokens=made.num_tokens,
        supervised_tokens=made.num_supervised,
        lr=rate,
        grad_norm=made.grad_norm,
        tokens_per_s=made.num_tokens / (time.perf_counter() - started),
        peak_memory_bytes=peak_memory_bytes(device),
        micro_batch_tokens=budget,
        out_of_memory=num_failures + made.num_failures,
        drift_weight=None if hold is None else drift_weight,
        drift_kl=made.drift_kl,
        row_losses=made.row_losses,
    )
    if made.is_finite:
        return metrics
    raise _bad_numbers(sft, optimizer, rows, plan, metrics)


@dataclass(frozen=True, slots=True)
class _Pull:
    """What draws an update back to the base."""

    hold: Hold
    step: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What an update was; one that is not finite was not made."""

    loss: float
    grad_norm: float
    row_losses: tuple[float, ...]
    drift_kl: float | None
    num_tokens: int
    num_supervised: int
    num_failures: int
    """Times that memory ran out without a need to begin anew."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def _update(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    plan: StepPlan,
    *,
    budget: int,
    rate: float,
    pull: _Pull | None,
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
    parts = micro_batches(range(len(rows)), lengths, budget=budget)
    each: list[Tensor] = []
    for part in parts:
        batch = collate([rows[i] for i in part], device)
        loss, part_weight = sft(batch, each=each)
        loss.backward()
        loss_sum += loss.detach()
        weight_sum += part_weight
        num_supervised += batch.num_supervised
        num_tokens += batch.num_tokens
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1.0 / weight_sum)
    kl = loss_sum.new_zeros(())
    if pull is not None:
        kl = add_drift(sft, pull.hold, seed=plan.seed, step=pull.step, weight=pull.weight,
                       micro_batch_tokens=budget)  # fmt: skip
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # One wait for a GPU.
    numbers = torch.cat([torch.stack([loss_sum / weight_sum, norm, kl]), *each]).cpu().numpy()
    mean_loss, grad_norm, drift_kl = numbers[:3].tolist()
    made = _Made(
        loss=mean_loss,
        grad_norm=grad_norm,
        row_losses=_row_means(numbers[3:], rows, parts),
        drift_kl=None if pull is None else drift_kl,
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        num_failures=0,
    )
    if not made.is_finite:
        return made
    if plan.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, plan.max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return replace(made, num_failures=step_whole(optimizer))


def _row_means(
    losses: npt.NDArray[np.float32], rows: Sequence[Example], parts: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """Of the rows in their order; the losses are those of all positions, part by part."""
    order = [row for part in parts for row in part]
    counts = np.array([row.num_supervised for row in rows])
    owners = np.repeat(order, counts[order])
    sums = np.bincount(owners, weights=losses, minlength=len(rows))  # in float64
    means = np.divide(sums, counts, out=np.full(len(rows), np.nan), where=counts > 0)
    return tuple(means.tolist())


def _bad_numbers(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    rows: Sequence[Example],
    plan: StepPlan,
    metrics: StepMetrics,
) -> BadNumbers:
    """The error of an update that was not made. No gradient is left of it."""
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device

    def reseed() -> None:
        seed_streams(device, seed=plan.seed, step=metrics.step)

    alone = bad_rows(sft, parameters, rows, reseed=reseed)
    said = f"the loss is {metrics.loss}, the gradient's norm {metrics.grad_norm}"
    if metrics.drift_kl is not None and not math.isfinite(metrics.drift_kl):
        said += f", the divergence from the base {metrics.drift_kl}"
    if alone:  # where it is every row, it is rather the weights
        each = "each of its rows" if len(alone) == len(rows) > 1 else ", ".join(origins_of(alone))
        said += f"; bad even alone: {each}"
    return BadNumbers(replace(metrics, skipped=True, anomaly=said, rows=origins_of(rows)))


def origins_of(rows: Sequence[Example]) -> tuple[str, ...]:
    """`my.jsonl:17` of each row."""
    return tuple(str(row.origin) for row in rows)


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
