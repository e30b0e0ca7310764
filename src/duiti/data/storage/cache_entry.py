"""An entry of the cache: a list of parts on disk that grows, and a summary that closes it.

    entry = Entry(folder, name)
    entry.restore(say=print)                   # what lies in the folder, as far as it is sound
    entry.append(Part(block=block, account={"rows": 16384}))
    entry.finish({"rows": 20000})

Who may hold an entry, and where it is, is `storage/cache.py`'s to say; what its files look like,
`storage/cache_files.py`'s.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from duiti.data.storage.block import Block, check_block, open_block
from duiti.data.storage.cache_files import (
    LAYOUT,
    Damaged,
    canonical,
    part_names,
    read_part,
    read_sealed,
    write_part,
    write_sealed,
)
from duiti.errors import DuitiError
from duiti.types import Json

VARIABLE = "DUITI_CACHE"
"""Environment variable that names the folder of the cache."""

SUMMARY = "summary.json"

_PART = re.compile(r"(\d{5,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What some rows, one after another, were prepared to."""

    block: Block
    """Their examples."""
    account: dict[str, Json]
    """What became of the rows; the cache gives it back as it was given."""


class Entry:
    """A growing list of parts on disk, and a summary that closes it."""

    def __init__(self, folder: Path, name: str, *, kept: bool = True) -> None:
        """An empty entry in a folder that is there; `kept`: it shall outlive a power failure."""
        self.folder = folder
        self._name = name
        self._kept = kept
        self._parts: list[Part] = []
        self._last = ""
        self._summary: dict[str, Json] | None = None

    @property
    def is_complete(self) -> bool:
        return self._summary is not None

    @property
    def summary(self) -> dict[str, Json]:
        """What `finish` was given; empty before."""
        return dict(self._summary or {})

    def parts(self) -> list[Part]:
        """All parts so far, in order; their blocks are memory maps."""
        return list(self._parts)

    def append(self, part: Part) -> None:
        """Write one more part: it is on disk, whole, when this returns.

        Raises:
            BadBlock: the block breaks its contract.
            DuitiError: it cannot be written; the parts before it stay.
        """
        if self.is_complete:
            raise ValueError("a finished entry takes no more parts")
        check_block(part.block)
        index = len(self._parts)
        with self._writing():
            last = write_part(
                self.folder,
                index,
                part.block,
                part.account,
                key=self._name,
                previous=self._last,
                durable=self._kept,
            )
            block = open_block(self.folder / part_names(index)[0])
        # As it will be read: a tuple in an account comes back as a list, now as in the next run.
        self._parts.append(Part(block=block, account=json.loads(canonical(part.account))))
        self._last = last

    def finish(self, summary: Mapping[str, Json]) -> None:
        """Close the entry: the next run finds it complete.

        Raises:
            DuitiError: it cannot be written; the parts stay.
        """
        body: dict[str, Json] = {**self._end(), "summary": dict(summary)}
        with self._writing():
            write_sealed(self.folder / SUMMARY, body, durable=self._kept)
        self._summary = json.loads(canonical(summary))

    def restore(self, say: Callable[[str], None]) -> None:
        """Take in what lies in the folder, as far as it is what was written; remove the rest."""
        names = os.listdir(self.folder)
        found = [int(match[1]) + 1 for name in names if (match := _PART.fullmatch(name))]
        problem = ""
        try:
            for index in range(max(found, default=0)):
                self._restore_part(index)
            if SUMMARY in names:
                self._restore_summary()
            elif names:
                problem = "an earlier run stopped before its end"
        except Damaged as error:
            problem = str(error)
        if problem:
            say(f"{self.folder}: {problem}; going on with part {len(self._parts) + 1}")
        whole = {name for index in range(len(self._parts)) for name in part_names(index)}
        for name in set(names) - whole - ({SUMMARY} if self.is_complete else set()):
            remove(self.folder / name)

    def _restore_part(self, index: int) -> None:
        block, account, self._last = read_part(
            self.folder, index, key=self._name, previous=self._last
        )
        self._parts.append(Part(block=block, account=account))

    def _restore_summary(self) -> None:
        body, _ = read_sealed(self.folder / SUMMARY)
        summary = body.pop("summary", None)
        if body != self._end() or not isinstance(summary, dict):
            raise Damaged(f"{SUMMARY} was not written for the {len(self._parts)} parts there")
        self._summary = summary

    def _end(self) -> dict[str, Json]:
        """What a summary says about the entry that it closes."""
        parts = len(self._parts)
        return {"layout": LAYOUT, "key": self._name, "parts": parts, "previous": self._last}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            variable = VARIABLE if self._kept else "TMPDIR"
            fix = f"{variable}=/a/folder/with/room; or free some, and run it again"
            raise DuitiError(
                f"{self.folder}: cannot be written ({error.strerror or error})",
                why="prepared data goes to disk part by part, and without a cache too",
                fix="ulimit -n 8192" if error.errno == errno.EMFILE else fix,
            ) from error


def remove(path: Path) -> None:
    """A file, a folder with all that is in it, or a symbolic link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
