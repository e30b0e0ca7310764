"""Tokens as a person reads them: the text of each, trained or not. No colours, no layout.

    views = token_views(example, tokenizer)     # a TokenView per token, in order
    shown = show_example(example, tokenizer)    # the same for a page: bounded, with its counts
    segments(text); visible(text)               # what is invisible in a text, made visible

The text of a token is what it adds to the decoded whole. Where a character is split over several
tokens, the last of them has the character and the others their bytes, as ⟨E6 B0⟩; bytes that are no
UTF-8 are shown in the same way. Apart from those the texts joined are the decoded whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from duiti.types import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 2_000
"""Tokens of an example that a page shows."""

# Printable for Python and yet without ink: joiners, fillers, variation selectors, blank braille.
_NO_INK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_NAMED = {"\n": "⏎", "\r": "\\r", "\t": "\\t"}


class TokenView(NamedTuple):
    """One token of an example."""

    id: int
    text: str
    """What it adds to the decoded text, as it is: hostile until `visible` has seen it."""
    is_trained: bool
    is_special: bool
    weight: float = 1.0
    """Of a trained token in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownExample:
    """An example as a page shows it."""

    origin: str
    """`file:line` of its row."""
    tokens: Sequence[TokenView]
    """All of them; of a long example the first and the last, as many of each."""
    num_tokens: int
    """Of the whole example: those that `tokens` lacks are left out in its middle."""
    num_supervised: int
    """Trained tokens of the whole example."""


def token_views(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[TokenView]:
    """Each token's id, text, and whether it is trained and special."""
    ids = example.input_ids.tolist()
    special = special_ids(tokenizer)
    texts = texts_of(token_bytes(ids, tokenizer))
    trained = (example.labels != IGNORE_INDEX).tolist()
    weights = [1.0] * len(ids) if example.weights is None else example.weights.tolist()
    return [
        TokenView(token, text, is_trained, token in special, weight if is_trained else 1.0)
        for token, text, is_trained, weight in zip(ids, texts, trained, weights, strict=True)
    ]


def show_example(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = MAX_TOKENS
) -> ShownExample:
    """The example for a page. Of a long one only what is shown is decoded."""
    views = []
    for part in _ends(len(example), max_tokens):
        piece = Example(
            input_ids=example.input_ids[part],
            labels=example.labels[part],
            origin=example.origin,
            weights=None if example.weights is None else example.weights[part],
        )
        views += token_views(piece, tokenizer)
    return ShownExample(
        origin=str(example.origin),
        tokens=views,
        num_tokens=len(example),
        num_supervised=example.num_supervised,
    )


def segments(text: str) -> list[str]:
    """The text cut into what can be seen and what stands for the invisible, in turns.

    Even items are shown as they are; odd ones are escapes such as `\\u202e`, so that no text can
    reorder, hide or drive what is around it. A line break is the escape ⏎ and nothing more."""
    if text.isprintable() and not _NO_INK.search(text):
        return [text]
    found = [""]
    for character in text:
        is_escaped = not character.isprintable() or _NO_INK.match(character) is not None
        if is_escaped == (len(found) % 2 == 1):
            found.append("")
        found[-1] += _escape(character) if is_escaped else character
    return found


def visible(text: str) -> str:
    """The text on one line, all that is invisible in it escaped."""
    return "".join(segments(text))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokenizer's control tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}


def token_bytes(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """What each token adds to the decoded text, as UTF-8 that may begin or end within a character.

    The first token is apart because tokenizers that put a space before a text take it away there.
    """
    if not ids:
        return []
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    unique = list(dict.fromkeys(ids))
    names: list[str | None] = list(tokenizer.convert_ids_to_tokens(unique))
    anchor = tokenizer("水a", add_special_tokens=False)["input_ids"]
    is_byte_level = "æ°´" in "".join(map(str, tokenizer.convert_ids_to_tokens(anchor)))
    anchor_text = _decode(tokenizer, anchor)
    pieces: dict[int, bytes] = {}
    for token, name in zip(unique, names, strict=True):
        if token in added:
            pieces[token] = added[token].encode("utf-8", "surrogatepass")
        elif name is None:
            pieces[token] = b""
        elif is_byte_level and all(character in _BYTES for character in name):
            pieces[token] = bytes(_BYTES[character] for character in name)
        elif byte := _BYTE_TOKEN.fullmatch(name):
            pieces[token] = bytes([int(byte[1], 16)])
        else:
            text = _decode(tokenizer, [*anchor, token])
            pieces[token] = text[len(anchor_text) :].encode()
    first = pieces[ids[0]]
    if first.startswith(b" ") and not _decode(tokenizer, [ids[0]]).startswith(" "):
        first = first[1:]
    return [first, *(pieces[token] for token in ids[1:])]


def texts_of(pieces: Sequence[bytes]) -> list[str]:
    """Each piece as text: a character belongs to the piece that completes it, and a piece that has
    only a part of it shows the bytes."""
    texts = [""] * len(pieces)
    parts: list[list[int]] = [[] for _ in pieces]

    def flush(index: int) -> None:
        if parts[index]:
            texts[index] += f"⟨{bytes(parts[index]).hex(' ').upper()}⟩"
            parts[index].clear()

    whole = b"".join(pieces)
    owners = [index for index, piece in enumerate(pieces) for _ in piece]
    at = 0
    for character in whole.decode("utf-8", "surrogateescape"):
        is_invalid = "\udc80" <= character <= "\udcff"
        end = at + (1 if is_invalid else len(character.encode()))
        last = owners[end - 1]
        for position in range(at, end):
            if is_invalid or owners[position] != last:
                parts[owners[position]].append(whole[position])
        if not is_invalid:
            flush(last)
            texts[last] += character
        at = end
    for index in range(len(pieces)):
        flush(index)
    return texts


def _ends(length: int, limit: int) -> list[slice]:
    if length <= limit:
        return [slice(0, length)]
    return [slice(0, limit - limit // 2), slice(length - limit // 2, length)]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _escape(character: str) -> str:
    if named := _NAMED.get(character):
        return named
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: printable Latin-1 as itself, the
    rest from U+0100 on (GPT-2's `bytes_to_unicode`)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(0x100 + index): byte for index, byte in enumerate(rest)
    }


_BYTES = _byte_alphabet()
