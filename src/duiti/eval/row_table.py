"""Rows as columns: where each stands, what its loss was whenever it was measured, and which rows
have the same prompt.

    table = table_of(store, losses_ME)
    table.first, table.last, table.lowest, table.origin(3)

A row is what stands at one file and line, however many examples it makes and however often its
weight repeats it: its loss is the mean over the supervised tokens of all of them.

Legend: M measurements in their order, E examples, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duiti.data.storage.store import ExampleStore
from duiti.types import Origin

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTable:
    """R rows, in the order in which their first examples stand."""

    names: tuple[str, ...]
    """Of files."""
    files: npt.NDArray[np.int32]
    lines: Ints
    lengths: Ints
    """[R] supervised tokens."""
    losses: Floats
    """[M, R] mean over the supervised tokens of all its examples; NaN: not known."""
    prompts: Ints
    """[R] number of what stands before the last answer."""
    conversations: Ints
    """[R] number of all of it."""

    first: Floats
    """[R] the first loss that is known; NaN: none."""
    last: Floats
    lowest: Floats
    """[R] the lowest one before the last; NaN: none."""
    median: float
    """Of the last ones."""

    def origin(self, place: int) -> Origin:
        return Origin(self.names[self.files[place]], int(self.lines[place]))

    def rivals(self) -> Ints:
        """[R] of rows that are not below the median row at last: the first other such row with the
        same prompt and another answer; -1: there is none, or it is below."""
        up = np.flatnonzero(self.last >= self.median)  # false where it is not known
        first = _first_with(self.prompts, up)
        is_other = self.conversations[up] != self.conversations[first[self.prompts[up]]]
        second = _first_with(self.prompts, up[is_other])
        found = np.full(len(self.prompts), -1)
        found[up] = np.where(is_other, first[self.prompts[up]], second[self.prompts[up]])
        return found


def table_of(store: ExampleStore, losses: Floats) -> RowTable:
    """The rows of a store.

    Args:
        losses: [M, E] mean loss over the supervised tokens of each example; NaN: not known.
    """
    files, lines = store.origins()
    places = np.stack([files.astype(np.int64), lines], axis=1)
    _, first_of, owner = np.unique(places, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first_of)  # as they stand, not as files are numbered
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    owner, first_of = rank[owner.reshape(-1)], first_of[order]
    sizes = store.num_supervised.astype(np.float64)
    means = np.array([_means(own, sizes, owner, len(first_of)) for own in losses])
    means = means.reshape(len(losses), len(first_of))
    is_known = np.isfinite(means)
    first, last, lowest = (np.full(len(first_of), np.nan) for _ in range(3))
    for own, known in zip(means, is_known, strict=True):
        first = np.where(np.isnan(first) & known, own, first)
        lowest = np.where(known, np.fmin(lowest, last), lowest)
        last = np.where(known, own, last)
    digests = store.digests()[first_of]
    parts = np.bincount(owner, minlength=len(first_of))
    return RowTable(
        names=store.files,
        files=files[first_of],
        lines=lines[first_of],
        lengths=np.rint(np.bincount(owner, weights=sizes) / parts).astype(np.int64),
        losses=means,
        prompts=_numbered(digests[:, 2:4]),
        conversations=_numbered(digests[:, 0:2]),
        first=first,
        last=last,
        lowest=lowest,
        median=float(np.nanmedian(last)) if np.isfinite(last).any() else math.nan,
    )


def _means(losses: Floats, sizes: Floats, owner: Ints, count: int) -> Floats:
    """[R] over the tokens of the examples of each row that are known."""
    known = np.isfinite(losses) & (sizes > 0)
    sums = np.bincount(owner[known], weights=(losses * sizes)[known], minlength=count)
    tokens = np.bincount(owner[known], weights=sizes[known], minlength=count)
    found: Floats = np.divide(sums, tokens, out=np.full(count, np.nan), where=tokens > 0)
    return found


def _numbered(digests: npt.NDArray[np.uint64]) -> Ints:
    """[R] equal numbers for equal digests."""
    found: Ints = np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)
    return found


def _first_with(numbers: Ints, rows: Ints) -> Ints:
    """Of each number, the first of these ascending rows that has it; -1: none."""
    found = np.full(len(numbers), -1)
    found[numbers[rows[::-1]]] = rows[::-1]
    return found
