"""Pairs of near duplicates among many texts on disk, found in one pass and looked up in few more.

    for a, b in near_pairs(texts, is_open=lambda a, b: parents[a] != parents[b]):
        …                                # arrays of text numbers; the caller notes what it needs

Only signatures (64 bytes per text) are kept in memory. Candidates are read again, some million
tokens at a time, and compared exactly. What a pair means, and which pairs need no second look, is
the caller's to say; how texts are compared is `duiti.data.repeats.minhash`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from duiti.data.repeats.minhash import (
    MIN_SHINGLES,
    NUM_BANDS,
    NUM_HASHES,
    SHINGLE_LENGTH,
    THRESHOLD,
    Boilerplate,
    Bools,
    Ints,
    Shingles,
    Signatures,
    candidates,
    chunks,
    find_boilerplate,
    jaccard,
    shingle,
    sign,
)
from duiti.data.storage.store import ExampleStore

MAX_SAMPLE_TEXTS = 1000
"""Texts in which boilerplate is looked for; fewer where they are long, but 50."""

_MIN_SAMPLE_TEXTS = 50
_READ_TOKENS = 1 << 18  # at once: their hashes stay in the processor's cache, more or less
_HELD_TOKENS = 1 << 22  # whose hashes are held for an exact comparison, 8 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """N texts, each an example of a store. Their order decides where all else is equal, so it must
    follow from what they say and not from where they stand."""

    stores: Sequence[ExampleStore]
    places: Ints
    """[N] the example of each, counted through all stores."""
    lengths: Ints
    """[N] tokens of each."""

    def read(self, ids: Ints) -> Iterator[tuple[Ints, Shingles]]:
        """Shingles of these texts, some at a time, in the order in which they lie on disk."""
        ids = ids[np.argsort(self.places[ids], kind="stable")]
        begin = 0
        for store in self.stores:
            places = self.places[ids] - begin
            is_own = (places >= 0) & (places < len(store))
            own, places = ids[is_own], places[is_own]
            for part in chunks(self.lengths[own], _READ_TOKENS):
                done = part.start
                for block in store.select(places[part]).blocks():
                    lengths = block.lengths.astype(np.int64)
                    yield own[done : done + len(block)], shingle(block.input_ids, lengths)
                    done += len(block)
            begin += len(store)


def near_pairs(
    texts: Texts,
    *,
    is_open: Callable[[Ints, Ints], Bools],
    seeks: Bools | None = None,
    offered: Bools | None = None,
) -> Iterator[tuple[Ints, Ints]]:
    """Pairs whose sets of shingles have a Jaccard index of at least `THRESHOLD`.

    Args:
        is_open: whether it is still worth knowing that `a[i]` is near `b[i]`; asked again between
            what is yielded, so that a thousand copies of a text cost a thousand comparisons.
        seeks: [N] texts that may come first in a pair; None: every pair of texts, in one order.
        offered: [N] texts that may come second; given with `seeks`, and others than it.
    """
    is_compared = texts.lengths >= SHINGLE_LENGTH + MIN_SHINGLES - 1
    if seeks is not None and offered is not None:
        is_compared &= seeks | offered
    boilerplate = find_boilerplate(_sample(texts))
    signatures, ids = _sign(texts, np.flatnonzero(is_compared), boilerplate)
    waiting: list[tuple[Ints, Ints]] = []
    num_tokens = 0
    for band in range(NUM_BANDS):
        for a, b in candidates(signatures, ids, band, seeks=seeks, offered=offered):
            kept = is_open(a, b)
            waiting.append((a[kept], b[kept]))
            num_tokens += int(_sizes(texts, *waiting[-1]).sum())
            if num_tokens > _HELD_TOKENS:
                yield from _verify(texts, boilerplate, waiting, is_open)
                waiting, num_tokens = [], 0
    yield from _verify(texts, boilerplate, waiting, is_open)


def _verify(
    texts: Texts,
    boilerplate: Boilerplate,
    waiting: list[tuple[Ints, Ints]],
    is_open: Callable[[Ints, Ints], Bools],
) -> Iterator[tuple[Ints, Ints]]:
    """Those of the candidates that are near."""
    if not waiting:
        return
    a, b = (np.concatenate(side) for side in zip(*waiting, strict=True))
    first = np.sort(np.unique(a * len(texts.lengths) + b, return_index=True)[1])
    a, b = a[first], b[first]
    for part in chunks(_sizes(texts, a, b), _HELD_TOKENS):
        kept = is_open(a[part], b[part])
        one, other = a[part][kept], b[part][kept]
        if not len(one):
            continue
        ids, shingles = _join(texts.read(np.union1d(one, other)), boilerplate)
        order = np.argsort(ids)
        places = [order[np.searchsorted(ids, side, sorter=order)] for side in (one, other)]
        is_near = jaccard(shingles, *places) >= THRESHOLD
        yield one[is_near], other[is_near]


def _sign(texts: Texts, ids: Ints, boilerplate: Boilerplate) -> tuple[Signatures, Ints]:
    """Signatures of all texts, and the ascending numbers of those that have one."""
    signatures = np.zeros((len(texts.lengths), NUM_HASHES), dtype=np.uint16)
    is_signed = np.zeros(len(texts.lengths), dtype=np.bool_)
    for part, shingles in texts.read(ids):
        own = boilerplate.remove_from(shingles)
        enough = own.counts >= MIN_SHINGLES
        if not enough.all():
            part, own = part[enough], own.take(np.flatnonzero(enough))
        signatures[part] = sign(own)
        is_signed[part] = True
    return signatures, np.flatnonzero(is_signed)


def _join(
    parts: Iterable[tuple[Ints, Shingles]], boilerplate: Boilerplate | None = None
) -> tuple[Ints, Shingles]:
    """All that is read as one."""
    ids, hashes, counts = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, shingles in parts:
        own = shingles if boilerplate is None else boilerplate.remove_from(shingles)
        ids.append(part)
        hashes.append(own.hashes)
        counts.append(own.counts)
    joined = Shingles(hashes=np.concatenate(hashes), counts=np.concatenate(counts))
    return np.concatenate(ids), joined


def _sample(texts: Texts) -> Shingles:
    """Of the first texts: their order is that of digests, so that it is a random sample. Of very
    long ones the beginning, which is where a template and a system prompt stand."""
    affordable = int(np.searchsorted(np.cumsum(texts.lengths), _HELD_TOKENS, side="right"))
    ids = np.arange(min(len(texts.lengths), MAX_SAMPLE_TEXTS, max(affordable, _MIN_SAMPLE_TEXTS)))
    most = _HELD_TOKENS // _MIN_SAMPLE_TEXTS
    parts = ((part, read.take(np.arange(len(part)), most=most)) for part, read in texts.read(ids))
    return _join(parts)[1]


def _sizes(texts: Texts, a: Ints, b: Ints) -> Ints:
    return texts.lengths[a] + texts.lengths[b]
