"""What a disk that refuses means: the path, the bytes, the reason, and what to do.

    with explained(path, num_bytes):
        ...                       # an OSError here becomes a DuitiError

The same for the one library that writes for us and tells of the system's error in text alone.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from duiti.errors import DuitiError

MAKE_ROOM = "free some space, or keep fewer checkpoints"

_OS_ERROR = re.compile(r"\(os error ([0-9]{1,5})\)")
_REASONS = {
    errno.ENOSPC: ("the disk is full", MAKE_ROOM),
    errno.EDQUOT: ("your quota on this disk is used up", MAKE_ROOM),
    errno.EFBIG: ("files may not become so large here", "see `ulimit -f` and the file system"),
    errno.EROFS: ("the disk is read-only", "choose a folder that can be written"),
    errno.EACCES: ("permission denied", "choose a folder that is yours, or have its owner let you"),
    errno.EPERM: ("permission denied", "choose a folder that is yours, or have its owner let you"),
    errno.ENOTDIR: ("a file is where a folder should be", "move it away, or choose another name"),
    errno.EEXIST: ("a file is where a folder should be", "move it away, or choose another name"),
    errno.EISDIR: ("a folder is where a file should be", "move it away, or choose another name"),
    errno.ENOENT: ("its folder does not exist", "make the folder, or choose another"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


def shown_path(path: Path) -> str:
    """A path for a message: as it is, or quoted where it would break the line or the terminal."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def shown_bytes(num_bytes: int) -> str:
    """`812 bytes`, `12.3 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def explain(
    error: OSError, path: Path, *, num_bytes: int | None = None, done: str = "written"
) -> DuitiError:
    """What a system call that failed means for the user.

    Args:
        path: that was worked on.
        num_bytes: that were to be written, where it is known.
        done: what was to be done with it.
    """
    reason, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
    why = []
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    # It may be another file that was looked for meanwhile (our temporary name begins as `path`).
    if names and not any(name.startswith(str(path)) for name in names):
        reason = f"{shown_path(Path(error.filename))}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if num_bytes is not None:
            why.append(f"{shown_bytes(num_bytes)} are needed")
        why += _room(path)
    what = f"{shown_path(path)} cannot be {done}: {reason}"
    return DuitiError(what, why=", ".join(why), fix=fix)


def gone(folder: Path) -> DuitiError:
    """The folder of a run that goes on is not there any more: made anew, it would be half a run."""
    return DuitiError(
        f"{shown_path(folder)} is gone",
        why="the run's folder was moved or deleted while the run went on, and its checkpoints too",
        fix="if it was moved: duiti train --resume goes on from where it is now",
    )


def _room(path: Path) -> list[str]:
    with suppress(OSError):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        found = os.statvfs(there)
        said = [f"{shown_bytes(found.f_bavail * found.f_frsize)} are free"]
        if found.f_files and not found.f_favail:
            said.append("and no more files can be made (no inodes are left)")
        return said
    return []  # the disk may be what fails: then the reason alone has to do


@contextmanager
def explained(path: Path, num_bytes: int | None = None, *, done: str = "written") -> Iterator[None]:
    """Have what the system refuses in the block explained; see `explain`."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, num_bytes=num_bytes, done=done) from error
    except SafetensorError as error:
        # The library tells of the system's error in its text alone.
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        failed = OSError(number, os.strerror(number))
        raise explain(failed, path, num_bytes=num_bytes, done=done) from error
