"""A metric of the user's own: a function in a Python file.

    score = user_metric("mine.py:is_short")      # def is_short(answer: str, expected: str) -> float
    score("Paris.", "Paris")

It returns a finite number, or True or False; the metric is the mean over answers. It is trusted
code (`own_function`): nothing but the user's own flag or setting names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from duiti.data.reading.own_function import load_function
from duiti.errors import MetricError

HOW = "name a file and a function in it: --metric mine.py:score"


def user_metric(spec: str) -> Callable[[str, str], float]:
    """The metric that `FILE.py:FUNCTION` names. It raises MetricError where the function fails or
    returns no number; the reason names the exception and the line, never an answer.

    Raises:
        UsageError: no such file or function, or the file cannot be run.
    """
    own = load_function(spec, flag="--metric", how=HOW)

    def score(answer: str, expected: str) -> float:
        try:
            found: object = own.function(answer, expected)
        except (Exception, SystemExit) as error:
            raise MetricError(f"the metric {spec} raised {own.where(error)}") from None
        if not isinstance(found, int | float):
            what = f"a value of type {type(found).__name__}"
            raise MetricError(f"the metric {spec} returned {what}; a number is due")
        try:
            number = float(found)
        except OverflowError:  # a whole number may be larger than any float
            number = math.inf
        if not math.isfinite(number):
            raise MetricError(f"the metric {spec} returned a number that is not finite")
        return number

    return score
