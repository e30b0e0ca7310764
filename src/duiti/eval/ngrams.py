"""BLEU and chrF as sacrebleu defines them, as numbers that are added up over rows.

    sums, value, num_sums = bleu()
    value(sums(answer, expected))        # 0.0 to 1.0: sacrebleu's figure by 100

Both are figures of a whole text, not means over rows: n-grams are counted in every row, and the
counts are added. So a bootstrap draws rows and adds up their counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TypeAlias

import numpy as np

from duiti.errors import UsageError
from duiti.eval.bootstrap import Floats
from duiti.eval.language import script

Sums: TypeAlias = Callable[[str, str], Sequence[float]]
Value: TypeAlias = Callable[[Floats], Floats]

WORDS, CHARACTERS = 4, 6
"""The longest n-grams of BLEU (Papineni et al. 2002) and of chrF (Popović 2015)."""
_BETA = 2
"""Recall weighs so much more than precision in chrF2."""


def bleu() -> tuple[Sums, Value, int]:
    """Words are sacrebleu's `13a`; characters (`zh`) where the expected answer is Chinese, and
    single characters (`char`) where it is Japanese, Thai, Lao, Khmer or Burmese.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    try:
        metrics = import_module("sacrebleu.metrics")
    except ImportError:
        raise UsageError(
            "the metric bleu needs sacrebleu, which is not installed",
            fix="pip install 'duiti[metrics]'",
        ) from None
    known = {how: metrics.BLEU(tokenize=how, effective_order=True) for how in ("13a", "zh", "char")}

    def sums(answer: str, expected: str) -> Sequence[float]:
        kind = script(expected)
        how = "zh" if kind == "Chinese" else "char" if kind in _NO_SPACES else "13a"
        found = known[how].sentence_score(answer, [expected])
        return (found.sys_len, found.ref_len, *found.counts, *found.totals)

    def value(totals: Floats) -> Floats:
        flat = totals.reshape(-1, totals.shape[-1])
        figures = [
            metrics.BLEU.compute_bleu(
                correct=[int(n) for n in row[2 : 2 + WORDS]],
                total=[int(n) for n in row[2 + WORDS :]],
                sys_len=int(row[0]),
                ref_len=int(row[1]),
                smooth_method="exp",
            ).score
            / 100
            for row in flat
        ]
        return np.array(figures, np.float64).reshape(totals.shape[:-1])

    return sums, value, 2 + 2 * WORDS


_NO_SPACES = frozenset({"Japanese", "Thai", "Lao", "Khmer", "Myanmar"})


def chrf() -> tuple[Sums, Value, int]:
    """chrF2 of characters, white space aside: no words, so no language needs a tokenizer."""

    def sums(answer: str, expected: str) -> Sequence[float]:
        found, wanted = "".join(answer.split()), "".join(expected.split())
        counts: list[int] = []
        for length in range(1, CHARACTERS + 1):
            ours, theirs = _ngrams(found, length), _ngrams(wanted, length)
            # As in sacrebleu: where the expected text is shorter than this, nothing is counted.
            counts += (ours.total() if theirs else 0), theirs.total(), (ours & theirs).total()
        return counts

    def value(totals: Floats) -> Floats:
        parts = totals.reshape(*totals.shape[:-1], CHARACTERS, 3)
        ours, theirs, both = parts[..., 0], parts[..., 1], parts[..., 2]
        counted = (ours > 0) & (theirs > 0)  # lengths that both texts have
        orders = counted.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(counted, both / ours, 0).sum(axis=-1) / orders
            recall = np.where(counted, both / theirs, 0).sum(axis=-1) / orders
            figure = (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)
        return np.where((orders > 0) & (precision + recall > 0), figure, 0.0)

    return sums, value, 3 * CHARACTERS


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[i : i + length] for i in range(len(text) - length + 1))
