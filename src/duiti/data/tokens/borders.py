"""Where a byte-level tokenizer certainly splits a text: a proof from its patterns.

    borders = find_borders(pre_tokenizer)        # its JSON; raises Unsafe with the reason
    borders.words.findall(text)                  # cut before spaces
    borders.pieces.findall(text)                 # cut finer, where ASCII allows it

Joined again, the parts are the text. The tokenizer splits between two characters `a` and `b` of a
text, and gives both sides the pre-tokens that they have on their own, if

1. `a` is solid (graphic ASCII, a letter, a digit, certain punctuation: never white space);
2. no match of a pattern reaches from `a` to `b`. In a match, neighbours are made by neighbouring
   atoms (Glushkov's positions), so it is enough that of no two neighbouring atoms the first takes
   `a` and the second `b`;
3. no pattern looks behind, or further ahead than one character, and it looks ahead only behind
   white space, as `\\s+(?!\\S)` does: so, with 2, the matcher finds the same in front of `b` as in
   front of the end of a text, and the same from `b` on as at the start of one;
4. some pattern can start a match at any `a`, or at any `b`, whatever stands around: so the text
   between two matches ends there too. No match is empty.

Such a place is a *border*. With a space for `b`, they are looked for behind all solid characters,
and NFC may be done before or after cutting: it joins nothing to what stands before a space. Other
borders are looked for between characters of ASCII, in a text that no normalizer changes.

What a class takes is asked of the library; whether it takes white space only is read from how it is
written. Whatever is not understood is unsafe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from duiti.data.tokens.patterns import ASCII, GRAPHIC, WHITE, Unsafe, follow, read, starts, taken
from duiti.types import Json

SOLID = r"!-~\w\u2010-\u2027\u3001-\u3020\uff01-\uff65"
"""What no version of Unicode takes for white space, as the inside of a class."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel(use_regex=True)`."""

# What `Digits` does, as patterns: it takes nothing else.
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}+"
_KEEPS_MATCHES = {("Isolated", False), ("Isolated", True), ("Removed", True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Borders:
    """How to cut a text at borders, coarsely and finely."""

    words: re.Pattern[str]
    """Matches from a space behind a solid character to the next."""
    pieces: re.Pattern[str]
    """Matches from any border to the next."""


def find_borders(pre_tokenizer: Json) -> Borders:
    """How to cut a text, by a pre-tokenizer given as its JSON.

    Raises:
        Unsafe: it is not proven that the tokenizer splits before spaces.
    """
    patterns = [read(pattern) for pattern in _patterns(pre_tokenizer)]
    follows = [follow(pattern) for pattern in patterns]
    if any(each.is_empty for each in follows):
        raise Unsafe("a pattern of its pre-tokenizer can match nothing")
    pairs = frozenset[tuple[str, str]]().union(*(each.pairs for each in follows))
    takes = {atom: taken(atom) for pair in pairs for atom in pair}
    if any(not WHITE.fullmatch(first) and " " in takes[second] for first, second in pairs):
        raise Unsafe("a pattern of its pre-tokenizer reaches over a space")
    always = set[str]().union(*map(starts, patterns))
    if " " not in always:
        raise Unsafe("no pattern of its pre-tokenizer takes every space")
    joined = {a: set[str]() if a in always else set(ASCII) - always for a in GRAPHIC}
    for first, second in pairs:
        for a in takes[first] & set(GRAPHIC):
            joined[a] |= takes[second]
    return Borders(words=_words(), pieces=_pieces(joined))


def _words() -> re.Pattern[str]:
    return re.compile(rf"(?s:.[^ ]*+(?:(?<![{SOLID}]) ++[^ ]*+)*+)")


def _pieces(joined: dict[str, set[str]]) -> re.Pattern[str]:
    """From each character on: what may not be cut from it, as far as it goes."""
    alike: dict[frozenset[str], str] = {}
    for a, others in joined.items():
        cut = frozenset(ASCII) - others
        alike[cut] = alike.get(cut, "") + a
    ways = []
    for cut, before in sorted(alike.items(), key=lambda item: -len(item[1])):
        same = "".join(a for a in before if a not in cut)
        run = f"[{re.escape(same)}]++|" if same else ""
        ways.append(f"(?<=[{re.escape(before)}])(?:{run}[^{re.escape(''.join(sorted(cut)))}])")
    ways.append(rf"(?<=[^!-~])(?:[^ -~]++|[^ ])|(?<![{SOLID}]) ++")
    return re.compile(rf"(?s:.(?:{'|'.join(ways)})*+)")


def _patterns(pre_tokenizer: Json) -> list[str]:
    """The patterns that split one after the other."""
    if not isinstance(pre_tokenizer, dict):
        raise Unsafe("it has no pre-tokenizer")
    is_sequence = pre_tokenizer["type"] == "Sequence"
    listed = pre_tokenizer["pretokenizers"] if is_sequence else [pre_tokenizer]
    parts = cast("list[dict[str, Any]]", listed)
    if not parts or parts[-1]["type"] != "ByteLevel":
        raise Unsafe("its pre-tokenizer does not end in ByteLevel")
    if parts[-1]["add_prefix_space"]:
        raise Unsafe("it puts a space before a text")
    patterns = [_pattern(part) for part in parts[:-1]]
    if parts[-1]["use_regex"]:
        patterns.append(GPT2)
    if not patterns:
        raise Unsafe("its pre-tokenizer does not split at spaces")
    return patterns


def _pattern(part: dict[str, Any]) -> str:
    if part["type"] == "Digits":
        return _DIGIT if part["individual_digits"] else _DIGITS
    if part["type"] != "Split" or "Regex" not in part["pattern"]:
        raise Unsafe(f"its pre-tokenizer contains a {part['type']} that has no pattern")
    if (part["behavior"], part["invert"]) not in _KEEPS_MATCHES:
        raise Unsafe("its pre-tokenizer joins or removes what it splits at")
    return str(part["pattern"]["Regex"])
