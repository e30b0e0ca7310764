"""How far preparing has come: rows, and bytes where a file says how many there are.

meter = Meter(report, total_bytes(sources), rows=0)
for chunk in meter.watch(chunks): …         # reports while it is read
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from duiti.data.chunk import NumberedRow
from duiti.data.reading.sources import Source
from duiti.types import Json, Row


@dataclass(frozen=True, slots=True)
class Progress:
    """How far preparing has come."""

    rows: int
    read_bytes: int
    total_bytes: int | None
    """None: not known before the end (rows from Python, compressed files)."""


Report = Callable[[Progress], None]


class Meter:
    """Counts what is read while it is read."""

    def __init__(self, report: Report, total_bytes: int | None, rows_before: int) -> None:
        self._report = report
        self._total = total_bytes
        self._before = rows_before
        self._rows = 0
        self._bytes = 0

    def watch(self, chunks: Iterator[list[NumberedRow]]) -> Iterator[list[NumberedRow]]:
        for chunk in chunks:
            self._rows += len(chunk)
            self._bytes += sum(map(row_bytes, chunk))
            # Rows of an earlier run were not looked at: they count as long as these.
            rows = self._before + self._rows
            read_bytes = round(self._bytes * rows / self._rows)
            self._report(Progress(rows, read_bytes, self._total))
            yield chunk


_PLAIN = (".jsonl", ".json", ".ndjson")


def total_bytes(sources: Sequence[Source]) -> int | None:
    """What there is to read; None where rows and bytes of a file have little to do with another."""
    total = 0
    for source in sources:
        is_whole = source.share is None and source.count is None
        if source.path is None or not is_whole or source.path.suffix not in _PLAIN:
            return None
        total += source.path.stat().st_size
    return total


def row_bytes(numbered: NumberedRow) -> int:
    """About how many bytes a row has in its file."""
    return _bytes(numbered.row.fields) if isinstance(numbered.row, Row) else 0


def _bytes(value: Json | Mapping[str, Json]) -> int:
    if isinstance(value, str):
        return 4 + (len(value) if value.isascii() else len(value.encode("utf-8")))
    if isinstance(value, Mapping):
        return sum(4 + len(key) + _bytes(item) for key, item in value.items())
    return sum(map(_bytes, value)) if isinstance(value, list) else 4
