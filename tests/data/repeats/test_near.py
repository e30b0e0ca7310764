"""Near pairs against all pairs of Python's own sets."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from made_rows import Row, digest, store_of

from duiti.data.repeats.near import Texts, near_pairs
from duiti.data.storage.store import ExampleStore

Edges = set[tuple[int, int]]


def _texts(*stores: ExampleStore) -> Texts:
    """All examples, in the order of their digests."""
    digests = np.concatenate([store.digests() for store in stores])
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    lengths = np.concatenate([store.lengths for store in stores]).astype(np.int64)[order]
    return Texts(stores=stores, places=order, lengths=lengths)


def _found(texts: Texts, **sides: np.ndarray) -> Edges:
    pairs = near_pairs(texts, is_open=lambda a, b: np.ones(len(a), np.bool_), **sides)
    return {(int(i), int(j)) for a, b in pairs for i, j in zip(a, b, strict=True)}


def _by_brute_force(contents: list[list[int]]) -> dict[tuple[int, int], float]:
    """The Jaccard index of every pair of up to a thousand texts that have enough in them."""
    sets = [{tuple(own[i : i + 5]) for i in range(len(own) - 4)} for own in contents]
    counts = Counter(one for own in sets for one in own)
    common = {one for one, count in counts.items() if count > max(4, 0.05 * len(sets))}
    sets = [own - common for own in sets]
    return {
        (a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for a, b in combinations(range(len(sets)), 2)
        if min(len(sets[a]), len(sets[b])) >= 8 and not sets[a].isdisjoint(sets[b])
    }


def _corpus(seed: int, originals: int) -> list[list[int]]:
    """Texts under one system prompt, each with a copy in which some tokens differ."""
    rng = np.random.default_rng(seed)
    system, texts = rng.integers(0, 1000, 40).tolist(), []
    for _ in range(originals):
        text = rng.integers(0, 1000, rng.integers(10, 400))
        copy = text.copy()
        copy[rng.integers(0, len(text), rng.integers(1, 6))] = rng.integers(0, 1000)
        texts += [system + text.tolist(), system + copy.tolist()]
    return texts


def _contents(texts: Texts, corpus: list[list[int]]) -> list[list[int]]:
    return [corpus[place] for place in texts.places.tolist()]


@pytest.fixture(scope="module")
def corpus() -> list[list[int]]:
    return _corpus(seed=0, originals=500)


@pytest.fixture(scope="module")
def texts(corpus: list[list[int]]) -> Texts:
    rows = [Row(n + 1, tokens, str(n)) for n, tokens in enumerate(corpus)]
    return _texts(store_of(rows))


def test_what_is_found_is_near_and_hardly_anything_is_missed(
    corpus: list[list[int]], texts: Texts
) -> None:
    found = _found(texts)
    true = _by_brute_force(_contents(texts, corpus))
    near = {pair for pair, share in true.items() if share >= 0.8}
    assert found <= near
    # The probability at the threshold is the smallest: 0.985. Five standard deviations below.
    least = 0.985 * len(near) - 5 * (0.985 * 0.015 * len(near)) ** 0.5
    assert 200 < least < len(found)
    # From 0.9 on it is 0.9998: of 250 pairs, two are missed with a probability of 1e-3.
    very = {pair for pair, share in true.items() if share >= 0.9}
    assert 150 < len(very) < 250
    assert len(very - found) < 2


def test_the_cut_into_blocks_changes_nothing(corpus: list[list[int]], texts: Texts) -> None:
    rows = [Row(n + 1, tokens, str(n)) for n, tokens in enumerate(corpus)]
    found = _found(texts)
    assert found == _found(_texts(store_of(rows, cuts=range(0, 1000, 7))))
    assert found == _found(_texts(store_of(rows[:300]), store_of(rows[300:], cuts=[350])))


def test_the_order_of_the_rows_changes_nothing(corpus: list[list[int]], texts: Texts) -> None:
    order = np.random.default_rng(1).permutation(len(corpus)).tolist()
    shuffled = [Row(n + 1, corpus[place], str(place)) for n, place in enumerate(order)]
    assert _found(texts) == _found(_texts(store_of(shuffled)))


def test_a_view_is_read_like_a_store(corpus: list[list[int]], texts: Texts) -> None:
    rows = [Row(n + 1, tokens, str(n)) for n, tokens in enumerate(corpus)]
    doubled = store_of([row for row in rows for _ in range(2)])
    view = doubled.select(np.arange(1, 2000, 2)[::-1])
    assert _found(_texts(view)) == _found(texts)


def test_with_two_sides_a_pair_has_one_of_each(corpus: list[list[int]], texts: Texts) -> None:
    seeks = np.array([digest(str(place))[0] % 3 > 0 for place in texts.places.tolist()])
    found = _found(texts, seeks=seeks, offered=~seeks)
    both = _found(texts)
    assert found == {(a, b) if seeks[a] else (b, a) for a, b in both if seeks[a] != seeks[b]}
    assert 0 < len(found) < len(both)


def test_a_pair_that_is_settled_is_looked_at_no_more(texts: Texts) -> None:
    settled = np.zeros(len(texts.lengths), np.bool_)
    found = []
    for a, _ in near_pairs(texts, is_open=lambda a, _: ~settled[a]):
        assert not settled[a].any()
        settled[a] = True
        found += a.tolist()
    assert set(found) == {a for a, _ in _found(texts)}
    assert list(near_pairs(texts, is_open=lambda a, b: np.zeros(len(a), np.bool_))) == []


def test_many_copies_of_some_texts_take_a_few_comparisons_each() -> None:
    rng = np.random.default_rng(2)
    originals = rng.integers(0, 1000, (40, 60))
    rows = []
    for n in range(20_000):
        tokens = originals[n % 40].copy()
        tokens[rng.integers(0, 60)] = 1000 + n
        rows.append(Row(n + 1, tokens.tolist(), str(n)))
    texts = _texts(store_of(rows))
    compared = 0

    def is_open(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(a)
        return np.ones(len(a), np.bool_)

    assert sum(len(a) for a, _ in near_pairs(texts, is_open=is_open)) > 20_000
    # Asked before and after waiting, one pair per text and band at most.
    assert compared <= 2 * 8 * 20_000


def test_long_texts_are_compared_whole() -> None:
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 150_000, 300_000) for _ in range(3)]
    for place in (0, 1):
        copy = texts[place].copy()
        copy[200_000 : 200_000 + (30_000, 70_000)[place]] = 7  # 0.9 and 0.77 of the shingles
        texts.append(copy)
    store = store_of([Row(n + 1, tokens, str(n)) for n, tokens in enumerate(texts)])
    read = _texts(store)
    places = read.places.tolist()
    assert {tuple(sorted((places[a], places[b]))) for a, b in _found(read)} == {(0, 3)}


def test_short_texts_and_none_are_near_nothing() -> None:
    rows = [Row(n + 1, list(range(11)), str(n)) for n in range(4)]
    assert _found(_texts(store_of(rows))) == set()
    assert _found(_texts(store_of([*rows, Row(9, [5] * 50, "5"), Row(8, [5] * 60, "6")]))) == set()
    assert _found(_texts(store_of([Row(1, [1], "1")]))) == set()
    assert _found(_texts(ExampleStore())) == set()
    twelve = [Row(n + 1, list(range(12)), str(n)) for n in range(4)]
    assert len(_found(_texts(store_of(twelve)))) == 6
