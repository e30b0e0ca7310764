"""Prepared data, kept between runs: entries of parts, found by what they were made from.

    name = key({"data": file_digest("my.jsonl"), "code": code_digest(), …})
    with open_entry(name, folder=cache_folder(), say=print) as entry:
        done = entry.parts()                  # what an earlier run had finished, checked
        if not entry.is_complete:
            entry.append(Part(block=block, account={"rows": 16384}))
            entry.finish({"rows": 20000})
    store = ExampleStore([part.block for part in entry.parts()], files)

An entry grows part by part, so that a preparation that was killed goes on behind the last part that
is whole. One process at a time holds an entry. Everything is checked against its hash when it is
opened; from the first part on that is not what was written, the entry is dropped, said, and built
again. Blocks stay readable after the entry is closed, even after it is removed. What an account
says, and all that a key has to name, is the caller's to know.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from duiti.data.storage.block import sync
from duiti.data.storage.cache_entry import VARIABLE, Entry, Part, remove
from duiti.data.storage.cache_files import locked, locked_if_free
from duiti.data.storage.fingerprint import code_digest, file_digest, key
from duiti.errors import DuitiError, UsageError

__all__ = [
    "VARIABLE",
    "Entry",
    "Part",
    "cache_folder",
    "code_digest",
    "file_digest",
    "key",
    "open_entry",
    "temporary_entry",
]

KEEP_S = 30 * 24 * 3600
"""An entry that no run has opened for so long is removed."""

_KEY = re.compile("[0-9a-f]{64}")


def cache_folder() -> Path:
    """Where the cache is: `$DUITI_CACHE`, else `duiti` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        UsageError: neither is set, and this user has no home.
    """
    named, shared = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser().absolute()
        # A relative one is to be ignored, says its specification.
        return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "duiti"
    except RuntimeError:
        fix = f"{VARIABLE}=/a/folder/with/room"
        raise UsageError("there is no home folder to keep the cache in", fix=fix) from None


@contextmanager
def open_entry(
    name: str, *, folder: Path, say: Callable[[str], None], wait_s: float = math.inf
) -> Iterator[Entry]:
    """Hold the entry of this key, with every part of it that is whole.

    Where the folder cannot be used, that is said and the entry is a temporary one. After an entry
    was finished, those that no run has opened for long are removed.

    Args:
        name: what `key` gave.
        folder: of the cache; made if need be.
        say: takes a line for the user: waiting, damage, an interrupted run.
        wait_s: how long to wait for another process that holds the entry.

    Raises:
        DuitiError: another process held it for longer.
    """
    if not _KEY.fullmatch(name):
        raise ValueError("the name of an entry is what `key` gives")
    with ExitStack() as stack:
        try:
            entry = stack.enter_context(_held(name, folder, say, wait_s))
        except OSError as error:
            say(f"{folder}: cannot be used ({error.strerror or error}); nothing is kept")
            entry = stack.enter_context(temporary_entry())
        yield entry


@contextmanager
def temporary_entry() -> Iterator[Entry]:
    """An entry that no other run can find and that is removed in the end.

    Raises:
        DuitiError: there is no place for it.
    """
    with ExitStack() as stack:
        try:
            made = TemporaryDirectory(prefix="duiti-", ignore_cleanup_errors=True)
            folder = stack.enter_context(made)
        except OSError as error:
            fix = "TMPDIR=/a/folder/with/room"
            raise DuitiError(f"no temporary folder ({error.strerror or error})", fix=fix) from error
        yield Entry(Path(folder), "temporary", kept=False)


@contextmanager
def _held(name: str, folder: Path, say: Callable[[str], None], wait_s: float) -> Iterator[Entry]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(_lock(folder, name), say=say, wait_s=wait_s):
        own = folder / name
        if own.is_symlink() or not own.is_dir():
            if os.path.lexists(own):
                say(f"{own}: not a folder; made anew")
                remove(own)
            own.mkdir(mode=0o700)
            sync(folder)
        entry = Entry(own, name)
        entry.restore(say)
        os.utime(own)
        was_complete = entry.is_complete
        yield entry
        if entry.is_complete and not was_complete:
            _prune(folder)


def _lock(folder: Path, name: str) -> Path:
    """Beside the entry, so that who removes an entry can hold its lock."""
    return folder / f"{name}.lock"


def _prune(folder: Path) -> None:
    """Remove the entries that nobody has opened for long and nobody holds."""
    # What cannot be listed or removed now is for the next run: this one has what it needs.
    names: set[str] = set()
    with suppress(OSError):
        names = {name.removesuffix(".lock") for name in os.listdir(folder)}
    for name in filter(_KEY.fullmatch, names):
        with suppress(OSError):
            _remove_if_old(folder, name)


def _remove_if_old(folder: Path, name: str) -> None:
    if not _is_old(folder, name):
        return
    with locked_if_free(_lock(folder, name)) as held:
        if held and _is_old(folder, name):
            remove(folder / name)
            _lock(folder, name).unlink()


def _is_old(folder: Path, name: str) -> bool:
    own = folder / name
    used = (own if own.exists() else _lock(folder, name)).stat().st_mtime
    return time.time() - used > KEEP_S
