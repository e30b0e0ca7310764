"""What a pattern of the library (Oniguruma) can match next to what: its syntax, read with care.

    lexemes = read(pattern)                # raises Unsafe where something is not understood
    follow(lexemes).pairs                  # neighbouring atoms
    starts(lexemes)                        # ASCII at which a match always can start
    taken(atom)                            # the ASCII that an atom takes

An *atom* takes one character: a letter, an escape, a class, as it is written. Atoms with the same
text count as one. What a class takes is asked of the library. It is not read what a pattern
matches, only what stands next to what in it (Glushkov's construction): looking ahead, atomic groups
and possessive quantifiers can only take matches away from that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

GRAPHIC = "".join(map(chr, range(0x21, 0x7F)))
ASCII = "\t\n\r " + GRAPHIC
"""The characters that atoms are asked about."""

# Left out on purpose: anchors, back references, look-behind, inline options, named groups, and
# `{n}?` and `{n}+`, which mean something else in Oniguruma.
_LEXEMES = re.compile(
    r"""(?P<open> \( (?: \?i?: | \?> | \?! )? )
      | (?P<close> \) )
      | (?P<bar> \| )
      | (?P<many> [?*+][?+]? | \{\d+(?:,\d*)?\}(?![?+]) )
      | (?P<atom> \\[pP]\{\^?[A-Za-z_]+\} | \\[sSdDwWhHrntfv]
                | \\x[0-9A-Fa-f]{2} | \\u[0-9A-Fa-f]{4} | \\[^\w\s]
                | \[\^?(?: \\. | [^\[\]\\] | \[\^?(?:\\.|[^\[\]\\])+\] )+\]
                | [^\\()|?*+{}\[\].^$] )""",
    re.VERBOSE | re.DOTALL,
)
WHITE = re.compile(r"(?:\\[srntfv]| )|\[(?:\\[srntfv]| )+\]")
"""Atoms that take white space only."""
# Of others, one atom might take two characters when case is ignored: ß and ss.
_CASELESS = re.compile(r"[!-~]|\[[A-Za-z]+\]")
_NOT_UNDERSTOOD = "a pattern of its pre-tokenizer is not understood"


class Unsafe(Exception):
    """What stands in the way of a proof."""


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A part of a pattern as it is written."""

    kind: str
    """`open`, `close`, `bar`, `many` or `atom`."""
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """An atom or a group, and how often."""

    part: list[Lexeme]
    how: str = ""
    """A quantifier, or nothing."""

    @property
    def is_optional(self) -> bool:
        return self.how.startswith(("?", "*", "{0"))


@dataclass(frozen=True, slots=True)
class Follow:
    """Which atoms can stand next to each other in what a part of a pattern matches."""

    is_empty: bool = True
    """Whether it can match nothing."""
    first: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    pairs: frozenset[tuple[str, str]] = frozenset()

    def __or__(self, other: Follow) -> Follow:
        return Follow(
            self.is_empty or other.is_empty,
            self.first | other.first,
            self.last | other.last,
            self.pairs | other.pairs,
        )

    def __add__(self, other: Follow) -> Follow:
        return Follow(
            self.is_empty and other.is_empty,
            self.first | other.first if self.is_empty else self.first,
            self.last | other.last if other.is_empty else other.last,
            self.pairs | other.pairs | {(a, b) for a in self.last for b in other.first},
        )


def read(pattern: str) -> list[Lexeme]:
    """A pattern as a list of its parts."""
    found = []
    position = 0
    while position < len(pattern):
        match = _LEXEMES.match(pattern, position)
        if match is None:
            raise Unsafe(_NOT_UNDERSTOOD)
        found.append(Lexeme(match.lastgroup or "", match[0]))
        position = match.end()
    return found


def follow(lexemes: list[Lexeme], *, is_caseless: bool = False) -> Follow:
    """Which atoms can stand next to each other in a match."""
    branches = [_sequence(branch, is_caseless=is_caseless) for branch in _branches(lexemes)]
    return reduce(Follow.__or__, branches)


def starts(lexemes: list[Lexeme]) -> set[str]:
    """ASCII at which a match can start whatever follows: an atom takes it, and all else in its
    branch may be left out."""
    found: set[str] = set()
    for branch in _branches(lexemes):
        needed = [number for number, item in enumerate(branch) if not item.is_optional]
        if len(needed) != 1 or not _is_once(branch[needed[0]]):
            continue
        before = branch[: needed[0]]
        greedy = [item.part for item in before if item.how.endswith("+")]  # gives nothing back
        if all(part[0].kind == "atom" for part in greedy):
            eaten = set[str]().union(*(taken(part[0].text) for part in greedy))
            found |= taken(branch[needed[0]].part[0].text) - eaten
    return found


def taken(atom: str) -> set[str]:
    """The characters of ASCII that an atom takes, as the library reads it."""
    try:
        left = Split(Regex(atom), "removed").pre_tokenize_str(ASCII)
    except Exception as error:  # the library has no narrower one
        raise Unsafe(_NOT_UNDERSTOOD) from error
    return set(ASCII) - set("".join(text for text, _ in left))


def _branches(lexemes: list[Lexeme]) -> list[list[Item]]:
    """What stands between the bars."""
    branches: list[list[Item]] = [[]]
    for part in _grouped(lexemes):
        branch = branches[-1]
        if part[0].kind == "bar":
            branches.append([])
        elif part[0].kind != "many":
            branch.append(Item(part))
        elif branch and not branch[-1].how:
            branch[-1] = Item(branch[-1].part, part[0].text)
        else:
            raise Unsafe(_NOT_UNDERSTOOD)
    return branches


def _grouped(lexemes: list[Lexeme]) -> Iterator[list[Lexeme]]:
    """Single lexemes, and groups from parenthesis to parenthesis."""
    start = depth = 0
    for number, lexeme in enumerate(lexemes):
        depth += {"open": 1, "close": -1}.get(lexeme.kind, 0)
        if depth < 0:
            break
        if depth == 0:
            yield lexemes[start : number + 1]
            start = number + 1
    if depth:
        raise Unsafe(_NOT_UNDERSTOOD)


def _sequence(branch: list[Item], *, is_caseless: bool) -> Follow:
    whole = Follow()
    for item in branch:
        if item.part[0].text == "(?!":
            is_behind_white = not whole.is_empty and all(map(WHITE.fullmatch, whole.last))
            is_short = [inside.kind for inside in item.part[1:-1]] == ["atom"]
            if item.how or not is_behind_white or not is_short:
                raise Unsafe("a pattern of its pre-tokenizer looks too far ahead")
            continue
        part = _part(item.part, is_caseless=is_caseless)
        again = part if item.how[:1] in ("", "?") else part + part  # how often does not matter
        is_empty = part.is_empty or item.is_optional
        whole = whole + Follow(is_empty, again.first, again.last, again.pairs)
    return whole


def _part(part: list[Lexeme], *, is_caseless: bool) -> Follow:
    head = part[0]
    if head.kind == "open":
        return follow(part[1:-1], is_caseless=is_caseless or head.text == "(?i:")
    if not is_caseless:
        return Follow(False, frozenset({head.text}), frozenset({head.text}))
    if not _CASELESS.fullmatch(head.text):
        raise Unsafe(_NOT_UNDERSTOOD)
    atom = frozenset({f"(?i:{head.text})"})
    return Follow(False, atom, atom)


def _is_once(item: Item) -> bool:
    """Whether an item takes a single character if need be."""
    return item.part[0].kind == "atom" and (
        not item.how or item.how.startswith(("+", "{1,", "{1}"))
    )
