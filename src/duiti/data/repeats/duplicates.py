"""Rows that say the same: repeated, nearly repeated, contradicting each other, or held out as well.

    found = find_duplicates(store)              # counts, some pairs of each kind, groups
    split(store, share=0.05, seed=0, groups=found.groups)
    leaks = find_leaks(train, val)              # which examples of train a row of val gives away
    train = train.select(np.flatnonzero(~leaks.mask))

A row is what stands at one file and line, however many examples it makes and however often its
weight repeats it. Two rows are

- *exact* duplicates if their whole conversations have the same digest,
- *contradicting* if all before the last answer is the same and the conversations are not,
- *near* duplicates if their token sets overlap by 0.8 or more: Jaccard index of 5-token shingles,
  those of template and system prompt left out (`duiti.data.repeats.minhash`).

Nothing is removed here. Reports name rows by file and line and never quote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duiti.data.repeats.minhash import Bools, Ints
from duiti.data.repeats.near import Texts, near_pairs
from duiti.data.storage.store import ExampleStore
from duiti.types import Json, Origin

MAX_EXAMPLES = 20
"""Pairs of rows that are named per kind."""

Pairs = tuple[tuple[Origin, Origin], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What of a data set is said more than once."""

    num_rows: int
    """Rows looked at."""
    exact_rows: int
    """Rows whose conversation another row has before them."""
    near_rows: int
    """Rows nearly the same as others, beyond the first of each group; exact ones not counted."""
    contradictions: int
    """Prompts with several different answers."""
    exact: Pairs
    """The first of them: (the row that comes first, the one that repeats it)."""
    near: Pairs
    """The first of them."""
    contradicting: Pairs
    """The first of them: (the first row with a prompt, one with another answer)."""
    groups: Ints
    """[E] of each example, the first example of its group: of those connected by the same row, the
    same conversation, the same prompt or near duplicates."""

    def as_dict(self) -> dict[str, Json]:
        """For a report, without groups."""
        return {
            "rows": self.num_rows,
            "exact_rows": self.exact_rows,
            "near_rows": self.near_rows,
            "contradictions": self.contradictions,
            "exact": _named(self.exact),
            "near": _named(self.near),
            "contradicting": _named(self.contradicting),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Rows of the training side that are on the validation side as well.

    A row is counted once, under the first kind that applies."""

    mask: Bools
    """[E] of each example of train, whether its row is one of them."""
    exact_rows: int
    """Rows of train whose whole conversation is in val."""
    prompt_rows: int
    """Rows of train whose prompt is in val, with another answer."""
    near_rows: int
    """Rows of train that nearly repeat a row of val."""
    exact: Pairs
    """The first of them: (row of train, row of val)."""
    prompt: Pairs
    """The first of them."""
    near: Pairs
    """The first of them."""

    @property
    def num_rows(self) -> int:
        """Rows of train to leave out."""
        return self.exact_rows + self.prompt_rows + self.near_rows

    def as_dict(self) -> dict[str, Json]:
        """For a report, without the mask."""
        return {
            "rows": self.num_rows,
            "exact_rows": self.exact_rows,
            "prompt_rows": self.prompt_rows,
            "near_rows": self.near_rows,
            "exact": _named(self.exact),
            "prompt": _named(self.prompt),
            "near": _named(self.near),
        }


def find_duplicates(store: ExampleStore) -> Duplicates:
    """Compare every row with every other one; what is found does not depend on their order."""
    rows = _read_rows([store])
    heads = np.sort(rows.first_same)
    repeats = np.flatnonzero(rows.first_same[rows.conversations] != np.arange(len(rows)))
    rivals = heads[rows.first_asked[rows.prompts[heads]] != heads]
    forest = _Forest(len(heads))
    near = np.empty((2, 0), dtype=np.int64)
    for a, b in near_pairs(rows.texts, is_open=forest.are_apart):
        forest.join(a, b)
        found = np.sort(rows.first_same[np.stack([a, b])], axis=0)
        near = _first(np.concatenate([near, found], axis=1))
    near_rows = len(heads) - forest.num_trees
    forest.join(rows.conversations, rows.conversations[rows.first_asked[rows.prompts]])
    trees, first = _identify(forest.parents[rows.conversations[rows.of_example]])
    return Duplicates(
        num_rows=len(rows),
        exact_rows=len(repeats),
        near_rows=near_rows,
        contradictions=int((np.bincount(rows.prompts[heads]) > 1).sum()),
        exact=rows.pairs(rows.first_same[rows.conversations[repeats]], repeats),
        near=rows.pairs(*near),
        contradicting=rows.pairs(rows.first_asked[rows.prompts[rivals]], rivals),
        groups=first[trees],
    )


def find_leaks(train: ExampleStore, val: ExampleStore) -> Leaks:
    """Compare every row of train with every row of val."""
    rows = _read_rows([train, val])
    is_val = rows.store_numbers == 1
    ours, theirs = np.flatnonzero(~is_val), np.flatnonzero(is_val)
    held_out = _first_with(rows.conversations, theirs, len(rows.first_same))
    asked = _first_with(rows.prompts, theirs, len(rows.first_asked))
    exact = held_out[rows.conversations[ours]]
    prompt = np.where(exact < 0, asked[rows.prompts[ours]], -1)
    seeks = np.zeros(len(held_out), dtype=np.bool_)
    seeks[rows.conversations[ours[(exact < 0) & (prompt < 0)]]] = True
    met = np.full(len(held_out), -1)
    for a, b in near_pairs(
        rows.texts, is_open=lambda a, b: met[a] < 0, seeks=seeks, offered=held_out >= 0
    ):
        met[a[::-1]] = held_out[b[::-1]]  # of several the first, as the last that is written stays
    near = met[rows.conversations[ours]]
    kinds = [np.flatnonzero(partner >= 0) for partner in (exact, prompt, near)]
    is_leak = np.zeros(len(rows), dtype=np.bool_)
    is_leak[np.concatenate(kinds)] = True
    return Leaks(
        mask=is_leak[rows.of_example[: len(train)]],
        exact_rows=len(kinds[0]),
        prompt_rows=len(kinds[1]),
        near_rows=len(kinds[2]),
        exact=rows.pairs(kinds[0], exact[kinds[0]]),
        prompt=rows.pairs(kinds[1], prompt[kinds[1]]),
        near=rows.pairs(kinds[2], near[kinds[2]]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """R rows of some stores, numbered by store, file and line; their C conversations and P prompts,
    numbered by digest."""

    of_example: Ints
    """[E] the row of each example, counted through all stores."""
    store_numbers: Ints
    """[R]."""
    files: Ints
    """[R] index into the names of the row's store."""
    lines: Ints
    """[R]."""
    conversations: Ints
    """[R]."""
    prompts: Ints
    """[R]."""
    first_same: Ints
    """[C] the first row with a conversation."""
    first_asked: Ints
    """[P] the first row with a prompt."""
    texts: Texts
    """[C] the longest example of each conversation."""

    def __len__(self) -> int:
        return len(self.lines)

    def origin(self, row: int) -> Origin:
        store = self.texts.stores[self.store_numbers[row]]
        return Origin(store.files[self.files[row]], int(self.lines[row]))

    def pairs(self, one: Ints, other: Ints) -> Pairs:
        """The first of these pairs, as origins."""
        listed = zip(one[:MAX_EXAMPLES].tolist(), other[:MAX_EXAMPLES].tolist(), strict=True)
        return tuple((self.origin(a), self.origin(b)) for a, b in listed)


def _read_rows(stores: Sequence[ExampleStore]) -> _Rows:
    origins = [store.origins() for store in stores]
    files = np.concatenate([column for column, _ in origins]).astype(np.int64)
    lines = np.concatenate([column for _, column in origins])
    lengths = np.concatenate([store.lengths for store in stores]).astype(np.int64)
    numbers = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    of_example, first = _identify(numbers, files, lines)
    digests = np.concatenate([store.digests() for store in stores])[first]
    conversations, first_same = _identify(digests[:, 0], digests[:, 1])
    prompts, first_asked = _identify(digests[:, 2], digests[:, 3])
    _, longest = _identify(conversations[of_example], ties=-lengths)
    return _Rows(
        of_example=of_example,
        store_numbers=numbers[first],
        files=files[first],
        lines=lines[first],
        conversations=conversations,
        prompts=prompts,
        first_same=first_same,
        first_asked=first_asked,
        texts=Texts(stores=stores, places=longest, lengths=lengths[longest]),
    )


class _Forest:
    """Which of N things are connected; every parent is the smallest number of its tree."""

    def __init__(self, size: int) -> None:
        self.parents: Ints = np.arange(size)

    @property
    def num_trees(self) -> int:
        return int((self.parents == np.arange(len(self.parents))).sum())

    def are_apart(self, a: Ints, b: Ints) -> Bools:
        apart: Bools = self.parents[a] != self.parents[b]
        return apart

    def join(self, a: Ints, b: Ints) -> None:
        """Connect `a[i]` and `b[i]`: hang the larger root under the smaller one until all is done
        (Shiloach and Vishkin 1982)."""
        while True:
            ends = np.sort(self.parents[np.stack([a, b])], axis=0)
            lower, upper = ends[:, ends[0] < ends[1]]
            if not len(lower):
                return
            np.minimum.at(self.parents, upper, lower)
            while (self.parents != self.parents[self.parents]).any():
                self.parents = self.parents[self.parents]


def _identify(*keys: npt.NDArray[np.generic], ties: Ints | None = None) -> tuple[Ints, Ints]:
    """Number the different keys in ascending order: (the number of each item, the first item with
    each number). `ties` decides which is first; without it, the place."""
    order = np.lexsort(((ties,) if ties is not None else ()) + keys[::-1])
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    return numbers, order[is_new]


def _first_with(numbers: Ints, rows: Ints, count: int) -> Ints:
    """Of each number, the first of these ascending rows that has it; -1: none."""
    found = np.full(count, -1)
    found[numbers[rows[::-1]]] = rows[::-1]
    return found


def _first(pairs: Ints) -> Ints:
    """[2, n] the first pairs of rows, by the later row."""
    return pairs[:, np.lexsort(pairs)][:, :MAX_EXAMPLES]


def _named(pairs: Pairs) -> Json:
    return [[str(one), str(other)] for one, other in pairs]
