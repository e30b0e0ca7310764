"""Numbers for people: memory, time, and what was measured beside the loss.

gigabytes(1_400_000_000), clock(65)            # 1.4 GB, 1:05
measured_text({"val_loss": 1.25})              # ["val 1.2500"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_NAMES = {
    "val_loss": "val",
    "anchor_kl": "anchor kl",
    "anchor_nll_change": "anchor nll",
    "drift_kl": "drift",
}
"""What keys of `metrics.jsonl` are called in a line, where that is shorter."""
_SIGNED = frozenset({"anchor_nll_change"})
"""Differences: a plus says so."""


def gigabytes(count: int) -> str:
    """`1.4 GB` (decimal)."""
    return f"{count / 1e9:.1f} GB"


def megabytes(count: int) -> str:
    """`4.6 MB`, from a thousand of them on `4.6 GB` (decimal)."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else gigabytes(count)


def clock(seconds: float) -> str:
    """`1:05`, `2:10:00`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def measured_text(measured: Mapping[str, float]) -> list[str]:
    """A short text for each figure, by its key in `metrics.jsonl`."""
    return [f"{_name(key)} {figure(key, value)}" for key, value in measured.items()]


def figure(key: str, value: float) -> str:
    """The number with as many digits as are worth reading; whole ones as they are."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 100):
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:+.1e}" if key in _SIGNED else f"{value:.1e}"
    return f"{value:+.4f}" if key in _SIGNED else f"{value:.4f}"


def _name(key: str) -> str:
    return _NAMES.get(key) or key.removeprefix("val_")
