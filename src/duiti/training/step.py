"""The loop, as a generator: one optimizer update per item.

    for metrics, progress in train_steps(sft, optimizer, examples, plan):
        ...                          # log, evaluate, save: the caller decides
    train_steps(sft, optimizer, examples, plan, start=progress)          # goes on from there

The rows of an update follow from (seed, epoch), its random streams from (seed, step). So a run that
is stopped behind any update and goes on from `progress`, with parameters and moments as they were,
is bit for bit the run that was never stopped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from statistics import median

import torch

from duiti.data.batch import epoch_updates
from duiti.model.sft_model import SFTModel
from duiti.training.anomalies import anomaly, with_update
from duiti.training.hold import Hold, beginning, held_after, weight_of
from duiti.training.update import (
    TIMED,
    BadNumbers,
    StepMetrics,
    StepPlan,
    origins_of,
    peak_memory_bytes,
    train_step,
)
from duiti.types import Example, Progress

__all__ = [
    "TIMED",
    "BadNumbers",
    "StepMetrics",
    "StepPlan",
    "is_done",
    "peak_memory_bytes",
    "train_step",
    "train_steps",
]

NUM_TYPICAL = 32
"""Updates whose median time is the time of a typical one."""
_BEGINNING = Progress()


def is_done(progress: Progress, plan: StepPlan) -> bool:
    """Whether a run that stands there has made its last update: all of them are made, or the time
    of one more would not fit into the budget."""
    if progress.step >= plan.total_steps:
        return True
    budget_s = plan.rate.budget_s
    return budget_s is not None and progress.spent_s + progress.typical_s > budget_s


def train_steps(
    sft: SFTModel,
    optimizer: torch.optim.AdamW,
    examples: Sequence[Example],
    plan: StepPlan,
    *,
    start: Progress = _BEGINNING,
    hold: Hold | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[StepMetrics, Progress]]:
    """Train to the end of the plan, yielding after every update; `is_done` tells the last one.

    Where memory runs out, micro-batches are smaller from there on; updates stay what they are.

    Args:
        optimizer: as `make_optimizer` makes it; with the moments that belong to `start`.
        start: where to begin: as an earlier call has yielded it, with the parameters as they were.
        hold: what holds the drift from the base.
        clock: in seconds, never going back. It is compared with a budget, and otherwise only
            decides what `Progress` says about time.

    Raises:
        BadNumbers: the loss or the gradient is not finite, and `skip_bad_steps` are spent; that
            update is not made.
        DuitiError: memory does not suffice for a row alone; that update is not made.
    """
    progress = start
    if hold is not None and progress.held is None:
        progress = replace(progress, held=beginning())
    began_s = clock() - start.spent_s
    times_s = deque([start.typical_s] if start.typical_s else [], maxlen=NUM_TYPICAL)
    for indices in _updates_from(start.cursor, len(examples), plan):
        if is_done(progress, plan):
            return
        rows = [examples[i] for i in indices]
        cursor = progress.cursor + len(rows)
        spent_s = max(progress.spent_s, clock() - began_s)
        try:
            metrics = train_step(
                sft, optimizer, rows, plan,
                step=progress.step + 1, epoch=cursor / len(examples), spent_s=spent_s,
                hold=hold, drift_weight=_drift_weight(progress, hold),
            )  # fmt: skip
            unusual = anomaly(metrics.loss, metrics.grad_norm, progress.recent)
            if unusual:
                metrics = replace(metrics, anomaly=unusual, rows=origins_of(rows))
        except BadNumbers as bad:
            if progress.skipped_steps >= plan.skip_bad_steps:
                raise
            metrics = bad.metrics
        plan = replace(plan, micro_batch_tokens=metrics.micro_batch_tokens)
        now_s = max(spent_s, clock() - began_s)
        times_s.append(now_s - progress.spent_s)
        progress = replace(
            _after(metrics, progress, hold), cursor=cursor, spent_s=now_s, typical_s=median(times_s)
        )
        yield metrics, progress


def _updates_from(cursor: int, num_examples: int, plan: StepPlan) -> Iterator[list[int]]:
    """Indices of the rows of every update behind the cursor, epoch after epoch without end.

    A cursor inside an update (the batch size was another one until here) begins with the rest of
    that update, so that every row of the epoch is still used once."""
    first_epoch, done = divmod(cursor, num_examples)
    for epoch in count(first_epoch):
        updates = epoch_updates(num_examples, plan.batch_size, seed=plan.seed, epoch=epoch)
        whole, rest = divmod(done, plan.batch_size)
        left: Iterator[list[int]] = islice(updates, whole, None)
        if rest:
            left = chain([next(left)[rest:]], left)
        yield from left
        done = 0


def _drift_weight(progress: Progress, hold: Hold | None) -> float:
    if hold is None or progress.held is None:
        return 0.0
    return weight_of(progress.held, max_drift=hold.max_drift)


def _after(metrics: StepMetrics, before: Progress, hold: Hold | None) -> Progress:
    """The counters, one update later."""
    if metrics.skipped:
        return replace(before, step=metrics.step, skipped_steps=before.skipped_steps + 1)
    held = before.held
    if hold is not None and held is not None and metrics.drift_kl is not None:
        held = held_after(held, metrics.drift_kl, max_drift=hold.max_drift)
    return replace(
        before,
        step=metrics.step,
        num_tokens=before.num_tokens + metrics.num_tokens,
        supervised_tokens=before.supervised_tokens + metrics.supervised_tokens,
        recent=with_update(before.recent, metrics.loss, metrics.grad_norm),
        held=held,
    )
