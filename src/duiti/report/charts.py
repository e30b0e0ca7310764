"""Curves as plain SVG: paths in a square of 1,000 × 1,000, places on axes as shares of 100.

    chart = draw([Line(name="loss", label="training loss", x=steps, y=losses, smooth=True)])
    chart.lines[0].path; chart.x_ticks; chart.data

The page's template puts the square, stretched, below labels that are placed in percent: so a curve
fits every width, and its text keeps its size. Curves longer than `MAX_POINTS` keep the lowest and
the highest value of every stretch, so that no spike is lost; the smoothed line goes through the
means. `data` has the same numbers for the page's script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MAX_POINTS = 1000
MAX_DOTS = 60
"""Points up to which each is marked."""
SIDE = 1000
SMOOTHING = 0.8
"""Of the line that is drawn without scripts: weight of the past at every one of 100 points."""
LOG_FROM = 100
"""Values are on a logarithmic axis where the largest is so many times a usual small one."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve."""

    name: str
    """Of its style: what it looks like follows from that."""
    label: str
    x: Sequence[float] | npt.NDArray[np.generic]
    y: Sequence[float] | npt.NDArray[np.generic]
    smooth: bool = False
    """Whether it is noisy: then a smoothed line goes through it."""
    low: Sequence[float | None] = ()
    """Lower ends of intervals, where there are any."""
    high: Sequence[float | None] = ()
    told: str = ""
    """The number that stands beside its name; empty: its last value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """One curve, drawn."""

    name: str
    label: str
    path: str
    smooth_path: str
    """Empty: it is not noisy."""
    dots: Sequence[tuple[float, float]]
    """Where its points are, in percent; none where they are many."""
    bars: Sequence[tuple[float, float, float]]
    """Intervals: where, from, to, in percent."""
    told: str
    """The number that stands beside its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture."""

    title: str
    note: str
    lines: Sequence[DrawnLine]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    """From the top down, in percent."""
    is_log: bool
    mark: float | None
    """A place on the x axis to point out, in percent."""
    mark_label: str
    x_label: str
    summary: str
    """What it shows, for those who cannot see it."""
    data: dict[str, object] = field(default_factory=dict)
    is_wide: bool = False


def draw(
    lines: Sequence[Line],
    *,
    title: str,
    note: str = "",
    x_label: str = "step",
    log_x: bool = False,
    from_zero: bool = False,
    mark: float | None = None,
    mark_label: str = "",
    is_wide: bool = False,
) -> Chart:
    """A chart of some lines with common axes; at least one of them has a point.

    Args:
        log_x: the x axis is logarithmic.
        from_zero: the y axis begins at zero, and is never logarithmic.
        mark: a place on the x axis to point out.
    """
    xs = np.concatenate([np.asarray(line.x, dtype=np.float64) for line in lines])
    ys = np.concatenate([_all_y(line) for line in lines])
    axis_x = _Axis.of(xs, is_log=log_x)
    axis_y = _y_axis(ys, from_zero=from_zero)
    drawn, data = [], []
    for line in lines:
        one, numbers = _draw_line(line, axis_x, axis_y)
        drawn.append(one)
        data.append(numbers)
    return Chart(
        title=title,
        note=note,
        lines=drawn,
        x_ticks=_x_ticks(axis_x, x_label),
        y_ticks=[(_percent(1 - axis_y.place(tick)), compact(tick)) for tick in axis_y.ticks(4)],
        is_log=axis_y.is_log,
        mark=None if mark is None else _percent(min(1.0, max(0.0, axis_x.place(mark)))),
        mark_label=mark_label,
        x_label=x_label,
        summary=_summary(title, lines, x_label),
        data={
            "x": [axis_x.low, axis_x.high, axis_x.is_log],
            "y": [axis_y.low, axis_y.high, axis_y.is_log],
            "label": x_label,
            "lines": data,
        },
        is_wide=is_wide,
    )


def thin(x: Floats, y: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """At most so many points: of every stretch of a longer curve the lowest and the highest, and
    the first and the last of all."""
    if len(x) <= limit:
        return x, y
    kept = {0, len(x) - 1}
    for part in _stretches(len(x), limit // 2 - 1):
        kept |= {part.start + int(y[part].argmin()), part.start + int(y[part].argmax())}
    index = np.array(sorted(kept))
    return x[index], y[index]


def means(x: Floats, y: Floats, limit: int = MAX_POINTS // 2) -> tuple[Floats, Floats]:
    """At most so many points: of every stretch of a longer curve its mean, at its middle."""
    if len(x) <= limit:
        return x, y
    parts = _stretches(len(x), limit)
    return (
        np.array([x[part].mean() for part in parts]),
        np.array([y[part].mean() for part in parts]),
    )


def smoothed(values: Floats, weight: float = SMOOTHING) -> Floats:
    """An exponential mean of what is on both sides, so that nothing lags.

    `weight` is as if there were 100 points: the same share of a curve is looked at, whatever its
    length."""
    keep = weight ** (100 / max(100, len(values))) if weight > 0 else 0.0
    left, left_weight = _one_way(values, keep)
    right, right_weight = (found[::-1] for found in _one_way(values[::-1], keep))
    return (left + right) / (left_weight + right_weight)


def _one_way(values: Floats, keep: float) -> tuple[Floats, Floats]:
    """Sums with exponential weights up to each value, and the sums of the weights."""
    sums, weights = np.empty_like(values), np.empty_like(values)
    sum_, weight = 0.0, 0.0
    for index, value in enumerate(values.tolist()):
        sum_, weight = keep * sum_ + (1 - keep) * value, keep * weight + (1 - keep)
        sums[index], weights[index] = sum_, weight
    return sums, weights


def compact(value: float) -> str:
    """A number for an axis: `20k`, `0.05`, `3e-5`."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class _Axis:
    """A scale from `low` to `high`, both shown."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, values: Floats, *, is_log: bool = False) -> _Axis:
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
        return cls(low, high, is_log)

    def place(self, value: float) -> float:
        """As a share of the axis."""
        return float(self.places(np.array([value], dtype=np.float64))[0])

    def places(self, values: Floats) -> Floats:
        if not self.is_log:
            return np.asarray((values - self.low) / (self.high - self.low))
        low, high = math.log(self.low), math.log(self.high)
        floor = np.maximum(values, self.low)
        return np.asarray((np.log(floor) - low) / (high - low))

    def ticks(self, most: int) -> list[float]:
        """Round numbers on the axis."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            inside = [tick for tick in found if self._has(tick)]
            if len(inside) > most + 1:
                inside = [tick for tick in inside if f"{tick:e}".startswith("1.0")]
            return inside[:: max(1, math.ceil(len(inside) / most))]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        found = [step * number for number in range(first, first + most + 2)]
        return [round(tick, 12) for tick in found if self._has(tick)]

    def _has(self, tick: float) -> bool:
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= tick <= self.high + slack


