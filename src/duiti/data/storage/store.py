"""A sequence of examples over blocks: a million of them cost a few arrays, tokens stay on disk.

    store = ExampleStore([open_block(path)], files=["my.jsonl"])
    store[0], store[-1], store[10:20], store.select(order)      # an Example, or a view
    store.lengths, store.num_supervised, store.origins()        # arrays, without reading tokens

An Example is built when it is asked for and none is kept. What a row says, and what of it is
trained, was decided before; keeping blocks between runs is `duiti.data.storage.cache`'s work.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import groupby, pairwise
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from duiti.data.storage.block import (
    BadBlock,
    Block,
    Int32s,
    Int64s,
    UInt64s,
    check_block,
    concat,
    open_block,
    release,
    write_block,
)
from duiti.types import IGNORE_INDEX, Example, Origin, Weights

__all__ = [
    "BadBlock",
    "Block",
    "ExampleStore",
    "check_block",
    "concat",
    "open_block",
    "release",
    "write_block",
]

VIEW_BLOCK_EXAMPLES = 2**14
VIEW_BLOCK_TOKENS = 2**22
"""What `blocks()` of a view gathers at a time, at most (a longer example goes alone)."""

RELEASE_EXAMPLES = 256
"""Examples after which the memory that they were read through is given back: the kernel maps up to
2 MiB around a place that is read, and keeps it mapped while memory is free."""

_Column = TypeVar("_Column", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """A block and where in it each example begins."""

    block: Block
    tokens: Int64s
    """[E+1] first token of each example, and the end."""
    spans: Int64s
    """[E+1] first span of each example, and the end."""


class ExampleStore(Sequence[Example]):
    """Examples of some blocks in order, or (as a view) some of them in any order."""

    def __init__(self, blocks: Iterable[Block] = (), files: Iterable[str] = ()) -> None:
        """Blocks are taken at their word: `check_block` is for what comes from elsewhere."""
        self.files: tuple[str, ...] = tuple(files)
        """Names that `Block.files` counts through."""
        self._blocks = [_index(block) for block in blocks if len(block)]
        self._starts = _starts([len(each.block) for each in self._blocks]).tolist()[:-1]
        self._chosen: Int64s | None = None
        self._touched: list[int] = []
        self.lengths: Int32s = self._column(lambda each: each.block.lengths, np.empty(0, np.int32))
        """[E] int32, tokens of each example."""
        self.num_supervised: Int32s = self._column(_num_supervised, np.empty(0, np.int32))
        """[E] int32, trained tokens of each example."""
        for each in self._blocks:
            if int(each.block.files.max()) >= len(self.files):
                raise BadBlock("a block counts more files than the store has names")
            release(each.block)

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> ExampleStore:
        """A store in memory. Adjacent examples of the same origin are taken for those of a row.

        Raises:
            BadBlock: a label that is neither its token nor -100, or the first of its example.
        """
        listed = list(examples)
        names = dict.fromkeys(example.origin.file for example in listed)
        files = {name: index for index, name in enumerate(names)}
        spans = [_spans(example) for example in listed]
        flat = [span for own in spans for span in own]
        digests: list[list[int]] = []
        parts: list[int] = []
        for _, group in groupby(zip(listed, spans, strict=True), lambda pair: pair[0].origin):
            row = list(group)
            digests += [_digest(*row[-1])] * len(row)
            parts += range(len(row))
        block = Block(
            input_ids=np.concatenate([np.empty(0, np.int32), *(e.input_ids for e in listed)]),
            lengths=np.array([len(example) for example in listed], np.int32),
            span_counts=np.array([len(own) for own in spans], np.int32),
            spans=np.array([span[:2] for span in flat], np.int32).reshape(-1, 2),
            weights=np.array([weight for _, _, weight in flat], np.float32),
            files=np.array([files[example.origin.file] for example in listed], np.int32),
            lines=np.array([example.origin.line for example in listed], np.int64),
            parts=np.array(parts, np.int32),
            digests=np.array(digests, np.uint64).reshape(-1, 4),
        )
        check_block(block)
        return cls([block], files)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleStore: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleStore:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        place = operator.index(index)
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        if self._chosen is not None:
            place = int(self._chosen[place])
        number = bisect_right(self._starts, place) - 1
        self._touch(number)
        return self._example(self._blocks[number], place - self._starts[number])

    def _example(self, each: _Indexed, place: int) -> Example:
        block = each.block
        begin, end = each.tokens[place : place + 2].tolist()
        input_ids = block.input_ids[begin:end]
        labels = np.full(end - begin, IGNORE_INDEX, np.int32)
        first, behind = each.spans[place : place + 2].tolist()
        spans, weighed = block.spans[first:behind].tolist(), block.weights[first:behind].tolist()
        for start, stop in spans:
            labels[start:stop] = input_ids[start:stop]
        weights: Weights | None = None
        if any(weight != 1 for weight in weighed):
            weights = np.zeros(end - begin, np.float32)
            for (start, stop), weight in zip(spans, weighed, strict=True):
                weights[start:stop] = weight
        origin = Origin(self.files[block.files[place]], int(block.lines[place]))
        return Example(input_ids=input_ids, labels=labels, origin=origin, weights=weights)

    def select(self, indices: npt.ArrayLike) -> ExampleStore:
        """A view of the examples at these indices, in their order; one may come twice.

        Raises:
            IndexError: an index that is not in the store, or no index at all (a mask).
        """
        found = np.asarray(indices)
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise IndexError("a selection is a list of whole numbers")
        places = found.astype(np.int64)
        places[places < 0] += len(self)
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"a selection leaves the {len(self)} examples")
        view = ExampleStore.__new__(ExampleStore)
        view.files, view._blocks, view._starts = self.files, self._blocks, self._starts
        view._touched = []
        view._chosen = places if self._chosen is None else self._chosen[places]
        view.lengths, view.num_supervised = self.lengths[places], self.num_supervised[places]
        return view

    def joined(self, other: ExampleStore) -> ExampleStore:
        """These examples and those behind them, as a view of both."""
        shifted = [
            replace(each.block, files=each.block.files + len(self.files)) for each in other._blocks
        ]
        behind = sum(len(each.block) for each in self._blocks)
        both = ExampleStore(
            [*(each.block for each in self._blocks), *shifted], (*self.files, *other.files)
        )
        return both.select(np.concatenate([self._places(), behind + other._places()]))

    def _places(self) -> Int64s:
        """Of each example among those of all blocks."""
        return np.arange(len(self)) if self._chosen is None else self._chosen

    def blocks(self) -> Iterator[Block]:
        """All examples as blocks, in order; memory of one is given back when the next is asked for.

        Those of a view are gathered, some thousand examples at a time."""
        if self._chosen is None:
            for each in self._blocks:
                yield each.block
                release(each.block)
            return
        sums = np.cumsum(self.lengths, dtype=np.int64)
        begin = 0
        while begin < len(self):
            budget = sums[begin] - self.lengths[begin] + VIEW_BLOCK_TOKENS
            end = max(int(np.searchsorted(sums, budget, side="right")), begin + 1)
            end = min(end, begin + VIEW_BLOCK_EXAMPLES)
            yield self._gather(self._chosen[begin:end])
            begin = end

    def _gather(self, places: Int64s) -> Block:
        """A block of these examples: by block, then put in order as a whole."""
        owners = np.searchsorted(self._starts, places, side="right") - 1
        sources, parts = [], []
        for number in np.unique(owners):
            own = np.flatnonzero(owners == number)
            sources.append(own)
            parts.append(_take(self._blocks[number], places[own] - self._starts[number]))
            release(self._blocks[number].block)
        order = np.argsort(np.concatenate(sources))
        return _take(_index(concat(parts)), order)

    def origins(self) -> tuple[Int32s, Int64s]:
        """(index into `files`, line) of each example, as two arrays."""
        files = self._column(lambda each: each.block.files, np.empty(0, np.int32))
        return files, self._column(lambda each: each.block.lines, np.empty(0, np.int64))

    def digests(self) -> UInt64s:
        """[E, 4] uint64 of each example, as `Block.digests`."""
        return self._column(lambda each: each.block.digests, np.empty((0, 4), np.uint64))

    def parts(self) -> Int32s:
        """Which example of its row each is, from 0."""
        return self._column(lambda each: each.block.parts, np.empty(0, np.int32))

    @cached_property
    def max_id(self) -> int:
        """The largest token id; -1 where there is none."""
        return max((int(block.input_ids.max()) for block in self.blocks()), default=-1)

    def _touch(self, number: int) -> None:
        self._touched.append(number)
        if len(self._touched) == RELEASE_EXAMPLES:
            for touched in set(self._touched):
                release(self._blocks[touched].block)
            self._touched.clear()

    def _column(
        self, column: Callable[[_Indexed], npt.NDArray[_Column]], empty: npt.NDArray[_Column]
    ) -> npt.NDArray[_Column]:
        whole = np.concatenate([empty, *(column(each) for each in self._blocks)])
        return whole if self._chosen is None else whole[self._chosen]


def _starts(counts: npt.ArrayLike) -> Int64s:
    """[0, first, first + second, …, sum]"""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _index(block: Block) -> _Indexed:
    return _Indexed(block, _starts(block.lengths), _starts(block.span_counts))


def _num_supervised(each: _Indexed) -> Int32s:
    trained = _starts(each.block.spans[:, 1] - each.block.spans[:, 0])[each.spans]
    return np.diff(trained).astype(np.int32)


def _take(each: _Indexed, places: Int64s) -> Block:
    """These examples of a block, as a block."""
    block = each.block
    lengths, span_counts = block.lengths[places], block.span_counts[places]
    spans = _runs(each.spans[places], span_counts)
    return Block(
        input_ids=block.input_ids[_runs(each.tokens[places], lengths)],
        lengths=lengths,
        span_counts=span_counts,
        spans=block.spans[spans],
        weights=block.weights[spans],
        files=block.files[places],
        lines=block.lines[places],
        parts=block.parts[places],
        digests=block.digests[places],
    )


def _runs(begins: Int64s, counts: Int32s) -> Int64s:
    """`begin, begin + 1, …` of each run, run after run."""
    ends = _starts(counts)
    return np.arange(ends[-1]) + np.repeat(begins - ends[:-1], counts)


def _spans(example: Example) -> list[tuple[int, int, float]]:
    """(start, end, weight) of each run of trained tokens that weigh the same."""
    trained = example.labels != IGNORE_INDEX
    if (example.labels[trained] != example.input_ids[trained]).any():
        raise BadBlock(f"{example.origin}: a label is neither its token nor {IGNORE_INDEX}")
    weights = np.ones(len(example), np.float32) if example.weights is None else example.weights
    if not (weights[trained] > 0).all():
        raise BadBlock(f"{example.origin}: a trained token's weight is not above 0")
    own = np.where(trained, weights, 0)
    borders = np.flatnonzero(own[1:] != own[:-1]) + 1
    runs = pairwise([0, *borders.tolist(), len(own)])
    return [(start, end, float(own[start])) for start, end in runs if start < end and own[start]]


def _digest(example: Example, spans: list[tuple[int, int, float]]) -> list[int]:
    """Of an example whose conversation is not known, by its tokens."""
    whole = example.input_ids
    before = whole[: spans[-1][0]] if spans else whole
    hashes = (blake2b(ids.tobytes(), digest_size=16).digest() for ids in (whole, before))
    return [int(part) for part in np.frombuffer(b"".join(hashes), "<u8")]
