"""Sources to examples on disk: read, parse, render, encode, with every row accounted for.

    found = prepare([parse_source("a.jsonl")], template, PrepareOptions(date="2026-03-31"))
    found.store; found.account; found.names

Preparing never raises because of a row: all rows are looked at, so that all problems can be shown
at once. What was made is kept under a name of everything it was made from
(`duiti.data.storage.cache`): the next run with the same rows, tokenizer, template and settings
reads it back, and one that was killed halfway goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from duiti.data.chunk import Account, Chunk, FastPathFault, NumberedRow
from duiti.data.jobs import PrepareOptions, make_job
from duiti.data.meter import Meter, Report, row_bytes, total_bytes
from duiti.data.pool import CHUNK_ROWS, Job, Pool, encode_here
from duiti.data.reading.files import check_file, kind_by_name
from duiti.data.reading.filter import load_filter
from duiti.data.reading.read import read_rows
from duiti.data.reading.sources import Source
from duiti.data.storage.block import concat
from duiti.data.storage.cache import (
    Entry,
    Part,
    cache_folder,
    open_entry,
    temporary_entry,
)
from duiti.data.storage.fingerprint import code_digest, file_digest, key
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template
from duiti.errors import DataError, RowError
from duiti.types import Json, Rejected

if TYPE_CHECKING:
    pass

PART_ROWS = 16384
"""Rows of a part of the cache: what is lost at most when a preparation is killed."""
PART_TOKENS = 2**23
CHUNK_BYTES = 2**20
SMALL_BYTES = 2**21
SMALL_ROWS = 4096
"""Data up to this size is prepared before a second process would have started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file as it was when it was read."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The examples of all readable rows, in their order, and where everything went."""

    store: ExampleStore
    account: Account
    names: tuple[str, ...]
    """Of the sources."""
    files: tuple[FileFacts, ...] = ()
    is_from_cache: bool = False


Say = Callable[[str], None]
Keep = Callable[[Mapping[str, Json]], bool]


def prepare(
    sources: Sequence[Source],
    template: Template,
    options: PrepareOptions,
    *,
    say: Say = lambda line: None,
    report: Report = lambda progress: None,
) -> Prepared:
    """Read, parse, render and encode every row.

    Args:
        say: is told what the cache has to say.
        report: is told how far the work has come, every so often.

    Raises:
        UsageError: a file cannot be read at all, or the template must not be used.
        DataError: a file ends in the middle of something, or changed while it was read.
    """
    if options.filter is not None:
        load_filter(options.filter)  # a fault in it shows before anything else is done
    job = make_job(template, options)
    paths = {source.path: source.name for source in sources if source.path is not None}
    for path, name in paths.items():
        check_file(path, name)
    stamps = {path: _stamp(path) for path in paths}  # before they are hashed, let alone read
    files = {
        path: FileFacts(name=name, path=path, sha256=file_digest(path))
        for path, name in paths.items()
    }
    work = _Work(tuple(sources), files, stamps, options, say, report)
    try:
        return work.done(job)
    except FastPathFault:
        say("the fast path for tokens differs from the tokenizers library: all is prepared again"
            " without it (please report this)")  # fmt: skip
        return work.done(replace(job, options=replace(job.options, is_fast=False)))


@dataclass(frozen=True, slots=True)
class _Work:
    """What `prepare` was asked, looked at and found to be there."""

    sources: tuple[Source, ...]
    files: Mapping[Path, FileFacts]
    stamps: Mapping[Path, tuple[int, int] | None]
    options: PrepareOptions
    say: Say
    report: Report

    def done(self, job: Job) -> Prepared:
        """Read from the cache what is there, and make the rest."""
        with _entry(self.sources, self.files, job, self.options, self.say) as entry:
            account = Account()
            for part in entry.parts():
                account.add(Account.from_dict(part.account))
            was_complete = entry.is_complete
            if not was_complete:
                self._make(entry, account, job)
            blocks = [part.block for part in entry.parts()]
        return Prepared(
            store=ExampleStore(blocks, [source.name for source in self.sources]),
            account=account,
            names=tuple(str(source) for source in self.sources),
            files=tuple(self.files.values()),
            is_from_cache=was_complete,
        )

    def _make(self, entry: Entry, account: Account, job: Job) -> None:
        """Prepare what the entry lacks, and close it."""
        if account.num_rows:
            self.say(f"goes on behind {account.num_rows:,} rows that are prepared already")
        keep = load_filter(self.options.filter) if self.options.filter is not None else None
        rows = islice(_rows(self.sources, keep, self.options.seed), account.num_rows, None)
        meter = Meter(self.report, total_bytes(self.sources), account.num_rows)
        for part in _parts(_encode(job, rows, meter, self.sources, self.options.workers)):
            _raise_changes(self.stamps)  # or what is kept would not be what its name says
            entry.append(part)
            account.add(Account.from_dict(part.account))
        _raise_changes(self.stamps)
        entry.finish({"rows": account.num_rows})


