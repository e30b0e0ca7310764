"""Scores of an answer against the expected one.

    for metric in find_metrics(["exact_match", "regex:^[0-9]+$", "bleu", "mine.py:score"]):
        sums = metric.sums(answer, expected)            # of this row
        metric.value(all_sums.sum(axis=0))              # of all rows

A metric gives numbers that are added up over rows, and says what their sums mean: most are a score
and a 1, whose quotient is the mean; BLEU and chrF add up counts, as their definitions say.

To add one: a function of two texts below, a line in MEANS, a row in docs/evaluation.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from duiti.errors import UsageError, did_you_mean
from duiti.eval.bootstrap import Floats
from duiti.eval.ngrams import bleu, chrf
from duiti.eval.patterns import matcher
from duiti.eval.texts import plain, squad_words, words
from duiti.eval.user_metric import user_metric

Score = Callable[[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is measured of answers."""

    name: str
    """As it was asked for; the key in every report."""
    num_sums: int
    """How many numbers a row gives."""
    sums: Callable[[str, str], Sequence[float]]
    """Those numbers, of an answer and the expected one."""
    value: Callable[[Floats], Floats]
    """[…, K] sums over rows to […] figures; what does not exist is NaN."""


def quotient(sums: Floats) -> Floats:
    """[…, 2] to […]: the first by the second; NaN where there is nothing to divide by."""
    above, below = sums[..., 0], sums[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below == 0, np.nan, above / below)


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the texts are equal, but for white space around them."""
    return float(answer.strip() == expected.strip())


def contains(answer: str, expected: str) -> float:
    """1.0 if the expected text stands in the answer; case, full-width forms and the kind and number
    of spaces do not matter. An empty one is contained in an empty answer only."""
    found, wanted = _loose(answer), _loose(expected)
    return float(wanted in found if wanted else not found)


def json_valid(answer: str, expected: str) -> float:
    """1.0 if the whole answer is one JSON value."""
    try:
        # An integer of any length is valid, and is not to be computed.
        json.loads(answer, parse_constant=_refuse, parse_int=str)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of words (`texts.squad_words`), order aside."""
    found, wanted = squad_words(answer), squad_words(expected)
    return _f1((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))


def rouge_l(answer: str, expected: str) -> float:
    """The same of the longest common subsequence of words (Lin 2004), without stemming."""
    found, wanted = words(answer), words(expected)
    return _f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length; a row of the usual table is the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for word in other:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & everywhere
    return len(one) - row.bit_count()


MEANS: dict[str, Score] = {
    "exact_match": exact_match,
    "contains": contains,
    "json_valid": json_valid,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}
"""Metrics that are a mean over answers."""
KNOWN = (*MEANS, "bleu", "chrf", "regex:PATTERN", "FILE.py:FUNCTION")


def find_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UsageError: there is none, or what it needs is not there.
    """
    if name in MEANS:
        return _mean(name, MEANS[name])
    if name.startswith("regex:"):
        return _mean(name, matcher(name.removeprefix("regex:")))
    if ".py:" in name:
        return _mean(name, user_metric(name))
    if name == "bleu":
        sums, value, num_sums = bleu()
        return Metric(name=name, num_sums=num_sums, sums=sums, value=value)
    if name == "chrf":
        sums, value, num_sums = chrf()
        return Metric(name=name, num_sums=num_sums, sums=sums, value=value)
    hint = did_you_mean(name, (*MEANS, "bleu", "chrf"))
    raise UsageError(f"no metric {name}.{hint}", fix=f"known: {', '.join(KNOWN)}")


def find_metrics(names: Collection[str]) -> tuple[Metric, ...]:
    """All of them, each once.

    Raises:
        UsageError: as `find_metric`.
    """
    return tuple(find_metric(name) for name in dict.fromkeys(names))


def _mean(name: str, score: Score) -> Metric:
    return Metric(name=name, num_sums=2, sums=lambda a, e: (score(a, e), 1.0), value=quotient)


def _loose(text: str) -> str:
    return " ".join(plain(text).casefold().split())


def _f1(common: int, num_found: int, num_wanted: int) -> float:
    if not num_found and not num_wanted:
        return 1.0
    return 2 * common / (num_found + num_wanted)


def _refuse(constant: str) -> float:
    raise ValueError(constant)  # NaN and Infinity, which Python reads and JSON does not know
