"""Texts made comparable: full-width forms and punctuation, words, and characters where a language
has no spaces.

    plain("Ｈ２Ｏ，是水。")          # "H2O,是水."
    words("H2O 是水")              # ["h2o", "是", "水"]
    squad_words("The cat, 猫！")    # ["cat", "猫"]
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache

_SIGNS = str.maketrans(
    {
        "。": ".", "、": ",", "〈": "<", "〉": ">", "《": "<", "》": ">", "「": '"', "」": '"',
        "『": '"', "』": '"', "【": "[", "】": "]", "〔": "[", "〕": "]", "〖": "[", "〗": "]",
        "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'",
        "–": "-", "—": "-", "―": "-", "－": "-", "〜": "~", "・": "·",
    }
)  # fmt: skip
"""What NFKC leaves: signs that are written otherwise and mean the same."""

ALONE = frozenset({"Han", "Kana", "Thai", "Lao", "Khmer", "Myanmar"})
"""Scripts without spaces between words: every character is counted by itself."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def plain(text: str) -> str:
    """Full-width forms and typographic signs as ASCII has them."""
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


@lru_cache(maxsize=2**16)
def script_of(character: str) -> str:
    """`Latin`, `Han`, `Kana`, … of a letter; empty for digits, signs and space."""
    if not unicodedata.category(character).startswith(("L", "M")):
        return ""
    name = unicodedata.name(character, "")
    if name.startswith(("CJK", "IDEOGRAPHIC")):
        return "Han"
    if name.startswith(("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA")):
        return "Kana"
    first = name.partition(" ")[0].partition("-")[0]
    return "" if first in ("COMBINING", "MODIFIER", "FULLWIDTH") else first.capitalize()


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; characters where there are no spaces."""
    return _split(plain(text).lower())


def squad_words(text: str) -> list[str]:
    """As SQuAD compares answers (Rajpurkar et al. 2016): in lower case, punctuation dropped without
    leaving a gap, no English articles; and Chinese by character, as in CMRC."""
    low = plain(text).lower()
    kept = "".join(c for c in low if not _is_sign(c))
    return [word for part in _ARTICLES.sub(" ", kept).split() for word in _cut(part)]


def _is_sign(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _split(text: str) -> list[str]:
    spaced = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    return [word for part in spaced.split() for word in _cut(part)]


def _cut(word: str) -> list[str]:
    """A run without spaces: its characters where the script knows no spaces, and what is between
    them."""
    if word.isascii():
        return [word]
    found: list[str] = []
    is_open = False
    for character in word:
        alone = script_of(character) in ALONE
        if alone or not is_open:
            found.append(character)
        else:
            found[-1] += character
        is_open = not alone
    return found
