"""What the user names as data: files, folders, and how much of each.

    expanded = expand([parse_source("a.jsonl@0.1"), parse_source("folder")])
    for source in expanded.train: read_rows(source, seed)

| written | means | in YAML |
|---|---|---|
| `a.jsonl` | every row | `a.jsonl` |
| `a.jsonl@0.1` | a tenth of the rows | `{path: a.jsonl, weight: 0.1}` |
| `a.jsonl@2` | every row twice | `{path: a.jsonl, weight: 2}` |
| `a.jsonl@1.5` | every row once, and half of them twice | `{path: a.jsonl, weight: 1.5}` |
| `a.jsonl#500` | 500 of the rows | `{path: a.jsonl, rows: 500}` |

A path that exists as it is written is that path, whatever is in its name. Nothing is read here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from duiti.data.reading.files import READABLE, check_file, kind_by_name, stem_and_suffix
from duiti.errors import UsageError
from duiti.types import Json

MAX_WEIGHT = 100.0
"""A larger one is a number of rows behind the wrong mark."""

_SUFFIX = re.compile(r"(?P<path>.+)(?P<mark>[@#])(?P<amount>[^@#/]*)", re.DOTALL)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
"""What a file of a folder is for, by a word of its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows, and how many of them are meant. With neither `share` nor `count`: every row, once."""

    name: str
    """As the user gave it, without what is said about its amount; `<rows>` for rows from Python."""
    path: Path | None = None
    """Of the file, or of a folder until `expand`; None for rows from Python."""
    rows: Iterable[Mapping[str, Json]] | None = None
    """Rows from Python."""
    share: float | None = None
    """Of the rows, chosen by the seed: 0.1 is a tenth, 2 is every row twice."""
    count: int | None = None
    """Of the rows, chosen by the seed."""

    def __str__(self) -> str:
        amount = f"@{self.share:g}" if self.share is not None else ""
        return f"{self.name}{amount}{f'#{self.count}' if self.count is not None else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """Files instead of folders."""

    train: tuple[Source, ...]
    """What was named, and of folders the files to train on."""
    val: tuple[Source, ...]
    """Files of folders that are there to validate with."""
    ignored: tuple[str, ...]
    """Names of files in folders that could be read and are not: test files, and what is neither."""


def parse_source(value: str | Path) -> Source:
    """The source that is meant by a path with an amount.

    Raises:
        UsageError: what is wrong with it, and how it is written.
    """
    if not str(value) or str(value).isspace():
        raise UsageError("the name of a file is empty")
    if isinstance(value, Path):
        return Source(name=str(value), path=value)
    found = _SUFFIX.fullmatch(value)
    if found is None or _exists(value):
        return Source(name=value, path=Path(value))
    name, mark, amount = found["path"], found["mark"], found["amount"]
    plain = Source(name=name, path=Path(name))
    number = _number(amount)
    if number is None and not _exists(name):
        return Source(name=value, path=Path(value))  # the mark was part of a name, mistyped
    if (outer := _SUFFIX.fullmatch(name)) and not _exists(name) and _exists(outer["path"]):
        raise UsageError(f"{value}: give a weight (@) or a number of rows (#), not both")
    if mark == "#":
        return replace(plain, count=_count(number, value, name))
    return replace(plain, share=_weight(number, value, name))


def expand(sources: Iterable[Source]) -> Expanded:
    """Put the files of folders in the place of the folders, and look whether all are there.

    Raises:
        UsageError: a file or folder that cannot be read; of several, all.
    """
    train: list[Source] = []
    val: list[Source] = []
    ignored: list[str] = []
    problems: list[UsageError] = []
    for source in sources:
        try:
            if source.path is not None and _is_folder(source.path):
                found = _files_of(source, source.path)
                train += found.train
                val += found.val
                ignored += found.ignored
            else:
                if source.path is not None:
                    check_file(source.path, source.name)
                train.append(source)
        except UsageError as error:
            problems.append(error)
    if len(problems) > 1:
        raise UsageError("\n".join(map(str, problems)))
    if problems:
        raise problems[0]
    return Expanded(train=tuple(train), val=tuple(val), ignored=tuple(ignored))


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in it
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"(\d+(\.\d*)?|\.\d+)(e-?\d+)?", text, re.ASCII) else None


def _written(name: str) -> str:
    return (
        f"{name}@0.1 for a tenth of its rows, {name}@2 for each twice, {name}#500 for 500 of them"
    )


def _weight(number: float | None, text: str, name: str) -> float:
    if number is None or not 0 < number < math.inf:
        raise UsageError(f"{text}: the weight must be a number above 0", fix=_written(name))
    if number > MAX_WEIGHT:
        raise UsageError(
            f"{text}: a weight of {number:g} repeats every row that often",
            fix=f"for a number of rows: {name}#{number:.0f}",
        )
    return number


def _count(number: float | None, text: str, name: str) -> int:
    if number is None or number < 1 or not number.is_integer():
        raise UsageError(
            f"{text}: the number of rows must be a whole number above 0", fix=_written(name)
        )
    return int(number)


def _files_of(source: Source, folder: Path) -> Expanded:
    names = _readable(folder)
    splits = {name: _split_of(name, folder) for name in names}
    train = [name for name in names if splits[name] == "train"]
    val = [name for name in names if splits[name] == "val"]
    if not train:
        raise _no_train_file(source.name, folder, names)
    _check_shards(train + val, folder)
    if source.count is not None and len(train) > 1:
        raise UsageError(
            f"{source}: the folder has {len(train)} train files",
            why="of which one the rows should come is not said",
            fix=f"a share of each: {source.name}@0.1, or name them: {folder / train[0]}#500",
        )
    for name in train + val:
        check_file(folder / name, str(folder / name))

    def files(names: list[str], like: Source) -> tuple[Source, ...]:
        return tuple(replace(like, name=str(folder / name), path=folder / name) for name in names)

    return Expanded(
        train=files(train, source),
        val=files(val, replace(source, share=None, count=None)),
        ignored=tuple(str(folder / name) for name in names if name not in {*train, *val}),
    )


def _readable(folder: Path) -> list[str]:
    try:
        entries = [entry for entry in folder.iterdir() if not entry.is_dir()]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from None
    names = (entry.name for entry in entries if not entry.name.startswith("."))
    return sorted(name for name in names if kind_by_name(name))


def _split_of(name: str, folder: Path) -> str:
    words = re.split(r"[^a-z0-9]+", stem_and_suffix(name)[0].lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    if len(found) > 1:
        raise UsageError(
            f"{folder / name}: its name says {' and '.join(sorted(found))}",
            fix="name the files instead of the folder",
        )
    return found.pop() if found else ""


def _no_train_file(name: str, folder: Path, names: list[str]) -> UsageError:
    found = [str(folder / name) for name in names]
    for entry in sorted(folder.iterdir()):
        if _is_folder(entry) and not entry.name.startswith("."):
            found += [str(entry / inner) for inner in _readable(entry)]
    more = f", … and {len(found) - 10} more" if len(found) > 10 else ""
    return UsageError(
        f"the folder {name} has no train file (train.jsonl, train-00000-of-00002.parquet, …)",
        why=f"what can be read: {', '.join(found[:10])}{more}" if found else "",
        fix=f"name the files to train on: {found[0]}" if found else f"what is read: {READABLE}",
    )


def _check_shards(names: list[str], folder: Path) -> None:
    """The same rows in two formats would be trained twice, and a missing shard would not be missed.

    Raises:
        UsageError: there is one file too many or too few.
    """
    by_stem: dict[str, str] = {}
    for name in names:
        stem = stem_and_suffix(name)[0]
        if stem in by_stem:
            raise UsageError(
                f"{folder}: {by_stem[stem]} and {name}: which one is meant?",
                fix=f"name it: {folder / name}",
            )
        by_stem[stem] = name
    for stem in by_stem:
        if found := re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)", stem):
            start, digits, of, total = found.groups()
            for number in range(min(int(total), 100_000)):
                if f"{start}{number:0{len(digits)}}{of}{total}" not in by_stem:
                    raise UsageError(
                        f"{folder}: part {number} of {total} of {start[:-1]} is missing"
                    )
