"""The side of a row is a function of its group's digests and the seed, not of its place."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import Row, digest, store_of

from duiti.data.repeats.duplicates import find_duplicates
from duiti.data.repeats.split import parse_share, split
from duiti.errors import UsageError


def _rows(count: int) -> list[Row]:
    return [Row(line, [line], f"row {line}") for line in range(1, count + 1)]


def _sides(rows: list[Row], *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Lines of train and val."""
    store = store_of(rows)
    train, val = split(store, share=share, seed=seed, groups=find_duplicates(store).groups)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(rows)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    return [rows[i].line for i in train.tolist()], [rows[i].line for i in val.tolist()]


@given(
    names=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
    seed=st.integers(0, 2**63 - 1),
    share=st.floats(0.01, 0.99),
    order=st.randoms(use_true_random=False),
)
def test_rows_that_belong_together_stay_so_and_none_moves_when_they_are_reordered(
    names: list[tuple[int, int]], seed: int, share: float, order: st.DataObject
) -> None:
    rows = [
        Row(line, [line], f"{prompt} {answer}", f"prompt {prompt}")
        for line, (prompt, answer) in enumerate(names, 1)
    ]
    train, val = _sides(rows, share=share, seed=seed)
    shuffled = list(rows)
    order.shuffle(shuffled)
    again, val_again = _sides(shuffled, share=share, seed=seed)
    assert set(again) == set(train)
    assert set(val_again) == set(val)
    prompts = [{rows[line - 1].asked for line in side} for side in (train, val)]
    assert prompts[0].isdisjoint(prompts[1])


@given(
    owners=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    seed=st.integers(0, 99),
    names=st.permutations(range(9)),
)
def test_whole_groups_go_to_one_side_whatever_their_numbers(
    owners: list[int], seed: int, names: list[int]
) -> None:
    store = store_of(_rows(len(owners)))
    groups = np.array(owners)
    train, val = split(store, share=0.5, seed=seed, groups=groups)
    assert set(groups[train].tolist()).isdisjoint(groups[val].tolist())
    renamed = np.array(names)[groups] * 1000 - 7
    again = split(store, share=0.5, seed=seed, groups=renamed)
    assert [side.tolist() for side in again] == [train.tolist(), val.tolist()]


def test_adding_rows_moves_none_of_the_old_ones() -> None:
    rows = _rows(400)
    _, val = _sides(rows[:200], share=0.2, seed=3)
    _, more = _sides(rows, share=0.2, seed=3)
    assert val == [line for line in more if line <= 200]


def test_the_share_is_met_and_the_seed_chooses_who() -> None:
    rows = _rows(4000)
    sides = [set(_sides(rows, share=0.1, seed=seed)[1]) for seed in (0, 1, 2**40, -1)]
    # Binomial(4000, 0.1): mean 400, standard deviation 19; five of them are 95. Two independent
    # sides share 40, with a standard deviation of 6.3.
    assert all(305 <= len(side) <= 495 for side in sides)
    assert all(len(one & sides[0]) < 75 for one in sides[1:])


def _mixed(value: int) -> int:
    """splitmix64's finalizer on whole numbers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@pytest.mark.parametrize("seed", [0, 7, 2**64 + 7, -1])
def test_the_sides_are_the_same_in_every_version(seed: int) -> None:
    _, val = _sides(_rows(100), share=0.1, seed=seed)
    expected = []
    for line in range(1, 101):
        high, low = digest(f"row {line}")
        number = _mixed((_mixed((_mixed(seed % 2**64) + high) % 2**64) + low) % 2**64)
        expected += [line] if number / 2**64 < 0.1 else []
    assert val == expected


def test_a_greater_share_keeps_what_was_set_apart_before() -> None:
    rows = _rows(500)
    small, large = (set(_sides(rows, share=s, seed=0)[1]) for s in (0.1, 0.3))
    assert small < large


def test_the_examples_of_one_row_stay_together() -> None:
    rows = [Row(n, [n, k], str(n)) for n in range(1, 101) for k in range(3)]
    train, val = _sides(rows, share=0.5, seed=0)
    assert set(train).isdisjoint(val)
    assert all(len(list(own)) == 3 for side in (train, val) for _, own in groupby(side))


def test_nothing_is_split_into_nothing() -> None:
    store = store_of(_rows(3)).select([])
    train, val = split(store, share=0.5, seed=0, groups=np.empty(0, np.int64))
    assert len(train) == len(val) == 0


def test_a_percentage_is_a_share_and_anything_else_names_a_file() -> None:
    assert parse_share("5%") == 0.05
    assert parse_share("0.5%") == 0.005
    assert parse_share("held-out.jsonl") is None
    assert parse_share("0.05") is None
    assert parse_share("x%") is None


@pytest.mark.parametrize("text", ["0%", "100%", "-5%", "150%", "nan%", "inf%"])
def test_a_percentage_that_leaves_a_side_empty_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="between 0% and 100%"):
        parse_share(text)
