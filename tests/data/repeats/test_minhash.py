"""Shingles, sets and signatures against Python's own sets, and recall against the formula."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.repeats.minhash import (
    BOILERPLATE_SHARE,
    MIN_AGREEMENT,
    MIN_SHINGLES,
    NUM_BANDS,
    NUM_HASHES,
    SHINGLE_LENGTH,
    WINDOW,
    Shingles,
    candidates,
    chunks,
    find_boilerplate,
    jaccard,
    mix64,
    shingle,
    sign,
)

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=12)


def _shingles(texts: list[list[int]]) -> Shingles:
    tokens = np.array([token for text in texts for token in text], dtype=np.int32)
    return shingle(tokens, np.array([len(text) for text in texts], np.int64))


def _tuples(text: list[int]) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + SHINGLE_LENGTH]) for i in range(len(text) - SHINGLE_LENGTH + 1)]


def _parts(shingles: Shingles) -> list[list[int]]:
    return [own.tolist() for own in np.split(shingles.hashes, np.cumsum(shingles.counts)[:-1])]


def _overlapping(shared: int, own: int, pairs: int) -> tuple[Shingles, np.ndarray, np.ndarray]:
    """Pairs of sets of random hashes with a Jaccard index of shared / (shared + 2 own)."""
    numbers = np.arange(pairs * (shared + 2 * own), dtype=np.uint64).reshape(pairs, -1) + 2**40
    hashes = mix64(numbers)
    one, other = hashes[:, : shared + own], np.roll(hashes, own, axis=1)[:, : shared + own]
    counts = np.full(2 * pairs, shared + own)
    both = np.stack([one, other], axis=1)
    return Shingles(hashes=both.ravel(), counts=counts), *np.arange(2 * pairs).reshape(-1, 2).T


@given(texts=TEXTS)
def test_shingles_are_those_of_each_text_and_equal_where_their_tokens_are(
    texts: list[list[int]],
) -> None:
    found = _parts(_shingles(texts))
    expected = [_tuples(text) for text in texts]
    assert [len(own) for own in found] == [len(own) for own in expected]
    hashes = [one for own in found for one in own]
    tuples = [one for own in expected for one in own]
    seen = set(zip(hashes, tuples, strict=True))
    assert len(seen) == len(set(hashes)) == len(set(tuples))


@given(texts=TEXTS, data=st.data())
def test_jaccard_is_that_of_the_sets(texts: list[list[int]], data: st.DataObject) -> None:
    places = st.integers(0, len(texts) - 1)
    pairs = data.draw(st.lists(st.tuples(places, places), min_size=1, max_size=20))
    a, b = np.array(pairs).T
    for index, found in enumerate(jaccard(_shingles(texts), a, b).tolist()):
        one, other = set(_tuples(texts[a[index]])), set(_tuples(texts[b[index]]))
        is_large = min(len(one), len(other)) >= MIN_SHINGLES
        assert found == (len(one & other) / len(one | other) if is_large else 0)


def test_jaccard_of_more_pairs_than_fit_at_once_is_that_of_each() -> None:
    shingles, a, b = _overlapping(shared=30, own=5, pairs=5000)
    assert (jaccard(shingles, a, b) == 30 / 40).all()
    assert (jaccard(shingles, a, np.roll(b, 1)) == 0).all()
    long = Shingles(hashes=shingles.hashes, counts=np.array([175_000, 175_000]))
    assert jaccard(long, np.array([0, 0]), np.array([1, 0])).tolist() == [0, 1]


@given(texts=st.lists(st.lists(st.integers(0, 2), max_size=25), min_size=1, max_size=40))
def test_boilerplate_is_what_a_twentieth_and_five_of_the_texts_have(
    texts: list[list[int]],
) -> None:
    shingles = _shingles(texts)
    left = find_boilerplate(shingles).remove_from(shingles)
    counts = Counter(one for text in texts for one in set(_tuples(text)))
    kept = [[one for one in _tuples(text) if counts[one] < 5] for text in texts]
    assert left.counts.tolist() == [len(own) for own in kept]
    hashes = {
        (a, b)
        for text, own in zip(texts, _parts(shingles), strict=True)
        for a, b in zip(_tuples(text), own, strict=True)
    }
    name = {b: a for a, b in hashes}
    assert [[name[one] for one in own] for own in _parts(left)] == kept


def test_in_a_large_sample_the_share_decides() -> None:
    texts = [[*range(n * 20, n * 20 + 9), *([7] * 5 if n < 31 else [])] for n in range(600)]
    counts = Counter(one for text in texts for one in set(_tuples(text)))
    assert counts[(7,) * 5] == 31 > BOILERPLATE_SHARE * 600
    assert len(find_boilerplate(_shingles(texts)).hashes) == 1
    assert len(find_boilerplate(_shingles(texts[1:])).hashes) == 1
    assert len(find_boilerplate(_shingles(texts[2:])).hashes) == 0


# Tolerances below are five standard deviations of a binomial.
@pytest.mark.parametrize(("shared", "own"), [(20, 40), (50, 25), (80, 10), (90, 5)])
def test_signatures_agree_with_a_probability_of_the_jaccard_index(shared: int, own: int) -> None:
    share, pairs = shared / (shared + 2 * own), 1000
    shingles, a, b = _overlapping(shared, own, pairs)
    signatures = sign(shingles)
    agreement = (signatures[a] == signatures[b]).mean(axis=0)
    deviation = (share * (1 - share) / pairs) ** 0.5
    assert np.abs(agreement - share).max() < 5 * deviation
    assert abs(agreement.mean() - share) < 5 * deviation / NUM_HASHES**0.5


@pytest.mark.parametrize(("shared", "own"), [(20, 40), (50, 25), (80, 10), (90, 5)])
def test_pairs_agree_in_a_band_as_often_as_the_formula_says(shared: int, own: int) -> None:
    share, pairs = shared / (shared + 2 * own), 4000
    shingles, a, b = _overlapping(shared, own, pairs)
    bands = sign(shingles).view(np.uint64)
    assert bands.shape == (2 * pairs, NUM_BANDS)
    expected = 1 - (1 - share**4) ** 8
    found = (bands[a] == bands[b]).any(axis=1).mean()
    assert abs(found - expected) < 5 * (expected * (1 - expected) / pairs) ** 0.5


def test_the_agreement_asked_for_loses_hardly_any_pair_at_the_threshold() -> None:
    shingles, a, b = _overlapping(shared=80, own=10, pairs=4000)
    signatures = sign(shingles)
    agreement = (signatures[a] == signatures[b]).sum(axis=1)
    in_a_band = (signatures.view(np.uint64)[a] == signatures.view(np.uint64)[b]).any(axis=1)
    # Four agree by the band; binomial(28, 0.8) < 14 has a probability of 8e-5.
    assert (agreement[in_a_band] < MIN_AGREEMENT).sum() <= 3


@given(texts=st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=30), max_size=6))
def test_a_signature_depends_on_the_set_alone(texts: list[list[int]]) -> None:
    together = sign(_shingles(texts))
    alone = [sign(_shingles([text]))[0].tolist() for text in texts]
    assert together.tolist() == alone
    assert sign(_shingles([text + text for text in texts] + texts))[len(texts) :].tolist() == alone


def _pairs(signatures: np.ndarray, **sides: np.ndarray) -> list[list[tuple[int, int]]]:
    """Of each band, the candidates in order."""
    ids = np.arange(len(signatures))
    return [
        [
            pair
            for a, b in candidates(signatures, ids, band, **sides)
            for pair in zip(a.tolist(), b.tolist(), strict=True)
        ]
        for band in range(NUM_BANDS)
    ]


def test_small_buckets_are_compared_pair_by_pair() -> None:
    shingles, *_ = _overlapping(shared=60, own=0, pairs=3)
    signature = sign(shingles)[::2]
    sizes = [1, WINDOW, WINDOW + 1]
    signatures = np.repeat(signature, sizes, axis=0)
    starts = np.cumsum([0, *sizes])
    expected = {pair for i in range(3) for pair in combinations(range(starts[i], starts[i + 1]), 2)}
    for pairs in _pairs(signatures):
        assert set(pairs) == expected


def test_a_large_bucket_gives_a_pair_per_text_and_leaves_none_alone() -> None:
    shingles, *_ = _overlapping(shared=60, own=0, pairs=1)
    size = 40_000  # more than are handled at once
    signatures = np.repeat(sign(shingles)[:1], size, axis=0)
    for pairs in _pairs(signatures):
        assert sorted(b for _, b in pairs) == list(range(1, size))
        assert all(a < b for a, b in pairs)


def test_those_that_agree_in_more_are_brought_together_in_a_large_bucket() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 2**16, (2000, NUM_HASHES), dtype=np.uint16)
    signatures[:, :20] = signatures[0, :20]  # all are in one bucket, with many partners
    signatures[1000:, 16:] = signatures[:1000, 16:]  # each has a twin
    twins = {(n, n + 1000) for n in range(1000)}
    assert twins <= set(_pairs(signatures)[4])  # sorted by the fifth, which is each twin's own


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=60), data=st.data())
def test_of_two_sides_every_seeker_with_a_partner_gets_one(
    groups: list[int], data: st.DataObject
) -> None:
    shingles, *_ = _overlapping(shared=60, own=0, pairs=4)
    signatures = sign(shingles)[::2][groups]
    flags = st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups))
    sides = np.array(data.draw(flags))
    partners = {group for group, side in zip(groups, sides, strict=True) if side == 1}
    for pairs in _pairs(signatures, seeks=sides == 0, offered=sides == 1):
        assert all(sides[a] == 0 and sides[b] == 1 and groups[a] == groups[b] for a, b in pairs)
        expected = {n for n, group in enumerate(groups) if sides[n] == 0 and group in partners}
        assert {a for a, _ in pairs} == expected


def test_mixing_is_the_one_of_splitmix64() -> None:
    # The first outputs of Vigna's splitmix64.c for seed 0: its state counts up by this number.
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(sizes=st.lists(st.integers(0, 9)), budget=st.integers(1, 20), most=st.integers(1, 5))
def test_chunks_cover_a_list_and_keep_to_the_budget(
    sizes: list[int], budget: int, most: int
) -> None:
    parts = [sizes[part] for part in chunks(np.array(sizes, np.int64), budget, most=most)]
    assert sum(parts, []) == sizes  # noqa: RUF017
    assert all(len(part) == 1 or (sum(part) <= budget and len(part) <= most) for part in parts)
