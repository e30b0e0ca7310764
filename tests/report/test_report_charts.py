"""Curves are short, lose no spike, and are inside their frame."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.report.charts import MAX_POINTS, SIDE, Line, compact, draw, means, smoothed, thin
from duiti.report.curves import more_data_chart, rate_chart, strength_charts
from duiti.report.folder import FoundRate, MoreData, RatePoint, SharePoint, Strength, StrengthPoint

VALUES = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9),
    min_size=1,
    max_size=60,
)


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", path)]


@given(values=VALUES, log_x=st.booleans(), from_zero=st.booleans())
def test_all_of_a_curve_is_inside_its_frame(
    values: list[float], log_x: bool, from_zero: bool
) -> None:
    x = range(1, len(values) + 1)
    line = Line(name="train", label="loss", x=x, y=values, smooth=True)
    chart = draw([line], title="t", log_x=log_x, from_zero=from_zero)
    (drawn,) = chart.lines
    for path in (drawn.path, drawn.smooth_path):
        assert all(0 <= number <= SIDE for number in _numbers(path))
    assert len(_numbers(drawn.path)) == 2 * len(values)
    places = [place for place, _ in (*chart.x_ticks, *chart.y_ticks)]
    assert all(0 <= place <= 100 for place in places)
    assert chart.y_ticks or chart.is_log


def test_a_long_curve_keeps_its_spikes_and_its_ends() -> None:
    y = np.sin(np.arange(100_000) / 7000)
    y[54_321], y[77_777] = 50.0, -50.0
    x = np.arange(100_000, dtype=np.float64)
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= MAX_POINTS
    assert (thin_y.max(), thin_y.min()) == (50, -50)
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert (np.diff(thin_x) > 0).all()
    assert all(y[int(place)] == value for place, value in zip(thin_x, thin_y, strict=True))
    _, mean_y = means(x, y)
    assert mean_y.mean() == pytest.approx(y.mean(), abs=1e-9)


def test_a_short_curve_is_drawn_as_it_is() -> None:
    x, y = np.arange(900.0), np.arange(900.0) ** 2
    assert np.array_equal(thin(x, y)[1], y)


def test_smoothing_does_not_lag_and_keeps_what_is_flat() -> None:
    flat = smoothed(np.full(50, 3.0))
    assert flat == pytest.approx(np.full(50, 3.0))
    line = np.arange(400.0)
    assert smoothed(line)[200] == pytest.approx(200, abs=1)
    noise = np.random.default_rng(0).normal(size=500)
    assert smoothed(noise).std() < 0.5 * noise.std()
    assert np.array_equal(smoothed(noise, 0.0), noise)


def test_a_few_large_values_make_the_axis_logarithmic() -> None:
    y = [1.0] * 50 + [2000.0]
    line = Line(name="train", label="norm", x=range(51), y=y)
    assert draw([line], title="t").is_log
    assert not draw([line], title="t", from_zero=True).is_log


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (0.0002, "2e-4"), (1500, "1500"), (20_000, "20k"), (3e6, "3M")],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_strength_is_drawn_with_the_point_that_is_recommended() -> None:
    points = tuple(StrengthPoint(strength=n / 10, val_loss=1 + n, anchor_kl=n / 100)
                   for n in range(13))  # fmt: skip
    loss, drift = strength_charts(Strength(points=points, recommended=0.6, why=""))
    assert loss.mark == drift.mark == 50
    assert loss.lines[0].told == "7 at 0.6"
    assert len(loss.lines[0].dots) == 13


def test_learning_rates_are_on_a_logarithmic_axis() -> None:
    points = tuple(RatePoint(learning_rate=10.0**-n, val_loss=float(n)) for n in (2, 3, 4))
    chart = rate_chart(FoundRate(points=points, chosen=1e-3))
    assert chart is not None
    assert chart.mark == pytest.approx(50)
    assert rate_chart(FoundRate(points=points[:1])) is None


def test_intervals_are_drawn_where_they_are() -> None:
    points = tuple(SharePoint(share=n / 4, rows=100 * n, val_loss=1 / n, low=1 / n - 0.1,
                              high=1 / n + 0.1) for n in (1, 2, 4))  # fmt: skip
    chart = more_data_chart(MoreData(points=points))
    assert chart is not None
    (line,) = chart.lines
    for (x, _), (at, low, high) in zip(line.dots, line.bars, strict=True):
        assert x == at
        assert 0 <= high < low <= 100
    assert math.isclose(line.bars[0][1] - line.bars[0][2], line.bars[1][1] - line.bars[1][2],
                        abs_tol=0.02)  # fmt: skip
