"""Faults that are real: a small disk, a folder that cannot be written, a process that dies.

with small_disk(tmp_path / "disk", 200_000) as disk: …
with read_only(folder): …
code = in_child(work, lambda: die_at(7))      # in a script of its own, started with `ran`
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of that size (for the superuser; skipped elsewhere)."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A folder whose file system is in memory, where there is one: for a test that begins hundreds
    of times anew and would wait for the disk alone. Who is killed leaves the same behind."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else folder) as path:
        yield Path(path)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in the folder can be made, changed or removed meanwhile."""
    if os.getuid():
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    # The superuser may write whatever the mode: it takes another mount of the same folder.
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """To read the file fails as on a bad sector, with EIO; it seems to be empty."""
    # The memory of this process in its place: there is nothing at address 0.
    _mount("--bind", f"/proc/{os.getpid()}/mem", str(path))
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def gone_pid() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def die_at(number: int) -> None:
    """Have this process killed before its call of that number to change or read files."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, _: object) -> None:
        if event == "open" or event.startswith(("os.", "fcntl.", "shutil.")):
            count()

    sys.addaudithook(watch)
    sync = os.fsync  # of which Python tells no hook

    def counted_sync(descriptor: int) -> None:
        count()
        sync(descriptor)
        count()

    os.fsync = counted_sync  # type: ignore[assignment]


def die_beyond(num_bytes: int) -> None:
    """Have this process killed in the middle of the write that makes a file longer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def in_child(work: Callable[[], object], arrange: Callable[[], None]) -> int:
    """Do the work in a fork of this process; its exit code, negative if a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        arrange()
        work()
        code = 0
    finally:
        os._exit(code)


def ran(script: str, *arguments: str | Path) -> str:
    """What a script printed that may import from here and from the folder of its test."""
    search = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {search!r})\n{script}"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
