"""Scores of one answer against the expected one. Each takes two texts and returns 0.0 to 1.0.

To add one: a function here, a line in METRICS, a row in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the texts are equal, but for white space around them."""
    return float(answer.strip() == expected.strip())


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match}
