"""The numbers of an evaluation as the lines of a table, base beside tuned.

for line in measures_of(data.evaluation):
    line.name, line.before, line.after, line.change, line.interval
"""

from __future__ import annotations

from dataclasses import dataclass

from duiti.report.folder import Evaluation
from duiti.report.words import percent, spoken


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A line of the table of held-out numbers."""

    name: str
    before: str
    after: str
    change: str
    interval: str


def measures_of(evaluation: Evaluation) -> list[Measure]:
    """All of them, as text."""
    found = []
    for name, after in evaluation.tuned.items():
        before, change = evaluation.base.get(name), evaluation.change.get(name)
        is_share = name not in ("loss", "perplexity", "length_ratio") and all(
            value is None or 0 <= value <= 1 for value in (before, after)
        )
        low = change.low if change is not None else None
        high = change.high if change is not None else None
        mean = change.mean if change is not None else None
        found.append(
            Measure(
                name=spoken(name),
                before=_value(before, is_share=is_share),
                after=_value(after, is_share=is_share),
                change=_signed(mean, is_share=is_share),
                interval=""
                if low is None or high is None
                else f"{_signed(low, is_share=is_share)} … {_signed(high, is_share=is_share)}",
            )
        )
    return found


def _value(value: float | None, *, is_share: bool) -> str:
    if value is None:
        return "–"
    if is_share:
        return percent(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}"


def _signed(value: float | None, *, is_share: bool) -> str:
    """A change; of shares in points."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if is_share else f"{value:+.3g}"
    if value == 0:
        return "0"
    return text.replace("-", "\u2212")
