"""One process holds a run, until it ends, however it ends."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
from made_faults import read_only

from duiti.errors import DuitiError, UsageError
from duiti.lock import LOCK_FILE, held

HOLD = """
import sys
from pathlib import Path
from duiti.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def _take(folder: Path) -> None:
    with held(folder):
        pass


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    child = _holder(tmp_path)
    try:
        with pytest.raises(UsageError) as found:
            _take(tmp_path)
    finally:
        child.communicate()
    expected = f"{tmp_path}: process {child.pid} on {socket.gethostname()} trains here"
    assert found.value.what == expected
    assert str(tmp_path / LOCK_FILE) in found.value.why
    assert f"kill {child.pid}" in found.value.fix
    _take(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_process_that_was_killed_is_no_obstacle(tmp_path: Path, number: int) -> None:
    child = _holder(tmp_path)
    child.send_signal(number)
    child.communicate()
    assert child.returncode != 0
    if number == signal.SIGKILL:
        assert (tmp_path / LOCK_FILE).exists(), "it had no chance to tidy up"
    _take(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_same_process_does_not_get_it_twice(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(UsageError, match="this very process trains here"):
            _take(tmp_path)
        with pytest.raises(UsageError, match="this very process"):
            _take(tmp_path / ".." / tmp_path.name)
        with pytest.raises(UsageError):
            _take(tmp_path)  # being refused has not let it go
    _take(tmp_path)


def test_an_error_lets_it_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(tmp_path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    _take(tmp_path)


def test_a_child_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "run").mkdir()
    with ExitStack() as stack:
        lock = ExitStack()
        lock.enter_context(held(tmp_path / "run"))
        with warnings.catch_warnings():  # newer Pythons warn where there are other threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
        # Without its name the file would be of no account, whoever has it locked.
        stack.enter_context(read_only(tmp_path / "run"))
        lock.close()
    try:
        assert os.listdir(tmp_path / "run") == [LOCK_FILE], "which could not be removed"
        _take(tmp_path / "run")
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        os.close(reader)


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the one who held it: two could hold locks then, each on a file of its own."""
    really_open, times = os.open, 0

    def open_and_lose(path: Path, flags: int, mode: int = 0o777) -> int:
        nonlocal times
        descriptor = really_open(path, flags, mode)
        times += 1
        if times < 3:
            path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with held(tmp_path):
        assert os.listdir(tmp_path) == [LOCK_FILE]
        with pytest.raises(UsageError, match="this very process"):
            _take(tmp_path)
    times = -(10**6)
    with pytest.raises(DuitiError, match="its file system knows no locks"):
        _take(tmp_path)  # it does not try for ever


@pytest.mark.parametrize("content", [b"", b"\x1b[2J 1\n", b"12 host; rm -rf\n", b"\xff" * 10_000])
def test_what_is_in_the_file_cannot_mislead(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with held(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        (tmp_path / LOCK_FILE).write_bytes(content)
        with pytest.raises(UsageError, match="another process trains here"):
            _take(tmp_path)


def test_a_lock_whose_file_was_removed_is_not_taken_from_the_next(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        with held(tmp_path):
            pass
        (tmp_path / LOCK_FILE).write_text("of another one")
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_of_many_at_once_one_holds_it_at_a_time(tmp_path: Path) -> None:
    inside, most, times = 0, 0, 0
    guard = threading.Lock()
    (tmp_path / "run").mkdir()

    def work() -> None:
        nonlocal inside, most, times
        for _ in range(60):
            try:
                with held(tmp_path / "run"):
                    with guard:
                        inside += 1
                        times += 1
                        most = max(most, inside)
                    os.stat(tmp_path)  # lets others go on
                    with guard:
                        inside -= 1
            except UsageError:
                continue

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert times >= 1
    assert os.listdir(tmp_path / "run") == []


def test_a_folder_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(DuitiError, match=r"run\.lock cannot be written: "):
        _take(tmp_path)
    with pytest.raises(DuitiError, match="its folder does not exist"):
        _take(tmp_path / "none")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DuitiError, match="a file is where a folder should be"):
        _take(tmp_path / "file")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(DuitiError, match="symbolic link"):
        _take(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_system_without_locks_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DuitiError, match="its file system knows no locks"):
        _take(tmp_path)


def test_the_working_folder_may_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    with held(Path("run")):
        os.chdir("/")
    assert os.listdir(tmp_path / "run") == []
