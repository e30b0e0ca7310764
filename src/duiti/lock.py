"""One process at a time trains in a folder.

    with held(folder):
        ...

A lock of the operating system on `run.lock`: it ends with the process however that ends, so one
that was killed is no obstacle to the next. The file says who holds it, for the message alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from duiti.disk_errors import explain, shown_path
from duiti.errors import DuitiError, UsageError

LOCK_FILE = "run.lock"

_HOLDER = re.compile(rb"([0-9]{1,19}) ([\w.-]{1,255})\n")
_MAX_TRIES = 100
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for as long as the block lasts.

    Raises:
        UsageError: a process holds it (or this one does already).
        DuitiError: the lock cannot be made there.
    """
    path = folder.absolute() / LOCK_FILE
    try:
        descriptor = _acquire(path)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise DuitiError(
                f"{shown_path(folder)}: its file system knows no locks ({error.strerror})",
                why="two processes that train in one folder would destroy each other's files",
                fix="keep runs on a local disk (-o)",
            ) from error
        raise explain(error, path) from error
    try:
        # Without space on the disk the lock is as good as with; only who holds it is not known.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        # Removed while it is held: who opened it meanwhile sees that it is not the one by name.
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                path.unlink()
        # Closing alone would leave it to a child that was forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    for _ in range(_MAX_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _refusal(path, descriptor) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The one who held it has removed it: a lock on a file without a name keeps nobody out.
        os.close(descriptor)
    raise OSError(errno.ENOLCK, f"the lock is another file each of {_MAX_TRIES} times")


def _refusal(path: Path, descriptor: int) -> UsageError:
    found = _HOLDER.fullmatch(os.pread(descriptor, 300, 0))
    pid, host = (part.decode() for part in found.groups()) if found else ("", "")
    if pid == str(os.getpid()) and host == socket.gethostname():
        who, fix = "this very process", "use another folder for the second run"
    elif found:
        who, fix = f"process {pid} on {host}", f"wait for it, or stop it (kill {pid})"
    else:
        who, fix = "another process", "wait for it, or stop it"
    why = f"it holds the lock {shown_path(path)}"
    return UsageError(f"{shown_path(path.parent)}: {who} trains here", why=why, fix=fix)
