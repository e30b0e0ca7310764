"""Which texts share most of their shingles: sets, signatures and their agreement, on plain arrays.

    shingles = shingle(tokens, lengths)                 # every 5 tokens in a row, hashed
    shingles = find_boilerplate(sample).remove_from(shingles)
    signatures = sign(shingles)                         # 32 numbers per text
    for a, b in candidates(signatures, ids, band):      # texts that agree in one of 8 bands
        similar = jaccard(shingles, a, b) >= THRESHOLD  # exact, on the sets themselves

MinHash (Broder 1997, "On the resemblance and containment of documents"): of a random order of all
shingles, the first one of two sets is the same with a probability of their Jaccard index J. Of 32
such orders, four at a time make a band (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
3.4); texts that agree in a whole band are looked at. A pair is looked at with the probability
1 - (1 - J^4)^8:

    J     0.1     0.2    0.3    0.4    0.5    0.6    0.7    0.8    0.9
    P     0.0008  0.013  0.063  0.19   0.40   0.67   0.89   0.985  0.9998

So hardly any pair of 0.8 or more is missed, and what is looked at in vain is caught by `jaccard`.
The formula holds where few texts agree in a band; where many do, each is compared with the one that
its signature is most like, which still connects copies of one text. Nothing here depends on the
order of the texts, on chance or on the version of numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHINGLE_LENGTH = 5
"""Tokens. Single digits that differ change five shingles each: sums are no duplicates of others."""
THRESHOLD = 0.8
"""Jaccard index from which on two texts are near duplicates."""
MIN_SHINGLES = 8
"""A text with fewer different shingles has too little of its own to be near anything."""
NUM_HASHES = 32
NUM_BANDS = 8

BOILERPLATE_SHARE = 0.05
"""Of the sampled texts; a shingle in more of them is the template's, the system prompt's or the
wording of a task, and those do not make two rows the same."""
BOILERPLATE_MIN_TEXTS = 5
"""In a sample of a few texts a shingle counts as boilerplate from so many on."""

# A pair whose signatures agree in fewer places is not looked at. At J = 0.8 four agree by the band,
# and the other 28 give fewer than 14 with a probability of 1e-4 (binomial).
MIN_AGREEMENT = 18
WINDOW = 7
"""Neighbours in a bucket that a text's signature is held against."""

_MAX_SEEKERS = 1 << 14  # at once in `candidates`
_MAX_PAIRS = 4096  # at once in `jaccard`: their numbers take the 12 upper bits of a key
_MAX_KEYS = 1 << 17

