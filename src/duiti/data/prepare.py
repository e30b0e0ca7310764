"""Sources to examples on disk: read, parse, render, encode, with every row accounted for.

    found = prepare([parse_source("a.jsonl")], template, PrepareOptions(date="2026-03-31"))
    found.store; found.account; found.names

Preparing never raises because of a row: all rows are looked at, so that all problems can be shown
at once. What was made is kept under a name of everything it was made from
(`duiti.data.storage.cache`): the next run with the same rows, tokenizer, template and settings
reads it back, and one that was killed halfway goes on from there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from duiti.data.chunk import Account, Chunk, NumberedRow
from duiti.data.pool import CHUNK_ROWS, Job, Pool, PromptService, encode_here
from duiti.data.reading.files import check_file, kind_by_name
from duiti.data.reading.filter import filter_digest, load_filter
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
from duiti.data.templates.control import Mode
from duiti.data.templates.spans import TrainOn
from duiti.data.templates.template import Template
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.errors import DataError, RowError, UsageError
from duiti.types import Json, Rejected, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART_ROWS = 16384
"""Rows of a part of the cache: what is lost at most when a preparation is killed."""
CHUNK_BYTES = 2**20
SMALL_BYTES = 2**21
SMALL_ROWS = 4096
"""Data up to this size is prepared before a second process would have started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What a user may choose about preparing data."""

    date: str
    mapping: Mapping[str, str] = field(default_factory=dict)
    filter: str | None = None
    train_on: TrainOn = "assistant"
    special_tokens: Mode = "reject"
    truncate_to: int | None = None
    seed: int = 0
    workers: int | None = None
    """None: one per CPU core, and one for little data."""
    cache: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file as it was when it was read."""

    name: str
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far preparing has come."""

    rows: int
    read_bytes: int
    total_bytes: int | None
    """None: not known before the end (rows from Python, compressed files)."""


Say = Callable[[str], None]
Keep = Callable[[Mapping[str, Json]], bool]
Report = Callable[[Progress], None]


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
    names = tuple(str(source) for source in sources)
    keep = load_filter(options.filter) if options.filter is not None else None
    job = make_job(template, options)
    paths = {source.path: source.name for source in sources if source.path is not None}
    for path, name in paths.items():
        check_file(path, name)
    stamps = {path: _stamp(path) for path in paths}  # before they are hashed, let alone read
    files = {path: FileFacts(name=name, sha256=file_digest(path)) for path, name in paths.items()}
    with _entry(sources, files, job, options, say) as entry:
        account = Account()
        parts = list(entry.parts())
        for part in parts:
            account.add(Account.from_dict(part.account))
        was_complete = entry.is_complete
        if not was_complete:
            if parts:
                say(f"goes on behind {account.num_rows:,} rows that are prepared already")
            rows = islice(_rows(sources, keep, options.seed), account.num_rows, None)
            meter = _Meter(report, _total_bytes(sources), account.num_rows)
            for part in _parts(_encode(job, rows, meter, sources, options.workers)):
                _raise_changes(stamps)  # or what is kept would not be what its name says
                entry.append(part)
                account.add(Account.from_dict(part.account))
            _raise_changes(stamps)
            entry.finish({"rows": account.num_rows})
        store = ExampleStore([part.block for part in entry.parts()], [s.name for s in sources])
    return Prepared(
        store=store,
        account=account,
        names=names,
        files=tuple(files.values()),
        is_from_cache=was_complete,
    )


def make_job(template: Template, options: PrepareOptions) -> Job:
    """What a process has to know before the first row."""
    tokenizer = template.tokenizer
    return Job(
        spec=template.spec(options.date),
        tokenizer_json=tokenizer_json(tokenizer),
        options=EncodeOptions(
            train_on=options.train_on,
            special_tokens=options.special_tokens,
            truncate_to=options.truncate_to,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        ),
        mapping=dict(options.mapping),
        markers=template.markers,
    )


def prompt_service(
    template: Template, *, date: str = "auto", special_tokens: Mode = "escape"
) -> PromptService:
    """Prompts of this template as serving sends them."""
    options = PrepareOptions(date=day(date), special_tokens=special_tokens)
    return PromptService(make_job(template, options))


def make_encoder(template: Template, *, date: str = "auto") -> Encoder:
    """An encoder in this process, for a loop of your own. A template that comes with a model is a
    program: `prepare` and `prompt_service` run it in a child that is bounded, this does not."""
    job = make_job(template, PrepareOptions(date=day(date)))
    return Encoder(job.spec, Tokenizer.from_str(job.tokenizer_json), job.options)


def day(date: str) -> str:
    """The date that a template gets: the one given, or for `auto` today's."""
    return datetime.date.today().isoformat() if date == "auto" else date


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's Rust core as JSON.

    Raises:
        UsageError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) is written in Python only",
            why="data is encoded by the tokenizers library, from a tokenizer.json",
            fix="save the model with a fast tokenizer",
        )
    text: str = backend.to_str()
    return text


def _entry(
    sources: Sequence[Source],
    files: Mapping[Path, FileFacts],
    job: Job,
    options: PrepareOptions,
    say: Say,
) -> AbstractContextManager[Entry]:
    if not options.cache or any(source.path is None for source in sources):
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
        "filter": filter_digest(options.filter) if options.filter is not None else "",
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
    meter: _Meter,
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
        size += _size(row)
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(numbered: NumberedRow) -> int:
    """About how many characters a row has; long texts make a chunk of their own."""
    if not isinstance(numbered.row, Row):
        return 0
    return sum(len(v) if isinstance(v, str) else 256 for v in numbered.row.fields.values())


def _parts(chunks: Iterator[Chunk]) -> Iterator[Part]:
    """Chunks, gathered to parts of the cache."""
    blocks, account = [], Account()
    for chunk in chunks:
        blocks.append(chunk.block)
        account.add(chunk.account)
        if account.num_rows >= PART_ROWS:
            yield Part(block=concat(blocks), account=account.as_dict())
            blocks, account = [], Account()
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


def _total_bytes(sources: Sequence[Source]) -> int | None:
    """What there is to read; None where rows and bytes of a file have little to do with another."""
    total = 0
    for source in sources:
        is_whole = source.share is None and source.count is None
        if source.path is None or not is_whole or source.path.suffix not in (".jsonl", ".json"):
            return None
        total += source.path.stat().st_size
    return total


class _Meter:
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
            self._bytes += sum(_size(row) + 30 for row in chunk)
            # Rows of an earlier run were not looked at: they count as long as these.
            rows = self._before + self._rows
            read_bytes = round(self._bytes * rows / self._rows)
            self._report(Progress(rows, read_bytes, self._total))
            yield chunk
