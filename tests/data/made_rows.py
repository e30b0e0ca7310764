"""Stores of rows that are given as tokens and as what their conversation and prompt are called."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from duiti.data.storage.store import Block, ExampleStore


class Row(NamedTuple):
    """One example; several with the same line make a row."""

    line: int
    tokens: Sequence[int]
    said: str
    """What names the conversation: rows with the same one are the same."""
    asked: str = ""
    """What names the prompt; empty: nobody else's."""
    file: int = 0


def store_of(
    rows: Sequence[Row], cuts: Sequence[int] = (), files: Sequence[str] = ("f", "g")
) -> ExampleStore:
    """The rows in order, in blocks that begin at these places."""
    borders = sorted({0, *cuts, len(rows)})
    parts = [rows[a:b] for a, b in pairwise(borders)]
    return ExampleStore([_block(part) for part in parts], files)


def digest(text: str) -> list[int]:
    return np.frombuffer(blake2b(text.encode(), digest_size=16).digest(), "<u8").tolist()


def _block(rows: Sequence[Row]) -> Block:
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    digests = [digest(row.said) + digest(row.asked or f"before {row.said}") for row in rows]
    return Block(
        input_ids=np.concatenate([np.array(row.tokens, np.int32) for row in rows]),
        lengths=lengths,
        span_counts=np.ones(len(rows), np.int32),
        spans=np.stack([lengths - 1, lengths], axis=1),
        weights=np.ones(len(rows), np.float32),
        files=np.array([row.file for row in rows], np.int32),
        lines=np.array([row.line for row in rows], np.int64),
        parts=np.zeros(len(rows), np.int32),
        digests=np.array(digests, np.uint64),
    )
