"""JSON files to rows: one object per line, or the elements of one array.

    parse = line_parser(name, limit=…)          # a numbered line → Row, or Rejected alone
    read_array(file, name, limit=…)             # piece by piece: it may be larger than memory

An array is one value, so where its syntax breaks, reading ends; the reason then ends in
`REST_UNREAD`. All elements before it have been handed out.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from io import BufferedReader

from duiti.data.reading.strict_json import NoRow, StrictJson, skip_space, syntax_fault
from duiti.errors import RowError, UsageError
from duiti.types import Json, Origin, Rejected, Row

REST_UNREAD = "; nothing after it is read"
"""Ends the reason of a row behind which the next one cannot be found."""

_PIECE_BYTES, _MAX_PIECE_BYTES = 2**18, 2**24
_LOOKAHEAD = 16
"""Characters that settle where a value ends: `-Infinity`, `1e+5` or `\\ud83d` may be cut."""
_OPEN_LINE = re.compile(rb"[ \t\r\n]*(\{[^\n]*)\n[ \t\r\n]*([^\n]*)\n")


def line_parser(name: str, *, limit: int) -> Callable[[tuple[int, bytes | None]], Row | Rejected]:
    """A function that makes a row of a line from `numbered_lines`."""
    json_ = StrictJson()

    def parse(numbered: tuple[int, bytes | None]) -> Row | Rejected:
        number, line = numbered
        origin = Origin(name, number)
        if line is None:
            return Rejected(origin, f"the line is longer than {limit >> 20} MiB")
        try:
            return Row(json_.parse_line(line), origin)
        except RowError as error:
            return Rejected(origin, str(error))

    return parse


def is_array(head: bytes) -> bool:
    """Whether a file that begins so holds an array."""
    return head.lstrip(b" \t\r\n").startswith(b"[")


def refuse_spread_object(head: bytes, name: str) -> None:
    """One object over several lines is no row per line: say so once instead of for every line.

    Raises:
        UsageError: the file begins with such an object.
    """
    found = _OPEN_LINE.match(head)
    if found is None or not found[1].rstrip().endswith((b"{", b"[", b",")):
        return
    try:
        json.loads(found[2])
    except (ValueError, RecursionError):
        raise UsageError(
            f"{name} begins with an object that goes over several lines",
            why="rows are objects of one line each, or the elements of one array",
            fix=f"jq -c . {name} > rows.jsonl; where they are in a list inside: jq -c '.data[]'",
        ) from None


def read_array(file: BufferedReader, name: str, *, limit: int) -> Iterator[Row | Rejected]:
    """The elements of an array, in order."""
    text, json_ = _Text(file), StrictJson()
    text.skip_space()
    text.position += 1
    text.skip_space()
    try:
        while not text.starts_with("]"):
            origin = Origin(name, text.line(text.position))
            try:
                yield Row(_element(text, json_, limit), origin)
            except NoRow as error:
                text.position = error.end
                yield Rejected(origin, str(error))
            _to_next(text)
        line = text.line(text.position)
        text.position += 1
        text.skip_space()
        if text.fault or text.position < len(text.window):
            raise _Broken("there is something after the closing bracket", line)
    except _Broken as error:
        line = text.line(len(text.window)) if text.fault else error.line
        yield Rejected(Origin(name, line), f"{text.fault or error}{REST_UNREAD}")


class _Broken(Exception):
    """The array's syntax breaks in a line."""

    def __init__(self, reason: str, line: int) -> None:
        self.line = line
        super().__init__(reason)


class _Text:
    """A file's text through a window that moves on; `position` is where reading stands in it."""

    def __init__(self, file: BufferedReader) -> None:
        self.window = ""
        self.position = 0
        self.is_complete = False
        self.fault = ""
        """Why the text ends before the file does."""
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line, self._counted = 1, 0

    def move(self) -> None:
        """Let go what lies before the position, and read on."""
        self.line(self.position)
        pending = self.window[self.position :]
        # As much again as is pending, so that a long element is not parsed anew too often.
        size = min(max(_PIECE_BYTES, len(pending)), _MAX_PIECE_BYTES)
        raw = self._file.read1(size)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            text = error.object[: error.start].decode("utf-8")
            self.fault = "not UTF-8"
        self.is_complete = not raw or bool(self.fault)
        self.window, self.position, self._counted = pending + text, 0, 0

    def skip_space(self) -> None:
        while True:
            self.position = skip_space(self.window, self.position)
            if self.position < len(self.window) or self.is_complete:
                return
            self.move()

    def starts_with(self, character: str) -> bool:
        return self.window.startswith(character, self.position)

    def line(self, position: int) -> int:
        """The line of a position, which must not lie before the one asked for last."""
        self._line += self.window.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def settles(self, position: int) -> bool:
        """Whether no more text could change what was found there."""
        return self.is_complete or position + _LOOKAHEAD <= len(self.window)


def _element(text: _Text, json_: StrictJson, limit: int) -> dict[str, Json]:
    """The element at the position, which moves behind it.

    Raises:
        NoRow, _Broken: the reason why it is no row.
    """
    while True:
        try:
            value, end = json_.raw_decode(text.window, text.position)
            if text.settles(end) and end - text.position <= limit:
                text.position = end
                return value
        except NoRow as error:
            if text.settles(error.end) and error.end - text.position <= limit:
                raise
        except RowError as error:
            raise _Broken(str(error), text.line(text.position)) from None
        except json.JSONDecodeError as error:
            # A string without an end is reported where it begins.
            place = len(text.window) if error.msg.startswith("Unterminated") else error.pos
            if text.settles(place) and place - text.position <= limit:
                raise _Broken(syntax_fault(error), text.line(error.pos)) from None
        if text.is_complete or len(text.window) - text.position > limit + _LOOKAHEAD:
            raise _Broken(f"longer than {limit >> 20} MiB", text.line(text.position))
        text.move()


def _to_next(text: _Text) -> None:
    """From behind an element to the next one or to the closing bracket."""
    text.skip_space()
    if text.starts_with("]"):
        return
    line = text.line(text.position)
    if not text.starts_with(","):
        raise _Broken("not valid JSON: expected a comma or a closing bracket", line)
    text.position += 1
    text.skip_space()
    if text.starts_with("]"):
        raise _Broken("not valid JSON: a comma before the closing bracket", line)
