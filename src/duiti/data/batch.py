"""Examples to batches: the order of an epoch, micro-batches by token budget, no padding.

    for rows in epoch_updates(len(examples), batch_size, seed=0, epoch=0):  # an update
        for part in micro_batches(rows, lengths, budget=4096):              # a forward pass
            batch = collate([examples[i] for i in part])

The order is a pure function of (number of examples, seed, epoch). How an update is cut into
micro-batches changes neither its rows nor its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from duiti.types import IGNORE_INDEX, Batch, Example


def epoch_updates(
    num_examples: int, batch_size: int, *, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Indices of each update of an epoch: every example once, the last update may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    for start in range(0, num_examples, batch_size):
        yield order[start : start + batch_size].tolist()


def micro_batches(rows: Sequence[int], lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Cut an update into parts of at most `budget` tokens (a longer row goes alone).

    First-fit decreasing: never more than about 11/9 of the fewest parts possible (Johnson 1973).
    """
    parts: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda r: -lengths[r]):
        place = next((p for p, free in enumerate(room) if lengths[row] <= free), None)
        if place is None:
            parts.append([row])
            room.append(budget - lengths[row])
        else:
            parts[place].append(row)
            room[place] -= lengths[row]
    return parts


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Lay examples end to end. Here, and nowhere else, labels are shifted: position t predicts the
    label at t+1 of the same document."""
    ids = np.concatenate([example.input_ids for example in examples])
    borders = np.cumsum([0, *(len(example) for example in examples)])
    positions = np.concatenate([np.arange(len(example)) for example in examples])
    labels = np.concatenate([example.labels for example in examples])
    labels[borders[:-1]] = IGNORE_INDEX  # the first token of a document follows nothing
    trained = np.flatnonzero(labels != IGNORE_INDEX)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)

    return Batch(
        input_ids=tensor(ids),
        position_ids=tensor(positions),
        cu_seqlens=tuple(borders.tolist()),
        supervised=tensor(trained - 1),
        targets=tensor(labels[trained]),
    )
