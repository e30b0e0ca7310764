"""Intervals against scipy-free sums by hand: draws made with a loop, and coverage."""

from __future__ import annotations

import numpy as np

from duiti.eval.bootstrap import interval, resampled


def test_a_draw_is_the_sum_over_rows_drawn_with_replacement() -> None:
    sums = np.random.default_rng(1).normal(size=(7, 3))
    drawn = resampled(sums, seed=5, num_draws=4)
    generator = np.random.default_rng([5, 7])
    for draw in range(4):
        by_hand = sum(sums[row] for row in generator.integers(7, size=7))
        np.testing.assert_allclose(drawn[draw], by_hand)


def test_two_models_on_the_same_rows_are_drawn_alike() -> None:
    sums = np.random.default_rng(2).normal(size=(50, 1))
    np.testing.assert_allclose(
        resampled(sums + 3, seed=0) - resampled(sums, seed=0), 150.0, atol=1e-9
    )
    assert (resampled(sums, seed=0) == resampled(sums, seed=0)).all()
    assert (resampled(sums, seed=0) != resampled(sums, seed=1)).any()


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(2.0, 5.0, size=400)
    draws = resampled(values[:, None], seed=0, num_draws=4000)[:, 0] / 400
    found = interval(values.mean(), draws)
    half = 1.96 * values.std() / 20
    assert found.mean == values.mean()
    # Percentiles of 4000 draws: their error is some hundredths of the half-width.
    ends = [values.mean() - half, values.mean() + half]
    np.testing.assert_allclose([found.low, found.high], ends, atol=0.1 * half)


def test_about_19_of_20_intervals_hold_the_truth() -> None:
    generator, held = np.random.default_rng(4), 0
    for trial in range(100):
        values = generator.normal(1.0, 1.0, size=(60, 1))
        found = interval(values.mean(), resampled(values, seed=trial, num_draws=200)[:, 0] / 60)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    # 95 are due, with a deviation of 2; the percentile interval of 60 rows is a little narrow.
    assert 88 <= held <= 99


def test_figures_that_do_not_exist_have_no_interval() -> None:
    nothing = {"mean": None, "low": None, "high": None}
    assert interval(float("nan"), np.array([1.0])).as_dict() == nothing
    assert interval(1.0, np.array([np.nan])).as_dict() == nothing
    assert interval(1.0, np.array([np.nan, 1.0, np.inf])).low == 1.0
