"""Rows given as dicts to examples, for tests that are about something else; and files of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from duiti.data.dataset import DataSet, settle_data
from duiti.data.jobs import PrepareOptions
from duiti.data.prepare import Prepared, prepare
from duiti.data.reading.sources import Source, parse_source
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template

NO_LIMIT = 10**9
DATE = "2026-01-01"

Rows = Iterable[Mapping[str, Any]]


def prepared(template: Template, *sources: Rows | str | Path | Source, **options: Any) -> Prepared:
    """Rows, and files by their names, prepared in this process where the template allows it."""
    found = [_source(source) for source in sources]
    return prepare(found, template, PrepareOptions(**{"date": DATE, "workers": 1, **options}))


def settled(
    template: Template,
    *sources: Rows | str | Path | Source,
    max_length: int = NO_LIMIT,
    **options: Any,
) -> DataSet:
    """The same, with what is too long dropped."""
    return settle_data(prepared(template, *sources, **options), max_length=max_length)


def examples_of(
    template: Template,
    *sources: Rows | str | Path | Source,
    max_length: int = NO_LIMIT,
    **options: Any,
) -> ExampleStore:
    """What would be trained of the rows."""
    return settled(template, *sources, max_length=max_length, **options).train


def write_rows(path: Path, rows: Rows) -> Path:
    """A JSONL file of rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _source(source: Rows | str | Path | Source) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, str | Path):
        return parse_source(source)
    return Source(name="<rows>", rows=source)
