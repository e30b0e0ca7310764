"""The pictures of a page say what the numbers say."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.showing.chart import MAX_BARS, draw_lengths, draw_stack

COUNTS = st.integers(0, 10**9)
LENGTHS = st.lists(st.integers(1, 200_000), min_size=1, max_size=50)


@given(counts=st.dictionaries(st.sampled_from(["supervised", "context", "cut", "held"]), COUNTS))
def test_a_stack_fills_its_bar_and_shows_all_that_is_there(counts: dict[str, int]) -> None:
    parts = draw_stack(**counts)
    assert [(part.kind, part.count) for part in parts] == [
        item for item in counts.items() if item[1]
    ]
    if parts:
        assert parts[0].x == 0
        assert sum(part.width for part in parts) == pytest.approx(100)
        assert all(part.width > 0.3 for part in parts)
    for first, second in itertools.pairwise(parts):
        assert first.x + first.width == pytest.approx(second.x)


def test_a_share_is_as_wide_as_it_is_large() -> None:
    assert [
        part.width for part in draw_stack(supervised=60, context=30, cut=0, dropped=10)
    ] == pytest.approx([60, 30, 10])


@given(lengths=LENGTHS, max_length=st.integers(1, 200_000))
def test_every_example_is_in_the_bar_of_its_length(lengths: list[int], max_length: int) -> None:
    chart = draw_lengths(lengths, max_length)
    assert chart is not None
    for bar in chart.bars:
        inside = [length for length in lengths if bar.low <= length <= bar.high]
        assert bar.count == len(inside)
        if bar.is_over:
            assert all(length > max_length for length in inside)
    assert sum(bar.count for bar in chart.bars) == len(lengths)
    assert chart.tallest.height == 100
    assert chart.num_over == sum(length > max_length for length in lengths)
    ordered = sorted(lengths)
    assert chart.longest == ordered[-1]
    assert chart.median == ordered[(len(ordered) - 1) // 2]


@given(lengths=LENGTHS, max_length=st.integers(1, 10**6))
def test_all_of_a_histogram_is_inside_its_frame(lengths: list[int], max_length: int) -> None:
    chart = draw_lengths(lengths, max_length)
    assert chart is not None
    assert len(chart.bars) <= MAX_BARS + 2
    assert 1 < len(chart.ticks) <= 9
    for first, second in itertools.pairwise(chart.bars):
        assert second.low == first.high + 1
        assert second.x == pytest.approx(first.x + first.width)
    places = [bar.x for bar in chart.bars] + [x for x, _ in chart.ticks] + [chart.limit or 0]
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)
    assert chart.bars[-1].x + chart.bars[-1].width == pytest.approx(100)


def test_few_long_examples_make_the_axis_logarithmic() -> None:
    usual = draw_lengths([100] * 99 + [500], 1000)
    skewed = draw_lengths([100] * 99 + [50_000], 1000)
    assert usual is not None
    assert skewed is not None
    assert not usual.is_log
    assert skewed.is_log
    # The axis runs from 64 to 65,536: a thousand is where log2 says.
    assert skewed.limit == pytest.approx(100 * (9.965784 - 6) / 10, abs=1e-4)


def test_a_limit_beyond_the_axis_is_not_drawn() -> None:
    chart = draw_lengths([100, 200], 32_768)
    assert chart is not None
    assert chart.limit is None


def test_lengths_may_be_an_array() -> None:
    lengths = [5, 50, 500]
    assert draw_lengths(np.array(lengths, dtype=np.int32), 100) == draw_lengths(lengths, 100)


def test_no_examples_make_no_histogram() -> None:
    assert draw_lengths([], 100) is None
    assert draw_stack(supervised=0) == []
