"""Files to rows: JSONL and JSON, strictly, every row with its file and line.

    for row in read_rows("my.jsonl"):        # Row, or Rejected with the reason

A line ends at `\\n` only (a `\\r` before it is dropped): U+2028 and friends stay inside their
string. Refused by line: bytes that are not UTF-8, duplicate keys, NaN and Infinity, numbers beyond
Python's limits, anything that is not an object. A byte-order mark at the start is tolerated; blank
lines are skipped. Nothing is guessed: a string that looks like a date or a number stays a string.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from duiti.errors import RowError, UsageError, shown_name
from duiti.types import Json, Origin, Rejected, Row

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are no prompt/response pairs; reading one whole could take all memory."""

MAX_DIGITS = 1000
"""Of an integer: Python's own limit (4300) is an exception, and parsing costs the square."""


def read_rows(source: str | Path | Sequence[Mapping[str, Json]]) -> Iterator[Row | Rejected]:
    """The rows of a file (or of a list of dicts), in order.

    Raises:
        UsageError: the file is missing, unreadable, or of a kind that is not read.
    """
    if not isinstance(source, str | Path):
        for index, fields in enumerate(source, start=1):
            yield Row(fields, Origin("<rows>", index))
        return
    name = str(source)
    with _open(Path(source)) as file:
        if _first_character(file) == b"[":
            yield from _read_array(file, name)
        else:
            yield from _read_lines(file, name)


def _open(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory", fix=f"name the files in it: {path}/*.jsonl")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is not a regular file", why="a pipe or device has no lines")
        file = path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}", fix=_nearby(path)) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    return file


def _nearby(path: Path) -> str:
    """What is there instead, so that the mistyped name can be seen."""
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    near = get_close_matches(path.name, names, n=3, cutoff=0.5)
    return "near it: " + ", ".join(str(path.parent / name) for name in near) if near else ""


def _first_character(file: BinaryIO) -> bytes:
    start = file.tell()
    while (character := file.read(1)) and character.isspace():
        pass
    file.seek(start)
    return character


def _read_lines(file: BinaryIO, name: str) -> Iterator[Row | Rejected]:
    number, json_ = 0, _StrictJson()
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        origin = Origin(name, number)
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):  # skip the rest of it, a piece at a time
                line = file.readline(MAX_LINE_BYTES)
            yield Rejected(origin, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if not line.strip():
            continue
        try:
            yield Row(_parse_line(json_, line.decode("utf-8")), origin)
        except UnicodeDecodeError as error:
            yield Rejected(origin, f"not UTF-8: byte {error.start + 1} of the line")
        except RowError as error:
            yield Rejected(origin, str(error))


def _read_array(file: BinaryIO, name: str) -> Iterator[Row | Rejected]:
    """A JSON array of objects. It is one value, so the first syntax error ends the reading."""
    try:
        text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        yield Rejected(Origin(name, line), "not UTF-8")
        return
    json_ = _StrictJson()
    position, line = _skip_space(text, text.index("[") + 1), 1
    counted = 0
    while True:
        line += text.count("\n", counted, position)
        counted = position
        origin = Origin(name, line)
        if text[position : position + 1] == "]":
            if text[position + 1 :].strip():
                yield Rejected(origin, "there is something after the closing bracket")
            return
        try:
            value, position = json_.raw_decode(text, position)
            yield Row(value, origin)
        except json.JSONDecodeError as error:
            yield Rejected(Origin(name, error.lineno), f"not valid JSON: {error.msg}")
            return
        except RecursionError:
            yield Rejected(origin, "nested too deeply")
            return
        except _BadObject as error:
            yield Rejected(origin, str(error))
            position = error.end
        place, position, fault = _to_next(text, _skip_space(text, position))
        if fault:
            yield Rejected(Origin(name, text.count("\n", 0, place) + 1), f"not valid JSON: {fault}")
            return


def _to_next(text: str, position: int) -> tuple[int, int, str]:
    """From behind an element to the next one or the closing bracket: where it stood, where that is,
    and what was wrong between, if anything."""
    if text.startswith("]", position):
        return position, position, ""
    if not text.startswith(",", position):
        return position, position, "expected a comma or a closing bracket"
    after = _skip_space(text, position + 1)
    return (
        position,
        after,
        "a comma before the closing bracket" if text.startswith("]", after) else "",
    )


class _BadObject(RowError):
    """Valid JSON that means no row; `end` is where it ends, so that reading can go on behind it."""

    def __init__(self, reason: str, end: int) -> None:
        self.end = end
        super().__init__(reason)


class _StrictJson:
    """A JSON decoder that takes objects only and none of Python's leniencies."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_constant=self._constant, parse_int=self._int
        )

    def raw_decode(self, text: str, position: int) -> tuple[dict[str, Json], int]:
        """The object that begins at `position`, and the position behind it.

        Raises:
            json.JSONDecodeError, RecursionError: not JSON.
            _BadObject: JSON, but not an object, or with a duplicate key, NaN or an absurd number.
        """
        self._problems.clear()
        value, end = self._decoder.raw_decode(text, position)
        if not isinstance(value, dict):
            raise _BadObject("not a JSON object ({…})", end)
        if self._problems:
            raise _BadObject(self._problems[0], end)
        return value, end

    # Raising inside a hook would lose where the value ends, so the hooks only take note.

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            self._problems.append(f"the key {shown_name(twice)} is given twice")
        return values

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name} is not JSON")

    def _int(self, digits: str) -> int:
        if len(digits) <= MAX_DIGITS:
            return int(digits)
        self._problems.append(f"a number has more than {MAX_DIGITS} digits")
        return 0


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _parse_line(json_: _StrictJson, text: str) -> dict[str, Json]:
    try:
        value, end = json_.raw_decode(text, _skip_space(text, 0))
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise RowError("nested too deeply") from None
    if _skip_space(text, end) != len(text):
        raise RowError(f"not valid JSON: something follows the object at character {end + 1}")
    return value
