"""A copy of a data file without some of its rows; the file itself is never touched.

    cleaned = write_cleaned(Path("train.jsonl"), Path("clean.jsonl"), without={17, 204})
    cleaned.num_kept, cleaned.left_out

Lines are copied byte for byte, blank ones and those that are no rows included. Only files of one
JSON object per line can be copied so.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from duiti.data.reading.files import kind_of, open_file, stem_and_suffix
from duiti.data.reading.json_rows import is_array
from duiti.disk_errors import explained, shown_path
from duiti.durable import sync_folder
from duiti.errors import UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What was written."""

    path: Path
    num_kept: int
    """Lines that were copied, blank ones not counted."""
    left_out: tuple[int, ...]
    """Numbers of the lines that were not."""


def write_cleaned(source: Path, output: Path, *, without: Collection[int]) -> Cleaned:
    """Copy a JSONL file (packed ones are unpacked) without the lines of these numbers, from 1.

    Raises:
        UsageError: it has another format, there is something at `output`, or a line that is to be
        left out is not in the file.
        DuitiError: the disk refuses.
    """
    require_cleanable(source, output)
    wanted, left_out, num_kept = set(without), [], 0
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        with (
            explained(output),
            open_file(source, str(source)) as file,
            temporary.open("xb") as copy,
        ):
            for number, line in enumerate(file, start=1):
                if number in wanted:
                    left_out.append(number)
                    continue
                copy.write(line)
                num_kept += bool(line.strip())
            copy.flush()
            os.fsync(copy.fileno())
        if len(left_out) != len(wanted):
            raise UsageError(
                f"{shown_path(source)} changed while it was looked at", fix="once more"
            )
        _refuse_existing(output)
        with explained(output):
            temporary.rename(output)
            sync_folder(output.absolute().parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return Cleaned(path=output, num_kept=num_kept, left_out=tuple(left_out))


def require_cleanable(source: Path, output: Path) -> None:
    """Whether such a copy can be made: asked before anything is measured.

    Raises:
        UsageError: it cannot.
    """
    if stem_and_suffix(output.name)[1] not in SUFFIXES or output.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{shown_path(output)}: a cleaned copy is written as JSON lines",
            fix=f"--clean {output.name.partition('.')[0] or 'clean'}.jsonl",
        )
    _refuse_existing(output)
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{shown_path(output)}: its folder does not exist")
    with open_file(source, str(source)) as file:
        head = file.peek()
        kind = kind_of(str(source), head)
    if kind == "json" and not is_array(head):
        return
    if kind == "json":
        fix = f"jq -c '.[]' {source} > rows.jsonl, and look at that file"
    else:
        fix = "write it as JSON lines, and look at that file; or leave --clean out, and leave out"
        fix += " the rows that are listed yourself"
    raise UsageError(
        f"{shown_path(source)} is {'one JSON array' if kind == 'json' else kind}: no cleaned copy",
        why="rows are copied as they are, line by line, which needs a file of one object per line",
        fix=fix,
    )


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):
        raise UsageError(
            f"{shown_path(output)} is there already",
            why="nothing is ever written over it",
            fix="choose another name: --clean",
        )
