"""Texts to ids as serving makes them, on a tokenizer's Rust core.

    texts = TextEncoder(tokenizers.Tokenizer.from_str(…))
    prompt = texts.encode(text)                 # control tokens between marks are ordinary text
    answer = texts.encode_behind(text)          # of a text that stands behind another

What is special here is the border between two texts: SentencePiece-like tokenizers put a space
before every text, and an answer has to be encoded as if it had none.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from duiti.data.templates.control import CLOSE, OPEN, split_marked
from duiti.data.tokens.pretokens import FastEncoder
from duiti.errors import RowError


class TextEncoder:
    """A tokenizer's Rust core, through the fast exact path where the tokenizer allows it."""

    def __init__(self, tokenizer: Tokenizer, *, is_fast: bool = True) -> None:
        # A tokenizer.json can ask for either; transformers, too, turns them off.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._fast = FastEncoder.from_tokenizer(tokenizer) if is_fast else None
        self._ordinary: Tokenizer | None = None
        first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        # SentencePiece-like tokenizers put a space before a text. Behind a prompt there is none.
        self.adds_space = bool(first) and first[0].startswith(("▁", "Ġ"))

    @property
    def has_disagreed(self) -> bool:
        """Whether the fast path has ever differed from the library."""
        return self._fast is not None and self._fast.is_disabled

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text; control tokens between the marks are ordinary text."""
        if OPEN not in text and CLOSE not in text:
            return self._encode(text)
        ids: list[int] = []
        for number, (piece, is_text) in enumerate(split_marked(text)):
            if piece:
                ids += self._piece(piece, is_text=is_text, is_first=number == 0)
        return ids

    def encode_behind(self, text: str) -> list[int]:
        """Ids of a text that stands behind another."""
        if not self.adds_space:
            return self.encode(text)
        return [
            token
            for piece, is_text in split_marked(text)
            if piece
            for token in self._piece(piece, is_text=is_text, is_first=False)
        ]

    def behind_break(
        self, answer: str, prompt: list[int], whole: list[int], *, anchors: Sequence[str]
    ) -> list[int] | None:
        """The ids of an answer whose first word the tokenizer would melt into the prompt's end.

        It is encoded behind something that ends a word, so that it starts without the space that
        is put before a text; and taken only if the ids read exactly as the text does.
        """
        text = self._decode(whole)
        for anchor in anchors:
            start, behind = self._encode(anchor), self._encode(anchor + answer)
            found = behind[len(start) :]
            if behind[: len(start)] == start and self._decode(prompt + found) == text:
                return found
        return None

    def splits_character(self, ids: Sequence[int], end: int) -> bool:
        """Whether a cut before `ids[end]` would fall between the bytes of a character."""
        # A character is at most four tokens, and some decoders take a run of bytes for broken if
        # its first character is: so it has to end well for one of these beginnings.
        starts = range(max(0, end - 4), end)
        return all(self._decode(ids[start:end]).endswith("\ufffd") for start in starts)

    def _encode(self, text: str) -> list[int]:
        if self._fast is not None:
            return self._fast.encode(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _piece(self, text: str, *, is_text: bool, is_first: bool) -> list[int]:
        """Ids of a part of a text. Behind a line break, taken away again, a SentencePiece-like
        tokenizer puts no space before it (transformers' `encode_marked_chat` does the same)."""
        encode = self._encode_ordinary if is_text else self._encode
        ids = encode(text)
        if not is_first:
            breaks, behind = self._encode("\n"), encode("\n" + text)
            if behind[: len(breaks)] == breaks:
                ids = behind[len(breaks) :]
        if is_text and self._tokenizer.token_to_id(text) in ids:
            raise RowError("the tokenizer cannot write a control token as ordinary text")
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        """Ids without added tokens: what the model of the tokenizer makes of the characters."""
        if self._fast is not None:
            return self._fast.encode_ordinary(text)
        if self._ordinary is None:
            self._ordinary = _without_added_tokens(self._tokenizer)
        ids: list[int] = self._ordinary.encode(text, add_special_tokens=False).ids
        return ids


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain
