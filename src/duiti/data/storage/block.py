"""A block: some thousand examples as columns, in memory or mapped from a file.

    check_block(block)                       # raises BadBlock with the clause that is broken
    write_block(path, block)                 # a safetensors file, synced to disk
    block = open_block(path)                 # read-only memory maps, nothing is copied

Columns, so that a million examples cost a few arrays and no Python objects. What reads many blocks
as one sequence is `duiti.data.storage.store`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from duiti.types import Json, TokenIds, Weights

MAX_HEADER_BYTES = 2**16
"""A block's own header has some 700 bytes; a larger one is not a block's."""

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class BadBlock(ValueError):
    """A block that breaks its contract, or a file that holds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """E examples with T tokens and S trained spans.

    Examples of one row are adjacent and share (files, lines, digests); a row repeated by its weight
    appears again with the same ones."""

    input_ids: TokenIds
    """[T] int32, all tokens, example after example."""
    lengths: Int32s
    """[E] int32, tokens of each example, at least 1."""
    span_counts: Int32s
    """[E] int32, trained spans of each example."""
    spans: Int32s
    """[S, 2] int32, start (inclusive, at least 1) and end (exclusive) of a trained span, counted
    within its example; sorted, not overlapping."""
    weights: Weights
    """[S] float32, of a span's tokens in the loss; above 0, as what weighs nothing is no span."""
    files: Int32s
    """[E] int32, index into the list of file names."""
    lines: Int64s
    """[E] int64, 1-based line of the row."""
    parts: Int32s
    """[E] int32, which example of its row, from 0: above 0 where a conversation was unrolled."""
    digests: UInt64s
    """[E, 4] uint64, [:, 0:2] hash of the row's whole conversation, [:, 2:4] of all before its last
    answer."""

    def __len__(self) -> int:
        return len(self.lines)


_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "input_ids": ("I32", ()),
    "lengths": ("I32", ()),
    "span_counts": ("I32", ()),
    "spans": ("I32", (2,)),
    "weights": ("F32", ()),
    "files": ("I32", ()),
    "lines": ("I64", ()),
    "parts": ("I32", ()),
    "digests": ("U64", (4,)),
}
_DTYPES: dict[str, np.dtype[Any]] = {
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
}


def concat(blocks: Iterable[Block]) -> Block:
    """One block with the examples of all, in order."""
    parts = list(blocks)
    columns = {}
    for name, (code, tail) in _COLUMNS.items():
        empty = np.empty((0, *tail), _DTYPES[code])
        columns[name] = np.concatenate([empty, *(getattr(part, name) for part in parts)])
    return Block(**columns)


def check_block(block: Block) -> None:
    """Hold a block against its contract.

    Raises:
        BadBlock: with the first clause that is broken.
    """
    for name, (code, tail) in _COLUMNS.items():
        array = getattr(block, name)
        if array.dtype != _DTYPES[code] or array.ndim != 1 + len(tail) or array.shape[1:] != tail:
            raise BadBlock(f"{name} is {array.dtype}{list(array.shape)}")
    _check_numbers(block)
    _check_spans(block)
    _at_least(0, block.input_ids, "a token id")
    _at_least(0, block.files, "the index of a file")
    _at_least(1, block.lines, "a line")
    _at_least(0, block.parts, "the number of a part")


def _check_numbers(block: Block) -> None:
    per_example = (block.lengths, block.span_counts, block.files, block.parts, block.digests)
    if any(len(column) != len(block) for column in per_example):
        raise BadBlock("the columns of examples differ in length")
    _at_least(1, block.lengths, "a length")
    _at_least(0, block.span_counts, "a number of spans")
    if block.lengths.sum(dtype=np.int64) != len(block.input_ids):
        raise BadBlock("the lengths do not add up to the tokens")
    if not block.span_counts.sum(dtype=np.int64) == len(block.spans) == len(block.weights):
        raise BadBlock("the numbers of spans do not add up to the spans and their weights")


