"""Real signals to real processes: the first is noted, the second leaves at once."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from duiti.training.signals import SAME_REQUEST_S, SIGNALS, Interrupted, Stopping

LIMIT_S = 60
"""After which a child is taken for stuck; none of them needs a second."""

WAIT = f"""
import os, signal, sys, time
signal.alarm({LIMIT_S + 30})  # a child that nobody ends any more, ends itself
from duiti.training import signals
from duiti.training.signals import Stopping

def until(holds):
    while not holds():
        time.sleep(0.01)

def say(word):
    os.write(1, (word + chr(10)).encode())
"""
# One instruction of Python's, for minutes, that lets other threads run: like a backward pass.
UPDATE = 'import hashlib; hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'
FINISHES = """
with Stopping() as stopping:
    say("ready")
    until(lambda: stopping.signal)
    time.sleep(0.2)
    say(f"saved after {stopping.signal.name}")
"""


CHILDREN: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _end_children() -> Iterator[None]:
    """What a failed test leaves running would compute for minutes."""
    yield
    while CHILDREN:
        with CHILDREN.pop() as process:
            process.kill()


def child(code: str, **more: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    process = subprocess.Popen([sys.executable, "-c", WAIT + code], **pipes)
    CHILDREN.append(process)
    return process


def await_line(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n".encode()


def rest(process: subprocess.Popen[bytes]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=LIMIT_S)
    return (out or b"").decode(), (err or b"").decode(), process.returncode


def request_again(process: subprocess.Popen[bytes], number: int) -> None:
    time.sleep(SAME_REQUEST_S * 1.5)
    process.send_signal(number)


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> signal.Signals:
    return signal.Signals(request.param)


def test_the_first_signal_is_noted_and_disturbs_nothing(number: signal.Signals) -> None:
    with Stopping() as stopping:
        assert stopping.signal is None
        os.kill(os.getpid(), number)
        assert stopping.signal is number


def test_handlers_are_back_behind_the_context_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    for error in (None, RuntimeError("in an update")):
        with suppress(RuntimeError), Stopping():
            now = [signal.getsignal(number) for number in SIGNALS]
            assert not set(now) & set(before)
            if error is not None:
                raise error
        assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_context_leaves_no_thread_and_no_file_open() -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/dev/fd"))

    def is_more(than: tuple[int, int]) -> bool:
        # Threads of others, such as a progress bar's, may end meanwhile.
        return any(now > then for now, then in zip(held(), than, strict=True))

    before = held()
    for _ in range(5):
        with Stopping():
            assert is_more(before)
    end = time.monotonic() + LIMIT_S
    while is_more(before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_more(before)


def test_contexts_can_be_nested() -> None:
    with Stopping() as outer:
        with Stopping() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.signal is signal.SIGTERM
        assert outer.signal is None
        os.kill(os.getpid(), signal.SIGHUP)
        assert outer.signal is signal.SIGHUP


def test_in_another_thread_the_context_does_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with Stopping() as stopping:
            seen.extend([signal.getsignal(number) for number in SIGNALS])
            seen.append(stopping.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [*before, None]


def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    code = f"""
signal.signal({int(number)}, signal.SIG_IGN)
with Stopping() as stopping:
    for number in signals.SIGNALS:
        if number == {int(number)}:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
    say(str(stopping.signal))
