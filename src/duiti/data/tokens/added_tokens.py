"""Finds a tokenizer's added tokens in a text, as the library does before it does anything else.

    added = AddedTokens(tokenizer)
    added.split(text)        # texts, and the int32 ids of the tokens between them as bytes
    added.is_odd(text)       # a token may be in it that `split` does not handle

Leftmost first, of several the longest. Tokens with `normalized` are looked for after the others,
in the normalized text of what is left. `normalizer` has to be NFC or None.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Normalizer


class AddedTokens:
    """The added tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._normalizer = tokenizer.normalizer
        raw: dict[str, bytes] = {}
        normalized: dict[str, bytes] = {}
        odd = []
        for number, token in tokenizer.get_added_tokens_decoder().items():
            ids = array("i", [number]).tobytes()
            if token.normalized:
                normalized[in_nfc(self._normalizer, token.content)] = ids
            else:
                raw[token.content] = ids
            if takes_more(token):
                odd.append(token.content)
        self._odd = _any_of(odd)
        self._raw, self._raw_ids = _any_of(raw), raw
        self._late, self._late_ids = _any_of(normalized), normalized

    def is_odd(self, text: str) -> bool:
        """Whether a text may hold a token that takes white space with it or must stand alone."""
        return self._odd is not None and self._odd.search(text) is not None

    def split(self, text: str) -> list[str | bytes]:
        """The texts between added tokens, and the int32 ids of these."""
        parts = _split(self._raw, self._raw_ids, text)
        if self._late is None:
            return parts
        found: list[str | bytes] = []
        for part in parts:
            if isinstance(part, bytes):
                found.append(part)
            else:
                found += _split(self._late, self._late_ids, in_nfc(self._normalizer, part))
        return found


def in_nfc(normalizer: Normalizer | None, text: str) -> str:
    """A text in NFC, if the tokenizer has that normalizer; ASCII is already."""
    if normalizer is None or text.isascii():
        return text
    return normalizer.normalize_str(text)


def takes_more(token: AddedToken) -> bool:
    """Whether what stands around a token decides how it is found."""
    return bool(token.lstrip or token.rstrip or token.single_word)


def _any_of(contents: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def _split(tokens: re.Pattern[str] | None, ids: dict[str, bytes], text: str) -> list[str | bytes]:
    if tokens is None:
        return [text]
    return [ids[part] if n % 2 else part for n, part in enumerate(tokens.split(text))]