def _check_spans(block: Block) -> None:
    owner = np.repeat(np.arange(len(block)), block.span_counts)
    start, end = block.spans[:, 0], block.spans[:, 1]
    _at_least(1, start, "the start of a span")
    if (start >= end).any() or (end > block.lengths[owner]).any():
        raise BadBlock("a span is empty or leaves its example")
    if ((start[1:] < end[:-1]) & (owner[1:] == owner[:-1])).any():
        raise BadBlock("spans of an example overlap or are not sorted")
    if not (np.isfinite(block.weights) & (block.weights > 0)).all():
        raise BadBlock("the weight of a span is not a number above 0")


def _at_least(least: int, values: npt.NDArray[np.integer], what: str) -> None:
    if len(values) and values.min() < least:
        raise BadBlock(f"{what} is below {least}")


def write_block(path: Path, block: Block, *, durable: bool = True) -> None:
    """Write a block that is whole or not there at all, whenever the machine stops.

    Raises:
        OSError: no space, no permission; nothing is left behind then.
    """
    beside = path.with_name(f".{path.name}.tmp")
    # The library writes memory as it lies: a strided view would come out as other numbers.
    columns = {name: np.ascontiguousarray(getattr(block, name)) for name in _COLUMNS}
    try:
        _save(columns, beside)
        if durable:
            sync(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def _save(columns: dict[str, np.ndarray], path: Path) -> None:
    try:
        save_file(columns, path)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), str(path)) from None


def sync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_block(path: Path) -> Block:
    """A block whose arrays are read-only memory maps of the file.

    The file may be renamed or removed meanwhile, but it must not be written to. Only the layout is
    looked at: `check_block` reads the values.

    Raises:
        BadBlock: the file is not a block's.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        return map_block(file.fileno())


def map_block(descriptor: int) -> Block:
    """`open_block` for a file that is open; the descriptor may be closed afterwards."""
    size = os.fstat(descriptor).st_size
    if size < 8:
        raise BadBlock("it is cut off in its header")
    # Python keeps a descriptor per map unless told otherwise, and a process has some 1,000.
    keep_none = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, **keep_none)
    data = 8 + int.from_bytes(mapped[:8], "little")
    if data > min(size, MAX_HEADER_BYTES):
        raise BadBlock("its header is cut off or too long")
    columns, end = {}, data
    for begin, behind, name in _layout(mapped[8:data]):
        code, tail = _COLUMNS[name]
        if data + begin != end or end % _DTYPES[code].itemsize or data + behind > size:
            raise BadBlock("it is cut off, or its columns do not lie end to end")
        count = (behind - begin) // _DTYPES[code].itemsize
        columns[name] = np.frombuffer(mapped, _DTYPES[code], count, end).reshape(-1, *tail)
        end = data + behind
    if end != size:
        raise BadBlock("there is more in it than its columns")
    return Block(**columns)


def _layout(header: bytes) -> list[tuple[int, int, str]]:
    """(begin, end, name) of each column in the order of the file, bytes counted from the header."""
    try:
        found: Json = json.loads(header)
    except (ValueError, RecursionError):
        raise BadBlock("its header is not JSON") from None
    if not isinstance(found, dict) or found.keys() != _COLUMNS.keys():
        raise BadBlock("its header names other columns")
    layout = []
    for name, (code, tail) in _COLUMNS.items():
        row_bytes = math.prod(tail) * _DTYPES[code].itemsize
        match found[name]:
            case {
                "dtype": dtype,
                "shape": [int(rows), *rest],
                "data_offsets": [int(a), int(b)],
            } if (dtype, tuple(rest)) == (code, tail) and rows >= 0 and b - a == rows * row_bytes:
                layout.append((a, b, name))
            case _:
                raise BadBlock(f"its column {name} is not as it should be")
    return sorted(layout)


def release(block: Block) -> None:
    """Give back the memory that reading a mapped block took; it is read again when asked for.

    Pages of a mapped file count as the process's own, so that a pass over all blocks would else
    look like holding all of them."""
    owner: object = block.input_ids  # all columns lie in the same map
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap):
        owner.obj.madvise(mmap.MADV_DONTNEED)
