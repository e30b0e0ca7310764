"""Text that a model is watched on: what it knew before training, none of which is trained.

    anchor = make_anchor(model, tokenizer, seed=0)                # text that the base itself writes
    anchor = read_anchor("wiki.txt", tokenizer, max_length=1024)  # or text from a file

What the base writes is a fair sample of all it would say, which no data set of ours could be. It is
drawn at temperature 1 from the whole vocabulary, from the token that begins a document, and is a
function of seed and weights alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from duiti.data.reading.files import open_file, stem_and_suffix
from duiti.data.reading.read import read_rows
from duiti.data.reading.sources import Source
from duiti.data.templates.template import starts_with_bos
from duiti.errors import DataError, UsageError
from duiti.infer.generate import BATCH_SIZE, BATCH_TOKENS, Sampling, generate
from duiti.model.load import num_embeddings
from duiti.model.lora import adapters_off
from duiti.types import IGNORE_INDEX, Example, Origin, Rejected, Row

GENERATED = "generated"
"""Source of an anchor that the base wrote."""
MAX_TOKENS = 8192
"""Taken of a file: all of them go through the model at every measurement."""
NUM_TEXTS, TEXT_TOKENS = 16, 64
"""That the base writes, and tokens of each at most."""
MOST_BYTES = 512
"""Of a token, on average: so much is read of a file of plain text, and no more."""
MOST_ROUNDS = 4
"""Where texts end early, more are asked for: so many times as many texts at most."""
MOST_FAULTS = 5
"""Rows at fault that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Texts of which every token but the first is predicted."""

    examples: Sequence[Example]
    source: str
    """`generated`, or the name of the file."""
    is_cut: bool = False
    """Whether the file has more than what was taken of it."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(example.num_supervised for example in self.examples)

    def describe(self) -> str:
        """`16 texts, 812 tokens, written by the base model`."""
        origin = "written by the base model" if self.source == GENERATED else f"of {self.source}"
        cut = ", which has more" if self.is_cut else ""
        return f"{len(self.examples)} texts, {self.num_tokens:,} tokens, {origin}{cut}"


