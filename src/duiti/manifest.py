"""A list of a folder's files with their sizes and hashes, sealed with its own: written last, so
what has one is whole, and what it lists is what was written.

    write_manifest(folder, {"step": 200})            # every file that is in it
    write_manifest(folder, facts, files=names)       # these; others may lie beside them
    facts = check_manifest(folder)                   # or Damaged, with the reason
    read_manifest(folder).facts                      # the list alone: no file is read

`manifest.json` is `{"duiti", "layout", "complete", "facts", "files", "sha256"}`, the last being
that of the text of the others. It must be the very bytes that would be written from what it says,
so there is one spelling: no key twice, no NaN, nothing after it. A name in it leads to a regular
file inside the folder, through no symbolic link, or the manifest is refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from duiti import __version__
from duiti.disk_errors import explain, shown_path
from duiti.durable import sync_folder, write_file
from duiti.errors import DuitiError
from duiti.types import Json

MANIFEST_FILE = "manifest.json"
LAYOUT = 1
"""Of the manifest; another number needs another version of duiti."""

MAX_BYTES = 2**22
"""Of a manifest; facts of a run and a line per file take some kilobytes."""

MAX_FILES = 10_000
"""In a folder: a model in shards has some hundred."""

_DAMAGE = {errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENXIO}
_DAMAGE |= {errno.ENAMETOOLONG}


class Damaged(DuitiError):
    """A folder that is not what was written; `reason` says what is wrong with it."""

    def __init__(self, reason: str, folder: Path) -> None:
        self.reason = reason
        super().__init__(f"{shown_path(folder)} cannot be trusted: {reason}")


class _Fault(Exception):
    """A reason before it is known of which folder."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file was when it was written."""

    num_bytes: int
    """Its size."""
    sha256: str
    """Of its content, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a sealed list says. That the files are so still is another question."""

    facts: Mapping[str, Json]
    """What the writer had to say about the files."""
    files: Mapping[str, Seal]
    """Of each file, by its name in the folder (`/` between folders)."""
    is_complete: bool
    """Whether no other file may be in the folder."""


def write_manifest(
    folder: Path, facts: Mapping[str, Json], files: Iterable[str] | None = None
) -> None:
    """Bring files to the disk, hash them, and write the list of them.

    Args:
        files: their names in the folder; None: all, and none may come or go afterwards.

    Raises:
        DuitiError: a file is missing or none, or the disk fails.
    """
    try:
        names = sorted(_listed(folder) if files is None else set(files))
        if len(names) > MAX_FILES:
            raise _Fault(f"more than {MAX_FILES} files")
        found: dict[str, Json] = {name: _seal(folder, name) for name in names}
        for inner in sorted({Path(name).parent for name in names}):
            sync_folder(folder / inner)
        body: dict[str, Json] = {
            "duiti": __version__,
            "layout": LAYOUT,
            "complete": files is None,
            "facts": dict(facts),
            "files": found,
        }
        text = _text({**body, "sha256": _hash_of(body)})
        if len(text) > MAX_BYTES:
            raise _Fault(f"its manifest would take more than {MAX_BYTES} bytes")
    except _Fault as fault:
        raise DuitiError(f"{shown_path(folder)} gets no manifest: {fault}") from None
    except OSError as error:
        raise explain(error, folder.absolute()) from error
    write_file(folder / MANIFEST_FILE, text)


def read_manifest(folder: Path) -> Manifest:
    """What the folder's manifest says, once its own seal is found whole.

    Raises:
        Damaged: there is none, or it is not what was written.
        DuitiError: the machine is short of something; the manifest may well be sound.
    """
    with _told(folder):
        with _opened(folder, MANIFEST_FILE) as file:
            content = file.read(MAX_BYTES + 1)
        return _parsed(content)


def check_manifest(folder: Path, *, from_disk: bool = False) -> Mapping[str, Json]:
    """Read every file that the manifest lists, and return its facts.

    Args:
        from_disk: not what the operating system remembers of a file that was just written, but
            what the disk gives back (Linux only; elsewhere it makes no difference).

    Raises:
        Damaged: something is not what was written.
        DuitiError: the machine is short of something; the folder may well be sound.
    """
    manifest = read_manifest(folder)
    with _told(folder):
        for name, seal in manifest.files.items():  # first what costs nothing
            with _opened(folder, name) as file:
                _same_size(file, name, seal)
        if manifest.is_complete:
            for name in _listed(folder):
                if name not in manifest.files:
                    raise _Fault(f"{shown_path(Path(name))} was not there when it was written")
        for name, seal in manifest.files.items():
            with _opened(folder, name) as file:
                if from_disk:
                    _forget(file)
                _same_size(file, name, seal)
                if hashlib.file_digest(file, "sha256").hexdigest() != seal.sha256:
                    raise _Fault(f"{shown_path(Path(name))} has changed since it was written")
    return manifest.facts


