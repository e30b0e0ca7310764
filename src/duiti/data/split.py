"""A validation share that does not depend on the order of the rows.

    train, val = split(examples, share=0.05, seed=0)

A row's side is a function of its prompt and the seed alone, so the same question never stands on
both sides, and adding rows moves none of the old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from duiti.errors import UsageError
from duiti.types import IGNORE_INDEX, Example


def parse_share(text: str) -> float | None:
    """`"5%"` → 0.05; None where the text is no percentage (then it names a file).

    Raises:
        UsageError: a percentage that leaves one side empty.
    """
    if not text.endswith("%"):
        return None
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UsageError(f"val: {text} must lie between 0% and 100%")
    return share


def split(
    examples: Sequence[Example], *, share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into (train, val), rows kept whole, about `share` of the rows to val."""
    train: list[Example] = []
    val: list[Example] = []
    for _, group in groupby(examples, key=lambda example: example.origin):
        row = list(group)
        (val if _fraction(row[0], seed) < share else train).extend(row)
    return train, val


def _fraction(example: Example, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the first prompt's ids only."""
    end = int(np.argmax(example.labels != IGNORE_INDEX))
    digest = hashlib.sha256(f"{seed}:".encode() + example.input_ids[:end].tobytes()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