Uint64s = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Signatures = npt.NDArray[np.uint16]
"""[N, 32] the lower half of each smallest hash: enough to tell whether two are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shingles:
    """Hashes of the shingles of R texts, text after text, repeated ones included."""

    hashes: Uint64s
    """[N]."""
    counts: Ints
    """[R] how many of them are a text's."""

    @property
    def starts(self) -> Ints:
        """[R] where each text's begin."""
        return np.cumsum(self.counts) - self.counts

    def take(self, texts: Ints, *, most: int | None = None) -> Shingles:
        """Those of some of the texts, of each the first `most`."""
        counts = self.counts[texts]
        if most is not None:
            counts = np.minimum(counts, most)
        return Shingles(hashes=self.hashes[_ranges(self.starts[texts], counts)], counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boilerplate:
    """Shingles that say nothing about a text, as so many have them."""

    hashes: Uint64s
    """Sorted."""
    table: Bools
    """[65536] whether one of `hashes` ends in these 16 bits: rules out most others cheaply."""

    def remove_from(self, shingles: Shingles) -> Shingles:
        """The same texts without these."""
        if not len(self.hashes):
            return shingles
        hashes = shingles.hashes
        suspects = np.flatnonzero(self.table[(hashes & np.uint64(0xFFFF)).astype(np.intp)])
        place = np.searchsorted(self.hashes, hashes[suspects]).clip(max=len(self.hashes) - 1)
        found = suspects[self.hashes[place] == hashes[suspects]]
        kept = np.ones(len(hashes), dtype=np.bool_)
        kept[found] = False
        owners = np.searchsorted(np.cumsum(shingles.counts), found, side="right")
        counts = shingles.counts - np.bincount(owners, minlength=len(shingles.counts))
        return Shingles(hashes=hashes[kept], counts=counts)


def mix64(values: Uint64s) -> Uint64s:
    """Spread each number over all 64 bits, one to one (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Fixed numbers without a generator of random ones, whose stream may change between versions.
_NUMBERS = mix64(np.arange(1, 2 * NUM_HASHES + SHINGLE_LENGTH + 1, dtype=np.uint64) << np.uint64(8))
_FACTORS = _NUMBERS[:SHINGLE_LENGTH] | np.uint64(1)
_SLOPES = (_NUMBERS[SHINGLE_LENGTH:][:NUM_HASHES] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_OFFSETS = (_NUMBERS[SHINGLE_LENGTH + NUM_HASHES :] >> np.uint64(32)).astype(np.uint32)


def shingle(tokens: npt.NDArray[np.int32], lengths: Ints) -> Shingles:
    """Hash the shingles of R texts that lie end to end in `tokens`; none reaches over an end."""
    count = max(len(tokens) - SHINGLE_LENGTH + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    wide = tokens.astype(np.uint64)
    for place, factor in enumerate(_FACTORS):
        hashes += wide[place : place + count] * factor
    inside = np.ones(len(tokens), dtype=np.bool_)
    ends = np.cumsum(lengths)
    for place in range(1, SHINGLE_LENGTH):
        inside[ends[lengths >= place] - place] = False
    return Shingles(
        hashes=mix64(hashes)[inside[:count]],
        counts=np.maximum(lengths - SHINGLE_LENGTH + 1, 0).astype(np.int64),
    )


def find_boilerplate(sample: Shingles) -> Boilerplate:
    """Shingles in more than a twentieth of the texts of a sample (and in five at least)."""
    borders = np.cumsum(sample.counts)[:-1]
    sets = [_distinct(hashes) for hashes in np.split(sample.hashes, borders)]
    hashes = np.sort(np.concatenate(sets))
    ends = np.flatnonzero(np.append(hashes[1:] != hashes[:-1], len(hashes) > 0))
    counts = np.diff(ends, prepend=-1)
    least = max(BOILERPLATE_SHARE * len(sample.counts), BOILERPLATE_MIN_TEXTS - 1)
    common = hashes[ends[counts > least]]
    table = np.zeros(1 << 16, dtype=np.bool_)
    table[(common & np.uint64(0xFFFF)).astype(np.intp)] = True
    return Boilerplate(hashes=common, table=table)


def sign(shingles: Shingles) -> Signatures:
    """The signature of each text; every one must have a shingle."""
    signatures = np.empty((len(shingles.counts), NUM_HASHES), dtype=np.uint16)
    if not len(signatures):
        return signatures
    values = (shingles.hashes >> np.uint64(32)).astype(np.uint32)
    starts = shingles.starts
    ranks = np.empty_like(values)
    for place in range(NUM_HASHES):
        # x → ax + b modulo 2³² puts all hashes in an order of its own.
        np.multiply(values, _SLOPES[place], out=ranks)
        np.add(ranks, _OFFSETS[place], out=ranks)
        signatures[:, place] = np.minimum.reduceat(ranks, starts)
    return signatures


def candidates(
    signatures: Signatures,
    ids: Ints,
    band: int,
    *,
    seeks: Bools | None = None,
    offered: Bools | None = None,
) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of texts that agree in a band and, by their signatures, may well be near.

    In a bucket of up to `WINDOW + 1` texts these are all pairs. A larger one is sorted by the
    texts' next band, which brings those together that agree in more, and each text is paired with
    the one it agrees with best of its neighbours and the bucket's first: one pair per text.

    Args:
        signatures: of all texts.
        ids: ascending numbers of the texts to compare; where all else is equal, they decide.
        seeks: of all texts, those that may come first in a pair; None: every pair, smaller first.
        offered: of all texts, those that may come second; given with `seeks`, and others than it.
    """
    bands = signatures.view(np.uint64)
    keys = bands[ids, band]
    order = np.lexsort((bands[ids, (band + 1) % NUM_BANDS], keys))
    ids, keys = ids[order], keys[order]
    is_first = np.ones(len(ids), dtype=np.bool_)
    is_first[1:] = keys[1:] != keys[:-1]
    buckets = np.cumsum(is_first) - 1
    partners = np.arange(len(ids)) if offered is None else np.flatnonzero(offered[ids])
    counts = np.bincount(buckets[partners], minlength=len(ids))
    begins = np.cumsum(counts) - counts
    seekers = np.arange(len(ids)) if seeks is None else np.flatnonzero(seeks[ids])
    seekers = seekers[counts[buckets[seekers]] > (offered is None)]
    offsets = [*range(-1, -WINDOW - 1, -1), *range(0 if offered is None else WINDOW)]
    for start in range(0, len(seekers), _MAX_SEEKERS):
        own = seekers[start : start + _MAX_SEEKERS]
        following = np.searchsorted(partners, own)
        chosen = np.stack([begins[buckets[own]], *(following + offset for offset in offsets)])
        other = partners[chosen.clip(0, len(partners) - 1)]
        is_other = (keys[other] == keys[own]) & (other != own)
        agreement = np.zeros(other.shape, dtype=np.uint8)
        row, column = np.nonzero(is_other)
        agreement[row, column] = _agreement(signatures, ids[own[column]], ids[other[row, column]])
        is_best = agreement.argmax(axis=0) == np.arange(len(chosen))[:, None]
        is_small = counts[buckets[own]] <= WINDOW + 1
        row, column = np.nonzero((agreement >= MIN_AGREEMENT) & (is_small | is_best))
        a, b = ids[own[column]], ids[other[row, column]]
        yield (a, b) if offered is not None else (np.minimum(a, b), np.maximum(a, b))


def jaccard(shingles: Shingles, a: Ints, b: Ints) -> npt.NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| of the sets of texts `a[i]` and `b[i]`; 0 where one of them is too small.

    Exact, up to hashes of 51 bits within one pair."""
    result = np.zeros(len(a))
    for part in chunks(shingles.counts[a] + shingles.counts[b], _MAX_KEYS, most=_MAX_PAIRS):
        keys = np.concatenate([_keys(shingles, a[part], 0), _keys(shingles, b[part], 1)])
        keys = _distinct(keys)
        pairs = (keys >> np.uint64(52)).astype(np.intp)
        size = part.stop - part.start
        both = (keys[1:] >> np.uint64(1)) == (keys[:-1] >> np.uint64(1))
        shared = np.bincount(pairs[1:][both], minlength=size)
        total = np.bincount(pairs, minlength=size)
        second = np.bincount(pairs[(keys & np.uint64(1)).astype(np.bool_)], minlength=size)
        is_large = np.minimum(total - second, second) >= MIN_SHINGLES
        result[part] = np.where(is_large, shared / np.maximum(total - shared, 1), 0)
    return result


def chunks(sizes: Ints, budget: int, *, most: int | None = None) -> Iterator[slice]:
    """Cut a list into slices whose sizes sum to `budget` at most, or that hold one item."""
    sums = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        spent = sums[start] - sizes[start]
        stop = max(int(np.searchsorted(sums, spent + budget, side="right")), start + 1)
        stop = stop if most is None else min(stop, start + most)
        yield slice(start, stop)
        start = stop


def _keys(shingles: Shingles, texts: Ints, side: int) -> Uint64s:
    """A key per shingle: the text's place in `texts` (12 bits), the hash (51 bits), the side."""
    counts = shingles.counts[texts]
    hashes = shingles.hashes[_ranges(shingles.starts[texts], counts)]
    places = np.repeat(np.arange(len(texts), dtype=np.uint64) << np.uint64(52), counts)
    keys: Uint64s = places | (hashes >> np.uint64(13) << np.uint64(1)) | np.uint64(side)
    return keys


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """starts[0], starts[0]+1, … (counts[0] of them), then those of starts[1], and so on."""
    shifts = starts - (np.cumsum(counts) - counts)
    places: Ints = np.arange(int(counts.sum())) + np.repeat(shifts, counts)
    return places


def _distinct(values: Uint64s) -> Uint64s:
    """Sorted, each value once. (`np.unique` hashes since numpy 2.3, which is slower here.)"""
    values = np.sort(values)
    once: Uint64s = values[np.append(True, values[1:] != values[:-1])[: len(values)]]
    return once


def _agreement(signatures: Signatures, a: Ints, b: Ints) -> npt.NDArray[np.uint8]:
    """In how many places two signatures are the same."""
    places: npt.NDArray[np.uint8] = (signatures[a] == signatures[b]).sum(axis=1, dtype=np.uint8)
    return places
