"""One save at a time beside the training; no error of one is lost, and none hides another."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from duiti.errors import DuitiError
from duiti.training.saver import Saver

PATIENCE_S = 60
"""After which a test gives up on something that has to come; no result depends on it."""


def _fails(text: str = "the disk is full") -> Callable[[], Path]:
    def save() -> Path:
        raise DuitiError(text, why="reasons", fix="free some space")

    return save


@contextmanager
def _alarm(work: Callable[[], None]) -> Iterator[None]:
    """A signal arrives in a moment, and this is done in its handler."""

    def handler(*_: object) -> None:
        work()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_the_training_goes_on_while_a_save_is_in_flight() -> None:
    go_on = threading.Event()

    def save() -> Path:
        assert go_on.wait(PATIENCE_S)
        return Path(threading.current_thread().name)

    with Saver() as saver:
        saver.submit(save)  # would wait for ever if it were done here
        go_on.set()
        assert saver.finish() == Path("saver")
        assert saver.finish() is None


def test_saves_are_done_in_order_and_never_two_at_once() -> None:
    inside, seen = threading.Lock(), []

    def save(number: int) -> Callable[[], Path]:
        def work() -> Path:
            assert inside.acquire(blocking=False), "two at once"
            seen.append(number)
            inside.release()
            return Path()

        return work

    with Saver() as saver:
        for number in range(200):
            saver.submit(save(number))
    assert seen == list(range(200)), "and the end of the block has waited for the last one"


def test_a_failure_is_raised_at_the_next_save_which_is_not_begun() -> None:
    begun = []
    saver = Saver()
    saver.submit(_fails())
    with pytest.raises(DuitiError, match="the disk is full") as found:
        saver.submit(lambda: begun.append(1) or Path())
    assert (found.value.why, found.value.fix) == ("reasons", "free some space")
    assert begun == []
    assert saver.finish() is None, "raised once"
    saver.submit(lambda: begun.append(2) or Path())
    saver.close()
    assert begun == [2], "and who has handled it goes on"


@pytest.mark.parametrize("end", [Saver.finish, Saver.close])
def test_a_failure_is_raised_when_waited_for(end: Callable[[Saver], object]) -> None:
    saver = Saver()
    saver.submit(_fails())
    with pytest.raises(DuitiError, match="the disk is full"):
        end(saver)
    end(saver)


def test_a_failure_of_the_last_save_is_raised_at_the_end_of_the_block() -> None:
    with pytest.raises(DuitiError, match="the disk is full"), Saver() as saver:
        saver.submit(_fails())


def test_whatever_a_save_raises_comes_out_as_it_is() -> None:
    error = SystemExit(4)

    def save() -> Path:
        raise error

    saver = Saver()
    saver.submit(save)
    with pytest.raises(SystemExit) as found:
        saver.finish()
    assert found.value is error


def test_a_failed_save_does_not_hide_why_the_training_stopped() -> None:
    first = DuitiError("the loss is not finite")

    def train() -> None:
        with Saver() as saver:
            saver.submit(_fails())
            raise first

    with pytest.raises(DuitiError) as found:
        train()
    assert found.value is first
    assert str(found.value) == "the loss is not finite"
    assert "the disk is full" in first.__notes__[0]


def test_a_save_in_flight_is_finished_when_the_training_stops() -> None:
    go_on, done = threading.Event(), []

    def save() -> Path:
        assert go_on.wait(PATIENCE_S)
        done.append(1)
        return Path()

    def train() -> None:
        with Saver() as saver:
            saver.submit(save)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), _alarm(go_on.set):
        train()
    assert done == [1]


@pytest.mark.parametrize(
    "wait",
    [Saver.finish, Saver.close, lambda saver: saver.submit(lambda: Path("second"))],
    ids=["finish", "close", "submit"],
)
def test_an_interrupted_wait_loses_nothing(wait: Callable[[Saver], object]) -> None:
    go_on, done = threading.Event(), []

    def save() -> Path:
        assert go_on.wait(PATIENCE_S)
        done.append(1)
        return Path("first")

    saver = Saver()
    saver.submit(save)
    with pytest.raises(KeyboardInterrupt), _alarm(_interrupt):
        wait(saver)
    assert done == []
    with _alarm(go_on.set):
        assert saver.finish() == Path("first"), "it is waited for once more"
    assert done == [1]


def test_a_closed_saver_takes_no_more() -> None:
    with Saver() as saver:
        pass
    with pytest.raises(ValueError, match="closed"):
        saver.submit(Path)


LEAVING = """
import threading
from pathlib import Path
from duiti.training.saver import Saver

begun = threading.Event()

def save():
    begun.set()
    threading.Event().wait()

with Saver() as saver:
    saver.submit(save)
    begun.wait()
    try:
        print("saving", flush=True)
        threading.Event().wait()
    finally:
        print("stopping", flush=True)
"""


def test_a_second_interrupt_leaves_although_a_save_never_ends() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "saving\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "stopping\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)  # it waits for the save
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
