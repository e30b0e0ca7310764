"""Files and folders that are there whole or not at all, whatever ends the process or the machine.

    write_file(folder / "proof.json", text)
    with new_folder(checkpoints / "step-000200") as temporary:
        ...                                   # write into `temporary`
    remove_leftovers(checkpoints)             # of processes that are gone
    require_space(checkpoints, 12_000_000)    # or DuitiError, before anything is written

Everything is written under a temporary name in the same folder, `<name>.tmp-<pid>`, brought to the
disk, then renamed, and the folder's list of names is brought to the disk too. Modes are what the
umask leaves, whoever wrote a file: libraries have modes of their own. What goes wrong is a
`DuitiError` with the path, the bytes, the reason and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from duiti.disk_errors import MAKE_ROOM, explained, shown_bytes, shown_path
from duiti.errors import DuitiError

_TEMPORARY = re.compile(r".+\.tmp-([1-9][0-9]{0,18})", re.DOTALL)
_MAX_NAME_BYTES = 255

_in_use: set[Path] = set()
"""Temporaries of this process: a leftover may carry the same number, in a container even often."""


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file (text as UTF-8), in the place of one that is there already.

    Raises:
        DuitiError: it cannot be written; what was there before still is.
    """
    path = path.absolute()
    data = content.encode("utf-8") if isinstance(content, str) else content
    # Explained inside, where what is half written still takes the space that is said to be free.
    with explained(path), _temporary(path) as temporary, explained(path, len(data)):
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """A folder to fill, that gets its name when the block ends well and is removed otherwise.

    Args:
        path: nothing may be there yet; its parent must be.
        num_bytes: that will be written, where it is known: it is asked for first.

    Raises:
        DuitiError: it cannot be written, or the block met a disk that is full.
    """
    path = path.absolute()
    with explained(path), _temporary(path) as temporary, explained(path, num_bytes):
        _refuse_existing(path)
        if num_bytes is not None:
            require_space(path.parent, num_bytes)
        temporary.mkdir()
        yield temporary
        _open_as_umask_leaves(temporary)
        sync_tree(temporary)
        _refuse_existing(path)
        os.rename(temporary, path)
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        DuitiError: it cannot be made, or a file is in its place.
    """
    path = path.absolute()
    with explained(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it, so that no part of it is ever left under its name.

    Raises:
        DuitiError: it cannot be removed.
    """
    path = path.absolute()
    with explained(path, done="removed"), _temporary(path) as aside:
        os.rename(path, aside)
        sync_folder(path.parent)
        shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporaries that processes left behind which are gone; returns which.

    Those of living processes stay, and so does what was never made here, such as a symbolic link.

    Raises:
        DuitiError: some cannot be removed (the others are).
    """
    removed: list[Path] = []
    failed: DuitiError | None = None
    folder = folder.absolute()
    with explained(folder, done="read"):
        names = sorted(os.listdir(folder)) if folder.exists() else []
    for path in (folder / name for name in names):
        try:
            with explained(path, done="removed"):
                if _is_leftover(path):
                    _remove(path)
                    removed.append(path)
        except DuitiError as error:
            failed = failed or error
    if failed:
        raise failed
    return removed


def require_space(folder: Path, num_bytes: int) -> None:
    """Make sure that so many bytes can be written in a folder (or where it is going to be).

    Raises:
        DuitiError: the file system has less.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with explained(folder):
        free_bytes = shutil.disk_usage(there).free
    if free_bytes < num_bytes:
        raise DuitiError(
            f"{shown_path(folder)}: not enough space on the disk",
            why=f"{shown_bytes(num_bytes)} are needed, {shown_bytes(free_bytes)} are free",
            fix=MAKE_ROOM,
        )


def temporary_of(name: str) -> int | None:
    """The process that a temporary's name tells of; None: it is not the name of one."""
    found = _TEMPORARY.fullmatch(name)
    return int(found[1]) if found else None


def sync_folder(path: Path) -> None:
    """Have a folder's list of names on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call for folders: nothing more can be done there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """The same for a folder with all files and folders in it."""
    for inner, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for name in names:
            path = Path(inner, name)
            if stat.S_ISREG(path.lstat().st_mode):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        sync_folder(Path(inner))


def _open_as_umask_leaves(folder: Path) -> None:
    """Give the files in a folder that was just made the mode of a file that is made in the usual
    way: safetensors, for one, are readable for their owner alone, whatever the umask."""
    # The folder tells what the umask leaves; asking for it would change it, for all threads.
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for inner, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(inner, name)
            if stat.S_ISREG(path.lstat().st_mode):
                path.chmod(mode)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        why, fix = "nothing is ever written over it", "move it away, or choose another name"
        raise DuitiError(f"{shown_path(path)} is there already", why=why, fix=fix)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """The temporary name beside `path`; what is under it in the end is removed."""
    suffix, name = f".tmp-{os.getpid()}", path.name
    while len(os.fsencode(name + suffix)) > _MAX_NAME_BYTES:
        name = name[:-1]
    temporary = path.with_name(name + suffix)
    if temporary in _in_use:
        raise ValueError(f"{path} is being written already, by another thread")
    _in_use.add(temporary)
    try:
        _remove(temporary)  # left by a process that is gone and had our number
        yield temporary
    finally:
        # What cannot be removed now is found by `remove_leftovers`; the error that led here counts.
        with suppress(OSError):
            _remove(temporary)
        _in_use.discard(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    pid = temporary_of(path.name)
    if pid is None or stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return False
    return path not in _in_use if pid == os.getpid() else not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _raise(error: OSError) -> None:
    raise error
