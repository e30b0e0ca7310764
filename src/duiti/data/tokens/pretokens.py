"""A byte-level BPE tokenizer's ids, several times faster: parts of texts are encoded only once.

    encoder = FastEncoder.from_tokenizer(tokenizer)   # a `tokenizers.Tokenizer`; None: unsupported
    ids = encoder.encode(text)                        # those of tokenizer.encode(…).ids
    ids = encoder.encode_ordinary(text)               # control and added tokens are plain text
    reason = why_not(tokenizer)                       # why there is no FastEncoder; "": there is

Ids are those of `tokenizer.encode(text, add_special_tokens=False)`, always: the library itself
encodes every part the first time; after that its ids are looked up. A text is cut at borders only,
where the tokenizer is proven to split and to look neither way (`borders.py`): first into words with
what hangs on them; what of these is new, into smaller pieces. So nothing here rests on a second
regex engine, on a second BPE or on anybody's version of Unicode.

The tokenizer must not be changed afterwards. One encoder serves one thread.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from duiti.data.tokens.added_tokens import AddedTokens, in_nfc, takes_more
from duiti.data.tokens.borders import Borders, find_borders
from duiti.data.tokens.patterns import Unsafe

CACHED_TEXTS = 1 << 17
"""In a generation of a cache. Two are kept: what is used moves to the newer, the older goes."""
CACHED_LENGTH = 64
"""Longer texts hardly come again."""
CHECKED_FIRST, CHECKED_EVERY = 64, 256
"""Texts whose ids are compared with the library's."""
WINDOW = 1 << 14
"""Characters after which it is decided whether looking up was worth its time."""
WORTHLESS = 0.6
"""Share of characters that had to be encoded above which it was not."""
SHORTEST_REST, LONGEST_REST = 4, 64
"""Windows which the library then encodes alone before the next try: twice as many after each."""

_HARMLESS = {"ByteLevel", "BertProcessing", "RobertaProcessing"}


class FastEncoder:
    """The caches of one tokenizer."""

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> FastEncoder | None:
        """The encoder of a tokenizer, or None where it is not proven exact (see `why_not`)."""
        made = json.loads(tokenizer.to_str())
        try:
            borders = _supported(tokenizer, made)
        except Unsafe:
            return None
        return cls(tokenizer, borders, made["model"]["vocab"])

    def __init__(self, tokenizer: Tokenizer, borders: Borders, vocabulary: dict[str, int]) -> None:
        """Use `from_tokenizer`, which looks whether the tokenizer is supported."""
        self.disagreements = 0
        """Texts whose ids were not the library's. The first one disables the caches for good."""
        self._tokenizer = tokenizer
        self._plain = _without_added_tokens(tokenizer)
        self._normalizer = tokenizer.normalizer
        self._added = AddedTokens(tokenizer)
        self._borders = borders
        self._num_bytes = [0] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            self._num_bytes[number] = len(token)  # one character stands for each byte
        self._words = _Memory(self._encoded_words)
        self._pieces = _Memory(self._encoded_pieces)
        self._num_texts = self._num_seen = self._num_missed = 0
        self._rest = self._num_windows = 0

    @property
    def is_disabled(self) -> bool:
        """Whether the library encodes everything because the caches were once wrong."""
        return self.disagreements > 0

    @property
    def num_cached(self) -> int:
        """Texts whose ids are in memory, about 150 bytes each."""
        return len(self._words) + len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Added tokens in it are tokens."""
        if self._is_resting(text) or self._added.is_odd(text):
            return _library_ids(self._tokenizer, text)
        parts = self._added.split(text)
        found = b"".join([p if isinstance(p, bytes) else self._ids(p) for p in parts])
        return self._checked(found, self._tokenizer, text)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which there are no added tokens: what looks so is characters."""
        if self._is_resting(text):
            return _library_ids(self._plain, text)
        return self._checked(self._ids(text), self._plain, text)

    def _is_resting(self, text: str) -> bool:
        if self._num_seen >= WINDOW:
            is_worthless = self._num_missed > WORTHLESS * self._num_seen
            self._num_seen = self._num_missed = 0
            self._num_windows = (
                min(2 * self._num_windows or SHORTEST_REST, LONGEST_REST) * is_worthless
            )
            self._rest = self._num_windows * WINDOW
        if self._rest <= 0:
            return self.is_disabled
        self._rest -= len(text)
        return True

    def _checked(self, found: bytes, library: Tokenizer, text: str) -> list[int]:
        self._num_texts += 1
        ids = array("i", found).tolist()
        if self._num_texts > CHECKED_FIRST and self._num_texts % CHECKED_EVERY:
            return ids
        right = _library_ids(library, text)
        if ids != right:
            self.disagreements += 1
            self._words, self._pieces = _Memory(self._encoded_words), _Memory(self._encoded_pieces)
        return right

    def _ids(self, text: str) -> bytes:
        """Int32 ids of a text without added tokens."""
        self._num_seen += len(text)
        return b"".join(self._words(self._borders.words.findall(text)))

    def _encoded_words(self, words: list[str], missing: list[int]) -> list[bytes]:
        """The ids of missing words, put together from those of their pieces."""
        cut = [self._cut(words[number]) for number in missing]
        parts = iter(self._pieces([piece for pieces in cut for piece in pieces]))
        return [b"".join(islice(parts, len(pieces))) for pieces in cut]

    def _cut(self, word: str) -> list[str]:
        if self._normalizer is not None and not word.isascii():
            return [word]  # a letter behind a border and its accent may become another letter
        return self._borders.pieces.findall(word)

    def _encoded_pieces(self, pieces: list[str], missing: list[int]) -> list[bytes]:
        """The ids that the library gives to missing pieces.

        It gets them joined where they meet at a border, as neighbours do, and all in one call:
        so a text of which nothing is known costs what the library needs for it.
        """
        runs: list[list[str]] = []
        previous = -2
        for number in missing:
            piece = pieces[number]
            if runs and (number == previous + 1 or piece[0] == " "):
                runs[-1].append(piece)
            else:
                runs.append([piece])
            previous = number
        texts = ["".join(run) for run in runs]
        self._num_missed += sum(map(len, texts))
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        return [
            part
            for run, text, encoding in zip(runs, texts, encodings, strict=True)
            for part in self._divided(run, text, encoding.ids)
        ]

    def _divided(self, pieces: list[str], text: str, ids: list[int]) -> list[bytes]:
        """The ids of a text, piece by piece: tokens are runs of bytes."""
        data = array("i", ids).tobytes()
        if len(pieces) == 1:
            return [data]
        parts, start, end = [], 0, 0
        for piece in pieces:
            left = len(piece.encode())
            while left > 0 and end < len(ids):
                left -= self._num_bytes[ids[end]]
                end += 1
            if left:
                break
            parts.append(data[4 * start : 4 * end])
            start = end
        # A normalizer may change bytes, a pre-tokenizer drop some.
        if len(parts) < len(pieces) or end < len(ids) or self._normal(text) != text:
            return [array("i", _library_ids(self._plain, piece)).tobytes() for piece in pieces]
        return parts

    def _normal(self, text: str) -> str:
        return in_nfc(self._normalizer, text)


