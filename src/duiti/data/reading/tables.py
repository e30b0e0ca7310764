"""CSV and TSV files to rows: a row of text under each name of the header.

    for item in read_csv(file, name, delimiter=",", limit=MAX_LINE_BYTES): ...   # Row or Rejected

As RFC 4180 has it: a header; fields that hold a delimiter, a quote or a line end stand in quotes,
and a quote in them is doubled. Every value stays the text it is: nothing becomes a number, a date
or a null, and an empty field is an empty string. A row's line is the one it begins in.

Where a row at fault ends in the line it began in, reading goes on behind it. Where its quotes reach
over several lines, no one can say where the next row begins: reading ends (`REST_UNREAD`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader

from duiti.data.reading.json_rows import REST_UNREAD
from duiti.errors import UsageError, shown_name
from duiti.types import Origin, Rejected, Row

MAX_RECORD_LINES = 1_000_000
"""Of a record; so many are a quote that was never closed."""

_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ESCAPED = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not UTF-8."""


def read_csv(
    file: BufferedReader, name: str, *, delimiter: str, limit: int
) -> Iterator[Row | Rejected]:
    """The rows of a table, in order.

    Raises:
        UsageError: the header is none.
    """
    # Its limit on a field is 128 KiB and belongs to the whole process: raised here, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    records = _Records(file, delimiter, limit)
    header = _header(records, name, delimiter)
    while (fields := records.read()) is not None:
        origin = Origin(name, records.first_line)
        fault = records.fault
        if not fault and len(fields) != len(header):
            fault = f"has {len(fields)} fields, and the header {len(header)}"
        if not fault:
            yield Row(dict(zip(header, fields, strict=True)), origin)
            continue
        if records.last_line > records.first_line:
            fault = f"{fault} (the row goes on to line {records.last_line})"
        yield Rejected(origin, fault + (REST_UNREAD if records.is_lost else ""))


def _header(records: _Records, name: str, delimiter: str) -> list[str]:
    header = records.read()
    if header is None:
        raise UsageError(f"{name} is empty", why="a table begins with the names of its columns")
    where = f"{name}:{records.first_line}"
    if records.fault:
        raise UsageError(f"{where}: the header cannot be read: {records.fault}")
    other = next((character for character in ",;\t|" if character in header[0]), "")
    if len(header) == 1 and other:
        raise UsageError(
            f"{where}: the header is one column, with {_MARKS[other]} in its name",
            why=f"the columns of this file must be divided by {_MARKS[delimiter]}",
            fix={",": "name it .csv", "\t": "name it .tsv"}.get(other, ""),
        )
    if "" in header:
        raise UsageError(
            f"{where}: column {header.index('') + 1} has no name",
            fix="" if header[0] else "pandas writes its index so: df.to_csv(…, index=False)",
        )
    if len(set(header)) < len(header):
        twice = Counter(header).most_common(1)[0][0]
        raise UsageError(f"{where}: the column {shown_name(twice)} is there twice")
    return header


class _Records:
    """The records of a CSV file, each with the lines it begins and ends in, and its fault."""

    def __init__(self, file: BufferedReader, delimiter: str, limit: int) -> None:
        self.first_line = self.last_line = 0
        self.fault = ""
        """Of the record that was read last."""
        self.is_lost = False
        """It is not known where the next record begins."""
        self._file, self._limit = file, limit
        self._text = io.StringIO()  # of short lines, a list would take fifty times as much
        self._size = 0
        self._reader = csv.reader(self._read_lines(), delimiter=delimiter, strict=True)
        mark = re.escape(delimiter)
        field = rf'(?:"(?:[^"]++|"")*+"|[^"\r\n{mark}]*+)'
        self._well_formed = re.compile(rf"{field}(?:{mark}{field})*+\r*\n?")

    def read(self) -> list[str] | None:
        """The fields of the next record; None at the end. Of one at fault they mean nothing."""
        fields: list[str] = []
        while not fields and not self.is_lost:
            self._text, self._size, self.fault = io.StringIO(), 0, ""
            self.first_line = self.last_line + 1
            try:
                fields = next(self._reader)  # [] is a blank line
            except StopIteration:
                return None
            except csv.Error as error:
                self.fault = self.fault or _explained(str(error))
                self.is_lost = self.last_line > self.first_line
                return fields
            except _TooLong:
                lines = f"{MAX_RECORD_LINES:,} lines" if self._size <= self._limit else ""
                self.fault = f"longer than {lines or f'{self._limit >> 20} MiB'}"
                self.is_lost = True
                return fields
            # The csv module takes a quote within an unquoted field as it is. RFC 4180 does not, and
            # what follows a forgotten quote looks like that.
            text = self._text.getvalue()
            if not self.fault and '"' in text and not self._well_formed.fullmatch(text):
                self.fault = "a quote in a field that is not in quotes"
        return fields or None

    def _read_lines(self) -> Iterator[str]:
        while line := self._file.readline(self._limit - self._size + 1):
            self.last_line += 1
            self._size += len(line)
            if self._size > self._limit or self.last_line - self.first_line > MAX_RECORD_LINES:
                raise _TooLong
            # What is no text must not end the record: the next one would begin within its quotes.
            text = line.decode("utf-8", "surrogateescape")
            if not text.isascii() and _ESCAPED.search(text):
                self.fault = f"not UTF-8 in line {self.last_line}"
            if "\0" in text:
                self.fault = "has a NUL character (U+0000)"
            self._text.write(text)
            yield text


class _TooLong(Exception):
    """A record has more bytes than are read."""


def _explained(message: str) -> str:
    """The csv module's finding in our words."""
    if "end of data" in message:
        return "a quoted field is never closed"
    if "new-line character" in message:
        return "a carriage return in a field that is not in quotes"
    if "expected after" in message:
        return "something follows a quoted field (a quote in it must be doubled)"
    return f"not valid CSV: {message}"
