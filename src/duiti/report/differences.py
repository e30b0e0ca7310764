"""Where an answer differs from the one that was expected: word by word, Chinese by character.

    for piece in differences("It is 42 °C.", expected="It is 40 °C."):
        piece.kind, piece.text        # same "It is ", missing "40", extra "42", same " °C."

The longest common subsequence, computed in the bits of whole numbers (Crochemore et al. 2001), so
that two thousand words take milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["same", "extra", "missing"]

LIKE = 0.5
"""Share of words in common (of both, twice the common ones by all; Dice's) below which two answers
are not compared: marks would be everywhere."""
WHOLE = 0.8
"""Share of the expected words from which they are compared, however long the answer goes on."""

_WIDE = (
    "\u2e80-\u2fff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Written without spaces: a character is what a word is elsewhere."""
_UNITS = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+|\s+|.", re.DOTALL)


class Piece(NamedTuple):
    """Neighbouring units of one kind."""

    kind: Kind
    text: str


def differences(answer: str, *, expected: str) -> list[Piece] | None:
    """The answer in pieces, with what it lacks; None where the two have hardly anything in common.

    The `same` and `extra` pieces joined are the answer, the `same` and `missing` ones what was
    expected."""
    if answer == expected:
        return [Piece("same", answer)] if answer else []
    left, right = _UNITS.findall(expected), _UNITS.findall(answer)
    pairs = _common(left, right)
    common, wanted, given = (_num_words(u) for u in ([left[i] for i, _ in pairs], left, right))
    if 2 * common < LIKE * (wanted + given) and common < WHOLE * wanted:
        return None
    found: list[Piece] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(left), len(right))]:
        found += [Piece("missing", "".join(left[i:next_i]))] if next_i > i else []
        found += [Piece("extra", "".join(right[j:next_j]))] if next_j > j else []
        if next_i < len(left):
            found.append(Piece("same", left[next_i]))
        i, j = next_i + 1, next_j + 1
    return _joined(found)


def _num_words(units: Sequence[str]) -> int:
    return sum(1 for unit in units if not unit.isspace())


def _common(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """Places of a longest common subsequence in both."""
    begin = 0
    while begin < min(len(left), len(right)) and left[begin] == right[begin]:
        begin += 1
    end = 0
    while end < min(len(left), len(right)) - begin and left[-1 - end] == right[-1 - end]:
        end += 1
    middle = _longest(left[begin : len(left) - end], right[begin : len(right) - end])
    return [
        *((i, i) for i in range(begin)),
        *((begin + i, begin + j) for i, j in middle),
        *((len(left) - k, len(right) - k) for k in range(end, 0, -1)),
    ]


def _longest(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """A row of bits per unit of `right`: bit i is 0 where the i-th unit of `left` makes the common
    subsequence of the two beginnings longer."""
    where: dict[str, int] = {}
    for i, unit in enumerate(left):
        where[unit] = where.get(unit, 0) | 1 << i
    mask = (1 << len(left)) - 1
    rows = [mask]
    for unit in right:
        row = rows[-1]
        matched = row & where.get(unit, 0)
        rows.append(((row + matched) | (row - matched)) & mask)
    pairs = []
    i, j = len(left) - 1, len(right)
    while i >= 0 and j > 0:
        if rows[j] >> i & 1:
            i -= 1  # this unit adds nothing
        elif not rows[j - 1] >> i & 1:
            j -= 1  # the same without the last unit of `right`
        else:
            pairs.append((i, j - 1))
            i, j = i - 1, j - 1
    return pairs[::-1]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind:
            found[-1] = Piece(piece.kind, found[-1].text + piece.text)
        else:
            found.append(piece)
    return found