class _Memory:
    """Remembers what a function gave for short texts."""

    def __init__(self, encoded: Callable[[list[str], list[int]], list[bytes]]) -> None:
        """`encoded` gets texts, and the indices of those whose ids it is to give."""
        self._encoded = encoded
        self._newer: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def __call__(self, texts: list[str]) -> list[bytes]:
        found = list(map(self._newer.get, texts))
        if not all(found):
            self._fill(texts, found)
        return cast("list[bytes]", found)

    def _fill(self, texts: list[str], found: list[bytes | None]) -> None:
        missing = []
        for number, text in enumerate(texts):
            if found[number] is None:
                found[number] = known = self._older.get(text)
                if known is None:
                    missing.append(number)
                else:
                    self._learn(text, known)
        if missing:
            for number, ids in zip(missing, self._encoded(texts, missing), strict=True):
                found[number] = ids
                self._learn(texts[number], ids)

    def _learn(self, text: str, ids: bytes) -> None:
        if len(text) > CACHED_LENGTH:
            return
        if len(self._newer) >= CACHED_TEXTS:
            self._newer, self._older = {}, self._newer
        self._newer[text] = ids


def why_not(tokenizer: Tokenizer) -> str:
    """Why there is no `FastEncoder` of a tokenizer; "" if there is one."""
    try:
        _supported(tokenizer, json.loads(tokenizer.to_str()))
    except Unsafe as reason:
        return str(reason)
    return ""


def _supported(tokenizer: Tokenizer, made: dict[str, Any]) -> Borders:
    """How to cut texts, or `Unsafe`. `made` is what the tokenizer's JSON says."""
    reasons = {
        "its model is not BPE": made["model"].get("type") != "BPE",
        "it truncates or pads": made["truncation"] or made["padding"],
        "it takes special tokens for text": tokenizer.encode_special_tokens,
        "its normalizer is not NFC": not _is_nfc(made["normalizer"]),
        "an added token that takes white space with it is looked for after normalizing": (
            made["normalizer"] and _has_late_odd(tokenizer)
        ),
        "its post-processor may change what is encoded": not _passes_on(made["post_processor"]),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise Unsafe(reason)
    _require_bytes(made["model"])
    return find_borders(made["pre_tokenizer"])


def _require_bytes(model: dict[str, Any]) -> None:
    """Tokens are runs of bytes and depend on nothing but their pre-token."""
    vocabulary = model["vocab"]
    if model["dropout"]:
        raise Unsafe("it drops merges at random")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise Unsafe("its tokens depend on where in a word they stand")
    if not vocabulary.keys() >= set(ByteLevel.alphabet()):
        raise Unsafe("its vocabulary lacks some of the 256 bytes")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise Unsafe("two of its tokens share an id")


def _is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """NFC never joins anything with a space that follows it, so it may be done piece by piece."""
    if normalizer is None or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_is_nfc, normalizer["normalizers"]))


def _passes_on(processor: dict[str, Any] | None) -> bool:
    """Whether a post-processor only adds special tokens, which it is asked not to do."""
    if processor is None or processor["type"] in _HARMLESS:
        return True
    if processor["type"] == "Sequence":
        return all(map(_passes_on, processor["processors"]))
    if processor["type"] != "TemplateProcessing":
        return False
    texts = [piece["Sequence"]["id"] for piece in processor["single"] if "Sequence" in piece]
    return texts == ["A"]


def _has_late_odd(tokenizer: Tokenizer) -> bool:
    tokens = tokenizer.get_added_tokens_decoder().values()
    return any(token.normalized and takes_more(token) for token in tokens)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)  # the same model in memory
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain


def _library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
