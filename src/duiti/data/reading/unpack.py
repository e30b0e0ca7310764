"""The bytes of a gzip or zstd file, unpacked as they are read.

    stream = unpacked(file, name)       # `file` itself where it is not packed

Holds a constant amount of memory, whatever the file unpacks to; one that unpacks to hundreds of
times its size is no data but a bomb, and reading it ends. Members (gzip) and frames (zstd) that
follow each other are one stream. Damage is a `DataError` with the line at which the text
breaks off, raised when everything before it has been handed out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol

from duiti.errors import DataError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PACKED_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
"""How a file is packed, by the end of its name."""

BUFFER_BYTES = 256 * 2**10
"""What is read ahead. As much of a file is looked at to tell what it holds."""

MAX_GROWTH, FREE_BYTES = 200, 2**28
"""A file may unpack to so many bytes for each one of its own, and so many more: rows of text pack
to a third or a tenth, the same row over and over to a hundredth."""

_MAX_WINDOW_BYTES = 2**27
"""What a zstd file may ask to be held in memory: the limit of the `zstd` program as well."""


def unpacked(file: BufferedReader, name: str) -> BufferedReader:
    """`file`, or a stream of what is packed in it; closing that closes `file`.

    Raises:
        UsageError: its name says that it is packed, and it is not, or otherwise.
    """
    head = file.peek(4)
    how = ""
    if head.startswith(b"\x1f\x8b"):
        how = "gzip"
    elif re.match(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", head):
        how = "zstd"
    named = PACKED_SUFFIXES.get(PurePath(name).suffix.lower(), "")
    if named and how != named:
        raise UsageError(
            f"{name} is not {named}, though its name says so" if head else f"{name} is empty",
            why="" if head else f"a {named} file that holds nothing still has some bytes",
            fix=f"it is {how}: rename it" if how else "fetch or write it again",
        )
    if not how:
        return file
    packing = _gzip() if how == "gzip" else _zstd(name)
    return BufferedReader(_Unpacked(file, name, packing), BUFFER_BYTES)


class _Decoder(Protocol):
    """Of one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packing:
    """A way of packing."""

    name: str
    """As it is called in errors."""
    new_decoder: Callable[[], _Decoder]
    """Makes a decoder for the next member or frame."""
    error: type[Exception]
    """Which the decoder raises."""
    piece_bytes: int
    """Of packed data that go in at once, so few that no more than 16 MiB can come out: a byte of
    deflate can mean 1032, and four bytes of zstd 128 KiB."""


def _gzip() -> _Packing:
    return _Packing(
        name="gzip",
        new_decoder=lambda: zlib.decompressobj(wbits=31),
        error=zlib.error,
        piece_bytes=2**12,
    )


def _zstd(name: str) -> _Packing:
    try:
        import zstandard
    except ImportError:
        raise UsageError(
            f"{name}: reading zstd needs the package zstandard", fix="pip install 'duiti[zstd]'"
        ) from None
    return _Packing(
        name="zstd",
        new_decoder=zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj,
        error=zstandard.ZstdError,
        piece_bytes=2**9,
    )


class _Unpacked(RawIOBase):
    """A file's members or frames, one after the other, as one stream of bytes."""

    def __init__(self, file: BufferedReader, name: str, packing: _Packing) -> None:
        self._file, self._name, self._packing = file, name, packing
        self._decoder: _Decoder | None = None
        self._num_members = 0
        self._is_member_empty = True
        self._rest = b""
        self._ready = memoryview(b"")
        self._num_lines = 0
        self._num_packed = self._num_bytes = 0
        self._error: DataError | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (self._ready or self._unpack()):
            size = min(len(self._ready), len(view) - filled)
            view[filled : filled + size] = self._ready[:size]
            self._ready = self._ready[size:]
            filled += size
        if not filled and self._error is not None:
            raise self._error
        return filled

    def _unpack(self) -> bool:
        """Make some bytes ready. False: there are no more, or `_error` says why."""
        while self._error is None:
            packed = self._rest
            if not packed:
                packed = self._file.read(self._packing.piece_bytes)
                self._num_packed += len(packed)
            self._rest = b""
            is_end = not packed
            if self._decoder is None:
                if self._num_members:
                    packed = packed.lstrip(b"\0")  # what tapes and block devices fill up with
                if is_end:
                    return False
                if not packed:
                    continue
                self._decoder, self._is_member_empty = self._packing.new_decoder(), True
            if is_end:
                self._error = self._damage("ends too early")
            elif data := self._decompress(self._decoder, packed):
                self._num_lines += data.count(b"\n")
                self._num_bytes += len(data)
                if self._num_bytes > MAX_GROWTH * self._num_packed + FREE_BYTES:
                    self._error = self._bomb()
                    return False
                self._ready = memoryview(data)
                return True
        return False

    def _decompress(self, decoder: _Decoder, packed: bytes) -> bytes:
        try:
            data = decoder.decompress(packed)
        except self._packing.error:
            is_foreign = self._num_members and self._is_member_empty
            self._error = self._damage(
                "is followed by something else" if is_foreign else "is damaged"
            )
            return b""
        self._is_member_empty = self._is_member_empty and not data
        if decoder.eof:
            self._rest, self._decoder = decoder.unused_data, None
            self._num_members += 1
        return data

    def _bomb(self) -> DataError:
        return DataError(
            f"{self._name}:{self._num_lines + 1}: unpacks to more than {MAX_GROWTH} times its size",
            why="a small file that grows so is made to fill a disk or a memory",
            fix="if it is yours: unpack it; what is not packed is read at any size",
        )

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{self._name}:{self._num_lines + 1}: the {self._packing.name} data {what}",
            why=f"{self._num_lines} lines before it could be unpacked",
            fix="fetch or write the file again",
        )