say(signal.getsignal({int(number)}).name)
"""
    assert rest(child(code)) == ("None\nSIG_IGN\n", "", 0)


def test_the_announcement_is_made_once_and_while_the_update_lasts(number: signal.Signals) -> None:
    process = child(f'with Stopping(lambda came: say(came.name)):\n say("ready"); {UPDATE}')
    await_line(process, "ready")
    process.send_signal(number)
    await_line(process, number.name)
    request_again(process, number)
    out, err, code = rest(process)
    assert (out, code) == ("", 130)
    assert err == f"stopped at once by a second signal ({number.name});" + (
        " checkpoints on disk are whole\n"
    )


def test_a_second_signal_of_the_same_kind_leaves_in_the_middle_of_an_update(
    number: signal.Signals,
) -> None:
    process = child(f'with Stopping():\n say("ready"); {UPDATE}')
    await_line(process, "ready")
    process.send_signal(number)
    request_again(process, number)
    assert rest(process)[2] == 130


def test_a_second_signal_of_another_kind_leaves_too() -> None:
    process = child(f'with Stopping():\n say("ready"); {UPDATE}')
    await_line(process, "ready")
    process.send_signal(signal.SIGHUP)
    request_again(process, signal.SIGINT)
    _, err, code = rest(process)
    assert "(SIGINT)" in err
    assert code == 130


def test_signals_that_come_together_are_one_request() -> None:
    process = child("signals.SAME_REQUEST_S = 60\n" + FINISHES)
    await_line(process, "ready")
    process.send_signal(signal.SIGTERM)
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
    out, err, code = rest(process)
    assert (err, code) == ("", 0)
    assert out.startswith("saved after SIG")


def test_a_shell_that_loses_its_terminal_lets_the_run_save(tmp_path: Path) -> None:
    # The shell passes the hang-up on to its job, and the kernel sends one to the same process.
    script, saved = tmp_path / "run.py", tmp_path / "saved"
    code = FINISHES.replace('say(f"saved', f'open({str(saved)!r}, "w").write(f"saved')
    script.write_text(WAIT + code, encoding="utf-8")
    shell = ["bash", "--norc", "--noprofile", "-i"]
    process, terminal = on_terminal(f"os.dup2(2, 1); os.execvp('bash', {shell})", stdout=None)
    os.write(terminal, f"{shlex.join([sys.executable, str(script)])} 2>/dev/null; :\n".encode())
    read_until(terminal, b"ready\r\n")
    os.close(terminal)
    process.wait(LIMIT_S)
    end = time.monotonic() + LIMIT_S
    while not saved.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert saved.exists()


def read_until(terminal: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        seen += os.read(terminal, 4096)
    return seen


def on_terminal(code: str, **more: Any) -> tuple[subprocess.Popen[bytes], int]:
    """A child whose controlling terminal and stderr is a pseudo-terminal, and the other end."""
    ours, theirs = pty.openpty()
    claim = "import fcntl, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
    process = child(claim + code, stderr=theirs, stdin=theirs, start_new_session=True, **more)
    os.close(theirs)
    return process, ours


ANNOUNCED = 'Stopping(lambda came: print("finishing", file=sys.stderr, flush=True))'


def test_a_closed_terminal_raises_nothing_and_the_run_saves() -> None:
    process, terminal = on_terminal(FINISHES.replace("Stopping()", ANNOUNCED))
    await_line(process, "ready")
    os.close(terminal)
    assert rest(process)[::2] == ("saved after SIGHUP\n", 0)


def test_a_second_signal_leaves_with_130_where_the_terminal_is_closed() -> None:
    process, terminal = on_terminal(f'with {ANNOUNCED}:\n say("ready"); {UPDATE}')
    await_line(process, "ready")
    os.close(terminal)
    request_again(process, signal.SIGTERM)
    assert rest(process)[2] == 130


def test_the_cursor_is_shown_again_on_a_terminal() -> None:
    process, terminal = on_terminal(f'with Stopping():\n say("ready"); {UPDATE}')
    await_line(process, "ready")
    process.send_signal(signal.SIGINT)
    request_again(process, signal.SIGINT)
    assert b"\x1b[?25h" in read_until(terminal, b"are whole")
    assert rest(process)[2] == 130
    os.close(terminal)


def test_a_reader_that_does_not_read_cannot_hold_the_process() -> None:
    reading, writing = os.pipe()
    process = child(f'with Stopping():\n say("ready"); {UPDATE}', stderr=writing)
    os.set_blocking(writing, False)
    fill(writing)
    os.set_blocking(writing, True)
    await_line(process, "ready")
    process.send_signal(signal.SIGINT)
    request_again(process, signal.SIGINT)
    assert rest(process)[2] == 130
    os.close(reading)
    os.close(writing)


def fill(writing: int) -> None:
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b" " * 1024)


def test_an_announcement_that_is_stuck_cannot_hold_the_process() -> None:
    process = child(
        'with Stopping(lambda came: until(lambda: 0)):\n say("ready"); until(lambda: 0)'
    )
    await_line(process, "ready")
    process.send_signal(signal.SIGINT)
    request_again(process, signal.SIGINT)
    assert rest(process)[2] == 130


def test_other_signals_do_not_count() -> None:
    code = 'signal.signal(signal.SIGUSR1, lambda *_: say("usr1"))\n' + FINISHES
    process = child(code)
    await_line(process, "ready")
    process.send_signal(signal.SIGUSR1)
    await_line(process, "usr1")
    request_again(process, signal.SIGUSR1)
    await_line(process, "usr1")
    process.send_signal(signal.SIGTERM)
    assert rest(process) == ("saved after SIGTERM\n", "", 0)


def test_the_error_names_where_it_stands_and_how_to_go_on() -> None:
    run = Path("runs/my run's")
    saved = run / "checkpoints/step-000007"
    error = Interrupted(7, 20, by=signal.SIGTERM, saved=saved, run=run)
    assert error.exit_code == 130
    assert error.what == f"stopped by SIGTERM after step 7 of 20; saved in {saved}"
    command, _, end = error.fix.partition(" goes on from there")
    assert "--cool-down 1 " in end
    assert shlex.split(command) == ["duiti", "train", "--resume", str(run)]
