"""The metric `regex:PATTERN`: does the pattern match somewhere in the answer?

    score = matcher("^[0-9]+$")
    score("42", "")                      # 1.0

The engine tries every way to match, which can take it years for a few characters. So a pattern is
tried on texts that patterns stumble over before anything is measured, and no answer takes longer
than a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from duiti.errors import MetricError, UsageError

LIMIT_S = 2.0
"""Of one answer; ordinary patterns take some microseconds."""
MAX_PATTERN = 4096
"""Characters."""
_UNITS = ("a", "A", "a ", " ", "\n", "1", "a1", ".", "-", "x=x", "(", "你", "é", '"a"', "a,", "1.")
_ENDS = ("", "!", "\x00")
_LENGTH = 400
"""Units of a text that is tried."""


def matcher(pattern: str) -> Callable[[str, str], float]:
    """1.0 where the pattern is found in the answer.

    Raises:
        UsageError: it is no pattern, or one that does not come to an end.
    """
    regex = import_module("regex")  # transformers' own; Python's `re` knows no limit of time
    if not pattern or len(pattern) > MAX_PATTERN:
        raise UsageError(
            f"regex: a pattern has 1 to {MAX_PATTERN} characters, this one {len(pattern)}"
        )
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UsageError(f"regex: {pattern!r} is no pattern: {error}") from None
    except (RecursionError, MemoryError):
        what = "regex: a pattern that is nested too deep, or repeats too much to be compiled"
        raise UsageError(what, fix="a simpler pattern") from None

    def matches(answer: str, expected: str) -> float:
        try:
            return float(compiled.search(answer, timeout=LIMIT_S) is not None)
        except TimeoutError:
            raise MetricError(
                f"regex: {pattern!r} does not come to an end on a text of {len(answer)} characters",
                why=f"it was tried for {LIMIT_S:.0f} s",
                fix="avoid repetitions inside repetitions, such as (a+)+",
            ) from None

    for unit in _UNITS:
        for end in _ENDS:
            matches(unit * _LENGTH + end, "")
    return matches