def make_anchor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    num_texts: int = NUM_TEXTS,
    num_tokens: int = TEXT_TOKENS,
    compute_dtype: torch.dtype = torch.float32,
) -> Anchor:
    """Have the base write. Adapters are off meanwhile; a model without them has to be the base
    still, before any update. Neither modes nor random streams of the model's user are moved.

    Args:
        seed: of the run. The texts are not those that other parts of duiti draw with this seed.
        num_texts: at least; more where they end early, until there are num_texts * num_tokens
            tokens or MOST_ROUNDS times as many texts.
        num_tokens: at most, of a text.
        compute_dtype: of the matrix products, as in training.

    Raises:
        UsageError: the tokenizer has no token to begin a text with.
    """
    start = start_token(tokenizer, num_embeddings(model))
    stops = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    device = next(model.parameters()).device
    is_low = compute_dtype != torch.float32
    texts: list[list[int]] = []
    rows = max(1, min(num_texts, BATCH_SIZE, BATCH_TOKENS // (1 + num_tokens)))
    autocast = torch.autocast(device.type, compute_dtype) if is_low else nullcontext()
    with adapters_off(model), autocast:
        while len(texts) < MOST_ROUNDS * num_texts:
            if len(texts) >= num_texts and _count(texts) >= num_texts * num_tokens:
                break
            # Every call begins the same stream of chance anew, so each has a seed of its own.
            answers = generate(
                model,
                [[start]] * rows,
                stop_ids=stops,
                max_new_tokens=num_tokens,
                sampling=Sampling(temperature=1.0, seed=_seed(seed, len(texts))),
            )
            if rows > 1 and len(set(answers)) == 1:
                rows = 1  # a model that takes texts one by one: all of them drew the same
                continue
            # The end of a text is predicted, too.
            texts += [[start, *a.ids, *(sorted(stops) if a.stopped else ())] for a in answers]
    texts = _first_tokens(texts, num_texts * num_tokens)
    examples = [_example(ids, Origin(GENERATED, i)) for i, ids in enumerate(texts, start=1)]
    return Anchor(examples=examples, source=GENERATED)


def start_token(tokenizer: PreTrainedTokenizerBase, num_ids: int) -> int:
    """What begins a document: bos, else eos, which ends the one before, else the first special
    token that is neither of unknown words nor of gaps.

    Args:
        num_ids: ids that the model has an embedding for.

    Raises:
        UsageError: there is none.
    """
    others = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    wanted = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    wanted += [token for token in tokenizer.all_special_ids if token not in others]
    for token in wanted:
        if token is not None and int(token) < num_ids:
            return int(token)
    raise UsageError(
        "the base model cannot write an anchor",
        why="its tokenizer has no special token that a text could begin with",
        fix="--anchor FILE with text of your own, or --anchor none",
    )


def read_anchor(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_tokens: int = MAX_TOKENS,
) -> Anchor:
    """Text of a file, of which so many tokens are taken from its beginning.

    A `.txt` file is one text. Of any other kind (`.jsonl`, `.json`, `.csv`, …) every row is a text:
    its field `text`. Texts are cut into pieces of at most `max_length` tokens; each begins as a
    text of this tokenizer does.

    Raises:
        UsageError: there is no such file, or it is of a kind that is not read.
        DataError: rows are at fault (named by file and line), or there is no text.
    """
    name = str(path)
    if stem_and_suffix(name)[1] == ".txt":
        texts = _plain(Path(path), name, limit=MOST_BYTES * max_tokens)
    else:
        texts = _rows(path, name)
    pieces: list[Example] = []
    left = max_tokens
    for piece in _pieces(texts, tokenizer, max_length):
        if left == 0:
            return Anchor(examples=pieces, source=name, is_cut=True)
        pieces.append(_example(piece.ids[: left + 1], piece.origin))
        left -= pieces[-1].num_supervised
    if not pieces:
        raise DataError(
            f"{name}: there is no text in it to watch the model on",
            fix="name a .txt file, or rows with a field text",
        )
    return Anchor(examples=pieces, source=name)


@dataclass(frozen=True, slots=True)
class _Piece:
    ids: list[int]
    origin: Origin


def _pieces(
    texts: Iterable[tuple[Origin, str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[_Piece]:
    """Texts cut, without pieces in which nothing is predicted."""
    head = [int(tokenizer.encode("a")[0])] if starts_with_bos(tokenizer) else []
    step = max_length - len(head)
    for origin, text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        for start in range(0, len(ids), step):
            piece = [*head, *ids[start : start + step]]
            if len(piece) > 1:
                yield _Piece(piece, origin)


def _plain(path: Path, name: str, limit: int) -> Iterator[tuple[Origin, str]]:
    """The beginning of a text file, as one text."""
    with open_file(path, name) as file:
        raw = file.read(limit)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        is_cut = len(raw) == limit and error.reason == "unexpected end of data"
        if not is_cut:
            line = raw.count(b"\n", 0, error.start) + 1
            raise DataError(f"{name}:{line}: not UTF-8", fix="iconv -t UTF-8 OLD > NEW") from None
        text = raw[: error.start].decode("utf-8")  # without the character that the limit cuts
    if text.strip():
        yield Origin(name, 1), text


def _rows(path: str | Path, name: str) -> Iterator[tuple[Origin, str]]:
    """The field `text` of every row. Rows at fault are raised together when they are met."""
    rows = read_rows(Source(name=name, path=Path(path)))
    for row in rows:
        fault = _fault(row)
        if fault:
            faults = [fault, *islice(filter(None, map(_fault, rows)), MOST_FAULTS - 1)]
            raise DataError(
                "rows that are no text:\n" + "\n".join(f"  {line}" for line in faults),
                fix='an anchor is plain text (.txt), or rows such as {"text": "…"}',
            )
        assert not isinstance(row, Rejected)
        yield row.origin, str(row.fields["text"])


def _fault(row: Row | Rejected) -> str:
    """Why a row is no text, or an empty string."""
    if isinstance(row, Rejected):
        return f"{row.origin}: {row.reason}"
    if "text" not in row.fields:
        return f"{row.origin}: there is no field text"
    text = row.fields["text"]
    if not isinstance(text, str):
        return f"{row.origin}: text is not a string"
    return "" if text.strip() else f"{row.origin}: text is empty"


def _first_tokens(texts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The first texts, until that many tokens are predicted."""
    found, left = [], num_tokens
    for text in texts:
        if left > 0:
            found.append(text[: left + 1])
            left -= len(found[-1]) - 1
    return found


def _count(texts: list[list[int]]) -> int:
    """Tokens that are predicted."""
    return sum(len(text) - 1 for text in texts)


def _example(ids: list[int], origin: Origin) -> Example:
    labels = np.array(ids, dtype=np.int32)
    labels[0] = IGNORE_INDEX
    return Example(input_ids=np.array(ids, dtype=np.int32), labels=labels, origin=origin)


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"anchor:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
