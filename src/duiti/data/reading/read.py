"""Sources to rows, strictly, each row with its file and line.

    for row in read_rows("my.jsonl"):               # Row, or Rejected with the reason
    for row in read_rows(source, seed=3):           # a Source of duiti.data.reading.sources

| file | read as | by |
|---|---|---|
| `.jsonl`, `.ndjson`, `.json` | an object per line, or one array of objects | `json_rows.py` |
| `.csv`, `.tsv` | a header and rows of text | `tables.py` |
| `.parquet` | columns of text, numbers, lists and structs (extra `parquet`) | `parquet.py` |

Each may be packed with gzip or zstd (extra `zstd`). A file is read as a stream: memory does not
grow with it. All rows at fault are handed out as `Rejected`, so that all can be shown at once; only
what makes a whole file unreadable is raised. Nothing is guessed: a string that looks like a date or
a number stays a string.

Of a source that is only partly meant (`@0.1`, `#500`), rows at fault count like others: first the
rows are counted, then exactly as many are chosen by the seed, each as likely as the next, and
handed out in the order of the file. A weight above 1 hands out a row several times in succession,
and one at fault once.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from duiti.data.reading.files import Kind, kind_of, numbered_lines, open_file
from duiti.data.reading.json_rows import (
    REST_UNREAD,
    is_array,
    line_parser,
    read_array,
    refuse_spread_object,
)
from duiti.data.reading.parquet import count_parquet, read_parquet
from duiti.data.reading.sources import Source, parse_source
from duiti.data.reading.strict_json import fault_of, kind_name
from duiti.data.reading.tables import read_csv
from duiti.errors import DataError, UsageError
from duiti.types import Json, Origin, Rejected, Row

MAX_LINE_BYTES = 64 * 2**20
"""Longer rows are no prompt/response pairs; holding one whole could take all memory."""

_T = TypeVar("_T")


def read_rows(
    source: Source | str | Path | Iterable[Mapping[str, Json]], seed: int = 0
) -> Iterator[Row | Rejected]:
    """The rows of a file (or of an iterable of mappings), in order.

    Args:
        source: a string is read as `parse_source` does: `"a.jsonl"`, `"a.jsonl@0.1"`.
        seed: chooses the rows of a source that is only partly meant.

    Raises:
        UsageError: the file is missing, unreadable, or of a kind that is not read.
        DataError: (while reading) it is damaged; all rows before have been handed out.
    """
    found = _as_source(source)
    picks = _picks(found, count_rows(found), seed) if _is_partial(found) else None
    if found.path is None:
        rows = enumerate(found.rows or (), start=1)
        yield from _choose(rows, lambda pair: _python_row(found.name, *pair), picks, found.name)
        return
    try:
        with open_file(found.path, found.name) as file:
            yield from _choose_in_file(file, found.name, picks)
    except OSError as error:
        raise _interrupted(found.name, error) from None


def count_rows(source: Source | str | Path | Iterable[Mapping[str, Json]]) -> int:
    """How many rows the source has, those at fault included, whatever part of them is meant. Lines
    of JSON are counted without parsing them, and Parquet says it.

    Raises:
        UsageError, DataError: as `read_rows` does.
    """
    found = _as_source(source)
    if found.path is None:
        if isinstance(found.rows, Iterator):
            raise UsageError("rows that can be gone through once cannot be counted first")
        return sum(1 for _ in found.rows or ())
    try:
        with open_file(found.path, found.name) as file:
            head = file.peek()
            kind = kind_of(found.name, head)
            if kind == "parquet":
                return count_parquet(file, found.name)
            if kind == "json" and not is_array(head):
                return sum(1 for _ in numbered_lines(file, limit=MAX_LINE_BYTES))
            return sum(1 for _ in _rows_of(kind, file, found.name))
    except OSError as error:
        raise _interrupted(found.name, error) from None


def _as_source(source: Source | str | Path | Iterable[Mapping[str, Json]]) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, str | Path):
        return parse_source(source)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise UsageError(f"rows are given as an iterable of mappings, not as {type(source)}")
    return Source(name="<rows>", rows=source)


def _is_partial(source: Source) -> bool:
    return source.count is not None or source.share not in (None, 1)


def _choose_in_file(
    file: BufferedReader, name: str, picks: Iterator[int] | None
) -> Iterator[Row | Rejected]:
    head = file.peek()
    kind = kind_of(name, head)
    if kind == "json" and not is_array(head):
        refuse_spread_object(head, name)
        lines = numbered_lines(file, limit=MAX_LINE_BYTES)
        return _choose(lines, line_parser(name, limit=MAX_LINE_BYTES), picks, name)
    return _choose(_rows_of(kind, file, name), lambda row: row, picks, name)


def _rows_of(kind: Kind, file: BufferedReader, name: str) -> Iterator[Row | Rejected]:
    """The rows of everything but lines of JSON."""
    if kind == "json":
        return read_array(file, name, limit=MAX_LINE_BYTES)
    if kind == "parquet":
        return read_parquet(file, name)
    delimiter = "," if kind == "csv" else "\t"
    return read_csv(file, name, delimiter=delimiter, limit=MAX_LINE_BYTES)


def _python_row(name: str, number: int, fields: object) -> Row | Rejected:
    origin = Origin(name, number)
    if not isinstance(fields, Mapping):
        return Rejected(origin, f"not a mapping of fields, but {kind_name(fields)}")
    fault = fault_of(fields)
    # A copy: whoever gave the row may go on using it, as a generator does with its one dict.
    return Rejected(origin, fault) if fault else Row(copy.deepcopy(dict(fields)), origin)


def _picks(source: Source, num_rows: int, seed: int) -> Iterator[int]:
    """How often each row is handed out."""
    if source.count is not None and source.count > num_rows:
        raise UsageError(
            f"{source}: there are only {num_rows} rows",
            fix=f"{source.name}#{num_rows}" if num_rows else "",
        )
    total = source.count if source.count is not None else round((source.share or 0) * num_rows)
    if num_rows and not total:
        raise UsageError(f"{source}: of {num_rows} rows that is none", fix=f"{source.name}#1")
    return _spread(total, num_rows, random.Random(seed))


def _spread(total: int, num_rows: int, rng: random.Random) -> Iterator[int]:
    copies, needed = divmod(total, num_rows) if num_rows else (0, 0)
    for left in range(num_rows, 0, -1):  # selection sampling (Knuth 3.4.2, algorithm S)
        is_chosen = rng.random() * left < needed
        needed -= is_chosen
        yield copies + is_chosen


def _choose(
    items: Iterable[_T],
    parse: Callable[[_T], Row | Rejected],
    picks: Iterator[int] | None,
    name: str,
) -> Iterator[Row | Rejected]:
    if picks is None:
        yield from map(parse, items)
        return
    for item in items:
        times = next(picks, None)
        if times is None:
            raise _changed(name)
        row = parse(item)
        if isinstance(row, Row):
            yield from repeat(row, times)
        elif times or row.reason.endswith(REST_UNREAD):  # what hides other rows is never left out
            yield row
    if next(picks, None) is not None:
        raise _changed(name)


def _interrupted(name: str, error: OSError) -> DataError:
    return DataError(f"{name}: cannot be read on ({error.strerror or type(error).__name__})")


def _changed(name: str) -> DataError:
    return DataError(f"{name} changed while it was read")
