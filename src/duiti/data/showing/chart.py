"""The two pictures of a page, as numbers: where tokens went, and how long examples are.

    draw_stack(supervised=60, context=30, dropped=10)    # a bar of shares
    draw_lengths(lengths, max_length)                    # a histogram with its limit

Places and widths are percentages, so that a picture fits any screen; the page's template makes the
SVG of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_BARS = 48
MIN_SHARE = 0.4
"""Percent: what is there can be seen, however little it is."""
LOG_FROM = 12
"""Lengths are on a logarithmic axis where the longest is so many times the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a stacked bar."""

    kind: str
    """The fate's name, as given."""
    count: int
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of the histogram: lengths from `low` to `high`, both inclusive."""

    low: int
    high: int
    count: int
    x: float
    width: float
    height: float
    """Percent of the tallest bar."""
    is_over: bool
    """All of its examples are longer than the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A histogram of the lengths of examples."""

    bars: Sequence[Bar]
    tallest: Bar
    ticks: Sequence[tuple[float, int]]
    """Where on the axis, and which length it is."""
    is_log: bool
    limit: float | None
    """Where the longest allowed length is; None: beyond the right edge."""
    median: int
    percentile_95: int
    longest: int
    num_over: int
    """Examples that are longer than the limit."""


def draw_stack(**counts: int) -> list[Part]:
    """A bar of the fates of tokens, left to right as given; empty where there are no tokens."""
    total = sum(counts.values())
    widths = {kind: max(MIN_SHARE, 100 * n / total) for kind, n in counts.items() if n}
    scale = 100 / sum(widths.values()) if widths else 0
    parts, x = [], 0.0
    for kind, width in widths.items():
        parts.append(Part(kind=kind, count=counts[kind], x=x, width=width * scale))
        x += width * scale
    return parts


def draw_lengths(
    lengths: Sequence[int] | npt.NDArray[np.integer], max_length: int
) -> Lengths | None:
    """The histogram, on a linear axis or, where few are very long, a logarithmic one."""
    values = np.asarray(lengths, dtype=np.int64)
    if not values.size:
        return None
    median, longest = int(np.percentile(values, 50, method="lower")), int(values.max())
    is_log = longest >= LOG_FROM * max(median, 1)
    edges = _log_edges(int(values.min()), longest) if is_log else _linear_edges(longest)
    counts = np.histogram(values, bins=edges)[0].tolist()

    def place(value: float) -> float:
        if not is_log:
            return 100 * value / edges[-1]
        return 100 * math.log(value / edges[0]) / math.log(edges[-1] / edges[0])

    bars = []
    for low, end, count in zip(edges, edges[1:], counts, strict=False):
        x, height = place(low), 100 * count / max(counts)
        width = place(end) - x
        bars.append(
            Bar(low=low, high=end - 1, count=count, x=x, width=width, height=height,
                is_over=low > max_length)
        )  # fmt: skip
    return Lengths(
        bars=bars,
        tallest=max(bars, key=lambda bar: bar.count),
        ticks=[(place(tick), tick) for tick in _ticks(edges, is_log)],
        is_log=is_log,
        limit=place(max_length) if edges[0] <= max_length <= edges[-1] else None,
        median=median,
        percentile_95=int(np.percentile(values, 95, method="lower")),
        longest=longest,
        num_over=int((values > max_length).sum()),
    )


def _linear_edges(longest: int) -> list[int]:
    width = _round_step(longest / MAX_BARS)
    return list(range(0, longest + width + 1, width))


def _log_edges(shortest: int, longest: int) -> list[int]:
    """Powers of two with equal steps between them: as many per doubling as bars allow, no two at
    the same integer."""
    low = max(0, math.floor(math.log2(max(shortest, 1))))
    high = math.floor(math.log2(longest)) + 1
    per_doubling = max(1, MAX_BARS // (high - low))
    steps = range(low * per_doubling, high * per_doubling + 1)
    return sorted({round(2 ** (step / per_doubling)) for step in steps})


def _ticks(edges: list[int], is_log: bool) -> list[int]:
    """Some five round lengths on the axis: what a phone has room for."""
    if is_log:
        low, high = edges[0].bit_length() - 1, edges[-1].bit_length() - 1
        return [2**power for power in range(low, high + 1, math.ceil((high - low) / 5))]
    step = _round_step(edges[-1] / 7)
    return list(range(0, edges[-1] + 1, step))


def _round_step(least: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … that is not below."""
    power: int = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