def _parsed(content: bytes) -> Manifest:
    if not content:
        raise _Fault(f"{MANIFEST_FILE} is empty")
    if len(content) > MAX_BYTES:
        raise _Fault(f"{MANIFEST_FILE} has more than {MAX_BYTES} bytes")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise _Fault(f"{MANIFEST_FILE} is cut off or no JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("duiti"), str):
        raise _Fault(f"{MANIFEST_FILE} is not duiti's")
    if type(layout := found.get("layout")) is not int or layout != LAYOUT:
        raise _Fault(f"{MANIFEST_FILE} has a layout that this version of duiti does not know")
    seal = found.pop("sha256", None)
    try:
        is_intact = seal == _hash_of(found) and content == _text({**found, "sha256": seal})
    except (ValueError, RecursionError):  # NaN
        is_intact = False
    if not is_intact:
        raise _Fault(f"{MANIFEST_FILE} has changed since it was written")
    match found:
        case {"complete": bool(complete), "facts": dict(facts), "files": dict(files)}:
            if len(files) > MAX_FILES:
                raise _Fault(f"{MANIFEST_FILE} lists more than {MAX_FILES} files")
            seals = {name: _parsed_seal(name, value) for name, value in files.items()}
            return Manifest(facts, seals, complete)
    raise _Fault(f"{MANIFEST_FILE} is not laid out as a manifest")


def _parsed_seal(name: str, value: object) -> Seal:
    if fault := _name_fault(name):
        raise _Fault(f"{MANIFEST_FILE} lists a name that {fault}")
    match value:
        case {"bytes": int(num_bytes), "sha256": str(digest)} if type(num_bytes) is int:
            return Seal(num_bytes, digest)
    raise _Fault(f"{MANIFEST_FILE} is not laid out as a manifest")


def _name_fault(name: str) -> str:
    """What is wrong with the name of a file in the folder, or an empty string."""
    if name.startswith("/"):
        return "leaves the folder (it is absolute)"
    if not name.isprintable() or "\\" in name or len(name) > 1000:
        return "is too long or has odd characters"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leaves the folder, or is not the plain name of a file"
    if name == MANIFEST_FILE:
        return "is the manifest's own"
    return ""


def _seal(folder: Path, name: str) -> dict[str, Json]:
    if fault := _name_fault(name):
        raise _Fault(f"{shown_path(Path(name))} {fault}")
    with _opened(folder, name) as file:
        os.fsync(file.fileno())
        num_bytes = os.fstat(file.fileno()).st_size
        return {"bytes": num_bytes, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _text(value: Mapping[str, Json]) -> bytes:
    """The one way to write a manifest, so that equal ones have equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _hash_of(body: Mapping[str, Json]) -> str:
    return hashlib.sha256(_text(body)).hexdigest()


def _listed(folder: Path) -> Iterator[str]:
    """Every file in the folder but the manifest. What is neither file nor folder is a fault."""
    todo, number = [""], 0
    while todo:
        inner = todo.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                if (number := number + 1) > 2 * MAX_FILES:
                    raise _Fault(f"more than {MAX_FILES} files")
                if entry.is_dir(follow_symlinks=False):
                    todo.append(name)
                elif not entry.is_file(follow_symlinks=False):
                    raise _Fault(f"{shown_path(Path(name))} is not a regular file")
                elif name != MANIFEST_FILE:
                    yield name


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[io.BufferedReader]:
    """A regular file in the folder; no symbolic link is followed on the way to it."""
    shown = shown_path(Path(name))
    try:
        within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            *inner, last = name.split("/")
            for part in inner:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                deeper = os.open(part, flags, dir_fd=within)
                os.close(within)
                within = deeper
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(last, flags, dir_fd=within)
        finally:
            os.close(within)
    except (FileNotFoundError, NotADirectoryError):
        raise _Fault(f"{shown} is missing") from None
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        raise _Fault(f"{shown} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _Fault(f"{shown} is not a regular file")
    with open(descriptor, "rb") as file:
        yield file


def _same_size(file: io.BufferedReader, name: str, seal: Seal) -> None:
    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes != seal.num_bytes:
        found = f"{num_bytes} bytes, not {seal.num_bytes}"
        raise _Fault(f"{shown_path(Path(name))} is not as long as it was written ({found})")


def _forget(file: io.BufferedReader) -> None:
    if sys.platform == "linux":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except _Fault as fault:
        raise Damaged(str(fault), folder) from None
    except OSError as error:
        if error.errno in _DAMAGE:
            raise Damaged(f"a file cannot be read ({error.strerror})", folder) from error
        raise explain(error, folder.absolute(), done="read") from error
