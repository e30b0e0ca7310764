"""Opening a data file, and telling what it holds.

    with open_file(path, name) as file:          # a buffered stream of its bytes, unpacked
        kind = kind_of(name, file.peek())        # "json" | "csv" | "tsv" | "parquet"
        for number, line in numbered_lines(file, limit=MAX_LINE_BYTES): ...

What a file holds is said by its name, except where its first bytes leave no doubt; whether it is
packed (gzip, zstd) is said by its first bytes, and a name that says otherwise is refused. Nothing
here looks into rows.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Literal

from duiti.data.reading.unpack import BUFFER_BYTES, PACKED_SUFFIXES, unpacked
from duiti.errors import UsageError

Kind = Literal["json", "csv", "tsv", "parquet"]

KINDS: dict[str, Kind] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""What a file holds, by the end of its name (before `.gz` or `.zst`)."""
READABLE = f"{', '.join(KINDS)}, each also as .gz or .zst"

BOM = b"\xef\xbb\xbf"
_JSON_START = re.compile(rb'[ \t\r\n]*(?:\{[ \t\r\n]*["}]|\[[ \t\r\n]*[{\]]|\Z)')
_FOREIGN = [
    (rb"PK\x03\x04", "a zip archive or spreadsheet", "unpack it, or save it as CSV"),
    (rb"BZh\d1AY&SY", "a bzip2 file", "unpack it (gzip and zstd are read as they are)"),
    (rb"\xfd7zXZ\0", "an xz file", "unpack it (gzip and zstd are read as they are)"),
    (rb"[\s\S]{257}ustar", "a tar archive", "unpack it, and name the files in it"),
    (rb"ARROW1\0\0", "an Arrow file", "save it as Parquet"),
    (rb"version https://git-lfs", "a pointer of Git LFS, and not the data", "git lfs pull"),
    (rb"(?i:\s*<(?:!doctype|html))", "a web page", "fetch the file itself"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16, and not UTF-8", "iconv -f UTF-16 -t UTF-8 OLD > NEW"),
]
"""What is met under a data file's name, and what then helps."""


def open_file(path: Path, name: str) -> BufferedReader:
    """The file's bytes, unpacked, behind a byte-order mark if there is one.

    Raises:
        UsageError: it is missing, no regular file, not readable, or not packed as its name says.
        DataError: (here or while reading) it is damaged.
    """
    check_file(path, name)
    try:
        file: BufferedReader = BufferedReader(path.open("rb", buffering=0), BUFFER_BYTES)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror})") from None
    try:
        stream = unpacked(file, name)
        if stream.peek(3).startswith(BOM):
            stream.read(3)
    except BaseException:
        file.close()
        raise
    return stream


def check_file(path: Path, name: str) -> None:
    """Opening a pipe would wait for a writer and a device may do anything: look first.

    Raises:
        UsageError: why this is no file to read.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"no such file: {name}", fix=_nearby(path)) from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UsageError("a file name cannot have a NUL character in it") from None
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name} is a directory", fix=f"name the files in it: {name}/*.jsonl")
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{name} is not a regular file",
            why="data is read more than once, which a pipe, socket or device does not allow",
            fix="write it to a file first",
        )


def kind_by_name(name: str) -> Kind | None:
    """What a file's name says that it holds; None where it says nothing."""
    return KINDS.get(stem_and_suffix(name)[1])


def stem_and_suffix(name: str) -> tuple[str, str]:
    """`"train.csv.gz"` → `("train", ".csv")`: the name without its endings, and what it holds."""
    path = PurePath(name)
    if path.suffix.lower() in PACKED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem, path.suffix.lower()


def kind_of(name: str, head: bytes) -> Kind:
    """What the file holds, by its name and its first bytes (unpacked).

    Raises:
        UsageError: it is something that is not read.
    """
    for pattern, what, fix in _FOREIGN:
        if re.match(pattern, head):
            raise UsageError(f"{name} is {what}", fix=fix)
    kind = kind_by_name(name)
    if head.startswith(b"PAR1"):
        return "parquet"
    if kind == "parquet":
        raise UsageError(f"{name} is no Parquet file, or an encrypted one", why="it lacks the mark")
    if kind is None and _JSON_START.match(head):
        return "json"
    if kind is None:
        raise UsageError(f"{name}: what it holds is not known", fix=f"what is read: {READABLE}")
    return kind


def numbered_lines(file: BufferedReader, *, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines (ended by `\\n` only) that are not blank, with their numbers; None for one of more than
    `limit` bytes, which is passed over without holding it."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            while line and not line.endswith(b"\n"):
                line = file.readline(limit)
            yield number, None
        elif line.strip(b" \t\r\n"):
            yield number, line
        else:
            number += _pass_newlines(file)


def _pass_newlines(file: BufferedReader) -> int:
    """How many empty lines follow. Hundreds of millions take no room where a file is packed, and
    minutes where they are read one by one."""
    count = 0
    while head := file.peek():
        empty = len(head) - len(head.lstrip(b"\n"))
        if not empty:
            break
        count += len(file.read(empty))
    return count


def _nearby(path: Path) -> str:
    """What is there instead, so that the mistyped name can be seen."""
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    near = get_close_matches(path.name, names, n=3, cutoff=0.5)
    return "near it: " + ", ".join(str(path.parent / name) for name in near) if near else ""