def _x_ticks(axis: _Axis, label: str) -> list[tuple[float, str]]:
    """Ticks to the right of the axis's name, which stands at its beginning."""
    room = 3 + 2 * len(label)
    places = [(_percent(axis.place(tick)), compact(tick)) for tick in axis.ticks(6)]
    return [(place, text) for place, text in places if place > room]


def _y_axis(values: Floats, *, from_zero: bool) -> _Axis:
    """A scale with round ends; logarithmic where a few values dwarf the others."""
    low, high = float(values.min()), float(values.max())
    usual = float(np.percentile(values, 5))
    if not from_zero and low > 0 and high > LOG_FROM * usual:
        return _Axis(low * 0.9, high * 1.1, True)
    if from_zero or (low > 0 and low < 0.5 * high):
        low = min(low, 0.0)
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else sorted((0.0, low * 1.25))
    step = _round_step((high - low) / 4)
    return _Axis(step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9), False)


def _draw_line(line: Line, axis_x: _Axis, axis_y: _Axis) -> tuple[DrawnLine, dict[str, object]]:
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    thin_x, thin_y = thin(x, y)
    data: dict[str, object] = {
        "name": line.name,
        "label": line.label,
        "x": _numbers(thin_x),
        "y": _numbers(thin_y),
    }
    smooth_path = ""
    if line.smooth and len(x) > 2:
        mean_x, mean_y = means(x, y)
        if len(mean_x) < len(x):
            data |= {"meanX": _numbers(mean_x), "meanY": _numbers(mean_y)}
        smooth_path = _path(axis_x.places(mean_x), axis_y.places(smoothed(mean_y)))
        data["smooth"] = True
    at_x, at_y = axis_x.places(thin_x), axis_y.places(thin_y)
    dots = zip(at_x, at_y, strict=True) if len(at_x) <= MAX_DOTS and not line.smooth else ()
    intervals = zip(at_x, line.low, line.high, strict=False) if line.low else ()
    return DrawnLine(
        name=line.name,
        label=line.label,
        path=_path(at_x, at_y),
        smooth_path=smooth_path,
        dots=[(_percent(a), _percent(1 - b)) for a, b in dots],
        bars=[
            (_percent(a), _percent(1 - axis_y.place(low)), _percent(1 - axis_y.place(high)))
            for a, low, high in intervals
            if low is not None and high is not None
        ],
        told=line.told or compact(float(f"{y[-1]:.3g}")),
    ), data


def _all_y(line: Line) -> Floats:
    ends = [value for value in (*line.low, *line.high) if value is not None]
    return np.concatenate([np.asarray(line.y, dtype=np.float64), np.array(ends, dtype=np.float64)])


def _path(x: Floats, y: Floats) -> str:
    points = zip(np.rint(SIDE * x).tolist(), np.rint(SIDE * (1 - y)).tolist(), strict=True)
    return "M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in points)


def _numbers(values: Floats) -> list[float | int]:
    """Four digits, as short as JSON allows."""
    if np.array_equal(values, np.rint(values)) and len(values):
        return [int(value) for value in values]
    return [float(f"{value:.4g}") for value in values.tolist()]


def _summary(title: str, lines: Sequence[Line], x_label: str) -> str:
    told = [
        f"{line.label} goes from {float(line.y[0]):.3g} to {float(line.y[-1]):.3g}"
        for line in lines
    ]
    return f"{title} by {x_label}: {'; '.join(told)}"


def _stretches(length: int, count: int) -> list[slice]:
    edges = [length * number // count for number in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _round_step(least: float) -> float:
    """The least of 1, 2, 2.5, 5 × a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= least * (1 - 1e-9))


def _percent(share: float) -> float:
    return round(100 * float(share), 2)
