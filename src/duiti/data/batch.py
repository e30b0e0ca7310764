"""Examples to batches: the order of an epoch, micro-batches by token budget, no padding.

    lengths = lengths_of(examples)
    for rows in epoch_updates(len(examples), batch_size, seed=0, epoch=0):  # an update
        for part in micro_batches(rows, lengths, budget=4096):              # a forward pass
            batch = collate([examples[i] for i in part])

The order is a pure function of (number of examples, seed, epoch). How an update is cut into
micro-batches changes neither its rows nor its gradient. Nothing here reads an example before its
turn, so examples may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from duiti.types import IGNORE_INDEX, Batch, Example

WINDOW_ROWS = 4096
"""Rows that are packed with one another. It bounds the work of placing a row, so that the time for
a validation set grows with its rows and not with their square."""


@runtime_checkable
class HasLengths(Protocol):
    """Examples that know their lengths without being read."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """[E] tokens of each example."""


def lengths_of(examples: Sequence[Example]) -> npt.NDArray[np.int32]:
    """[E] tokens of each example, without reading them where the sequence knows."""
    if isinstance(examples, HasLengths):
        return examples.lengths
    return np.fromiter((len(example) for example in examples), np.int32, len(examples))


def epoch_updates(
    num_examples: int, batch_size: int, *, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Indices of each update of an epoch: every example once, the last update may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    for start in range(0, num_examples, batch_size):
        yield order[start : start + batch_size].tolist()


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int] | npt.NDArray[np.int32], *, budget: int
) -> list[list[int]]:
    """Cut an update into parts of at most `budget` tokens (a longer row goes alone).

    First-fit decreasing: never more than about 11/9 of the fewest parts possible (Johnson 1973).
    More than WINDOW_ROWS rows, as evaluation has, are packed window by window in the order given.

    Args:
        rows: indices of the update's examples.
        lengths: tokens of all examples, by index.
        budget: tokens of a part.
    """
    parts: list[list[int]] = []
    for start in range(0, len(rows), WINDOW_ROWS):
        parts += _first_fit_decreasing(rows[start : start + WINDOW_ROWS], lengths, budget)
    return parts


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Lay examples end to end. Here, and nowhere else, labels and weights are shifted: position t
    predicts the label at t+1 of the same document, and counts with the weight at t+1."""
    rows = list(examples)  # read once, wherever they are
    ids = np.concatenate([row.input_ids for row in rows])
    borders = np.cumsum([0, *(len(row) for row in rows)])
    positions = np.concatenate([np.arange(len(row)) for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    labels[borders[:-1]] = IGNORE_INDEX  # the first token of a document follows nothing
    trained = np.flatnonzero(labels != IGNORE_INDEX)

    weights = _weights(rows, trained)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return _to(torch.from_numpy(values.astype(np.int64)), device)

    return Batch(
        input_ids=tensor(ids),
        position_ids=tensor(positions),
        cu_seqlens=tuple(borders.tolist()),
        supervised=tensor(trained - 1),
        targets=tensor(labels[trained]),
        documents=tuple(row.input_ids for row in rows),
        weights=None if weights is None else _to(torch.from_numpy(weights), device),
        weight_sum=len(trained) if weights is None else float(weights.sum(dtype=np.float64)),
    )


def _to(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """On the device; a GPU is not waited for, which only pinned memory allows."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _weights(
    rows: Sequence[Example], trained: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    """Of the tokens at the places `trained` of all rows end to end; None where no row has any."""
    if all(row.weights is None for row in rows):
        return None
    flat = np.concatenate(
        [np.ones(len(row), np.float32) if row.weights is None else row.weights for row in rows]
    )
    return flat[trained].astype(np.float32, copy=False)


def _first_fit_decreasing(
    rows: Sequence[int], lengths: Sequence[int] | npt.NDArray[np.int32], budget: int
) -> list[list[int]]:
    sizes = np.fromiter((lengths[row] for row in rows), np.int64, len(rows))
    room = np.full(len(rows), budget, dtype=np.int64)  # of as many parts as there may be
    parts: list[list[int]] = []
    for place in np.argsort(-sizes, kind="stable").tolist():
        needed = min(sizes[place], budget)  # the next part, still untouched, has room for any row
        chosen = int(np.argmax(room[: len(parts) + 1] >= needed))
        room[chosen] -= sizes[place]
        if chosen == len(parts):
            parts.append([])
        parts[chosen].append(rows[place])
    return parts