def _entry(
    sources: Sequence[Source],
    files: Mapping[Path, FileFacts],
    job: Job,
    options: PrepareOptions,
    say: Say,
) -> AbstractContextManager[Entry]:
    if not options.cache or any(source.path is None for source in sources):
        return temporary_entry()
    if options.filter is not None:  # a program may read anything, which no name can cover
        return temporary_entry()
    asks_date = "strftime_now" in job.spec.source
    spec = {**job.spec.as_dict(), "date": job.spec.date if asks_date else ""}
    is_chosen = any(source.share is not None or source.count is not None for source in sources)
    named = {
        "data": [_named(s, files[s.path]) for s in sources if s.path is not None],
        "tokenizer": hashlib.sha256(job.tokenizer_json.encode()).hexdigest(),
        "template": spec,
        "options": asdict(job.options),
        "mapping": job.mapping,
        "markers": job.markers,
        "seed": options.seed if is_chosen else 0,
        "code": code_digest(),
    }
    name = key({part: json.dumps(value, sort_keys=True) for part, value in named.items()})
    return open_entry(name, folder=cache_folder(), say=say)


def _named(source: Source, file: FileFacts) -> list[str | float | None]:
    """The same bytes mean other rows as CSV than as JSON, and the name decides."""
    return [file.sha256, kind_by_name(source.name), source.share, source.count]


def _rows(sources: Sequence[Source], keep: Keep | None, seed: int) -> Iterator[NumberedRow]:
    for number, source in enumerate(sources):
        for row in read_rows(source, seed=seed):
            if keep is None or isinstance(row, Rejected):
                yield NumberedRow(row, number)
                continue
            try:
                yield NumberedRow(row if keep(row.fields) else None, number)
            except RowError as error:
                yield NumberedRow(Rejected(row.origin, str(error)), number)


def _encode(
    job: Job,
    rows: Iterator[NumberedRow],
    meter: Meter,
    sources: Sequence[Source],
    workers: int | None,
) -> Iterator[Chunk]:
    chunks = meter.watch(_chunks(rows))
    count = workers or _workers(sources)
    if count == 1 and job.spec.is_ours:
        yield from encode_here(job, chunks)
        return
    with Pool(job, count=count) as pool:
        yield from pool.encode(chunks)


def _workers(sources: Sequence[Source]) -> int:
    if all(map(_is_small, sources)):
        return 1
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _is_small(source: Source) -> bool:
    if source.path is not None:
        return source.path.stat().st_size <= SMALL_BYTES
    return isinstance(source.rows, Sequence) and len(source.rows) <= SMALL_ROWS


def _chunks(rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
    chunk: list[NumberedRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row_bytes(row)
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _parts(chunks: Iterator[Chunk]) -> Iterator[Part]:
    """Chunks, gathered to parts of the cache."""
    blocks, account, num_tokens = [], Account(), 0
    for chunk in chunks:
        blocks.append(chunk.block)
        account.add(chunk.account)
        num_tokens += len(chunk.block.input_ids)
        if account.num_rows >= PART_ROWS or num_tokens >= PART_TOKENS:
            yield Part(block=concat(blocks), account=account.as_dict())
            blocks, account, num_tokens = [], Account(), 0
    if blocks:
        yield Part(block=concat(blocks), account=account.as_dict())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # it is gone; who opens it says so better
    return found.st_size, found.st_mtime_ns


def _raise_changes(stamps: Mapping[Path, tuple[int, int] | None]) -> None:
    changed = [str(path) for path, stamp in stamps.items() if _stamp(path) != stamp]
    if changed:
        raise DataError(f"{', '.join(changed)} changed while it was read", fix="run it again")
