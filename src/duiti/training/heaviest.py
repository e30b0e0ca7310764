"""The micro-batches of a run that will need the most memory, found from lengths alone.

heavy = heaviest(store.lengths, store.num_supervised, plan)
heavy[0].rows, heavy[0].is_first
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from duiti.data.batch import epoch_updates, micro_batches
from duiti.training.step import StepPlan

NUM_UPDATES = 64
"""Updates that are cut into micro-batches here: those with the most tokens, and with the longest
rows. A micro-batch is as full as its budget allows in every one of them."""
BESIDE_TOKENS = 0.25
"""What trained tokens (the loss) and squares of lengths (attention) count beside tokens."""


@dataclass(frozen=True, slots=True)
class HeavyPart:
    """A micro-batch."""

    rows: tuple[int, ...]
    """Its examples, by index."""
    is_first: bool
    """Whether it begins its update. To any other, gradients have been left by those before it."""


def heaviest(
    lengths: npt.NDArray[np.int32], num_supervised: npt.NDArray[np.int32], plan: StepPlan
) -> list[HeavyPart]:
    """Two micro-batches of the run, or one where it has no more: the heaviest of those that begin
    an update, and the heaviest of the others (where there are none, the second one of the first
    kind)."""
    parts = [
        HeavyPart(tuple(part), is_first=not place)
        for rows in _heavy_updates(lengths, plan)
        for place, part in enumerate(micro_batches(rows, lengths, budget=plan.micro_batch_tokens))
    ]
    weight = _weights(parts, lengths, num_supervised)
    order = sorted(range(len(parts)), key=lambda index: -weight[index])
    firsts = [parts[index] for index in order if parts[index].is_first]
    others = [parts[index] for index in order if not parts[index].is_first]
    return [firsts[0], *(others or firsts[1:])[:1]]


def _heavy_updates(lengths: npt.NDArray[np.int32], plan: StepPlan) -> Iterator[list[int]]:
    """Those with the most tokens, and those with the longest rows, without listing all."""
    for weigh in (np.sum, np.max):
        yield from heapq.nlargest(
            NUM_UPDATES // 2, _updates(len(lengths), plan), key=lambda rows: weigh(lengths[rows])
        )


def _updates(num_examples: int, plan: StepPlan) -> Iterator[list[int]]:
    """Of the whole run."""
    every = (
        rows
        for epoch in count()
        for rows in epoch_updates(num_examples, plan.batch_size, seed=plan.seed, epoch=epoch)
    )
    return islice(every, plan.total_steps)


def _weights(
    parts: list[HeavyPart],
    lengths: npt.NDArray[np.int32],
    num_supervised: npt.NDArray[np.int32],
) -> npt.NDArray[np.float64]:
    """[parts] what each is likely to need, in no unit."""
    rows = [list(part.rows) for part in parts]
    tokens = np.array([lengths[own].sum() for own in rows], np.float64)
    trained = np.array([num_supervised[own].sum() for own in rows], np.float64)
    squares = np.array([np.square(lengths[own].astype(np.float64)).sum() for own in rows])
    weight: npt.NDArray[np.float64] = tokens / tokens.max()
    for beside in (trained, squares):
        weight += BESIDE_TOKENS * beside / max(beside.max(), 1.0)
    return weight
