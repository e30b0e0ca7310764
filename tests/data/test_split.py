"""The validation side of a row is a function of its prompt and the seed, not of its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.split import parse_share, split
from duiti.errors import UsageError
from duiti.types import IGNORE_INDEX, Example, Origin


def _example(prompt: list[int], answer: list[int], line: int) -> Example:
    labels = [IGNORE_INDEX] * len(prompt) + answer
    return Example(
        input_ids=np.array(prompt + answer, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        origin=Origin("f", line),
    )


def _rows(count: int) -> list[Example]:
    return [_example([1, n // 256, n % 256], [7, 0], n) for n in range(count)]


def _lines(examples: list[Example]) -> list[int]:
    return [example.origin.line for example in examples]


@given(
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=30),
    seed=st.integers(0, 2**63 - 1),
    share=st.floats(0.01, 0.99),
    order=st.randoms(use_true_random=False),
)
def test_no_row_is_lost_and_none_moves_when_rows_are_reordered(
    prompts: list[list[int]], seed: int, share: float, order: st.DataObject
) -> None:
    rows = [_example(prompt, [9, line], line) for line, prompt in enumerate(prompts)]
    train, val = split(rows, share=share, seed=seed)
    assert sorted(_lines(train) + _lines(val)) == list(range(len(rows)))
    assert _lines(train) == sorted(_lines(train))
    shuffled = list(rows)
    order.shuffle(shuffled)
    again, val_again = split(shuffled, share=share, seed=seed)
    assert set(_lines(again)) == set(_lines(train))
    assert set(_lines(val_again)) == set(_lines(val))
    # The same prompt, whatever its answer, stands on one side.
    sides = [{tuple(prompts[line]) for line in _lines(side)} for side in (train, val)]
    assert sides[0].isdisjoint(sides[1])


def test_adding_rows_moves_none_of_the_old_ones() -> None:
    rows = _rows(400)
    _, val = split(rows[:200], share=0.2, seed=3)
    _, more = split(rows, share=0.2, seed=3)
    assert _lines(val) == [line for line in _lines(more) if line < 200]


def test_the_share_is_met_and_the_seed_chooses_who() -> None:
    rows = _rows(4000)
    sides = [set(_lines(split(rows, share=0.1, seed=seed)[1])) for seed in (0, 1)]
    # Binomial(4000, 0.1): mean 400, standard deviation 19; five of them are 95.
    assert all(305 <= len(side) <= 495 for side in sides)
    assert len(sides[0] & sides[1]) < 100


def test_a_greater_share_keeps_what_was_set_apart_before() -> None:
    rows = _rows(500)
    small, large = (set(_lines(split(rows, share=s, seed=0)[1])) for s in (0.1, 0.3))
    assert small < large


def test_the_examples_of_one_row_stay_together() -> None:
    rows = [_example([1, n, k], [7], n) for n in range(100) for k in range(3)]
    train, val = split(rows, share=0.5, seed=0)
    assert set(_lines(train)).isdisjoint(_lines(val))
    assert len(train) + len(val) == 300


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
