"""What asks a run to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal is closed).

    with Stopping() as stopping:
        for metrics, progress in train_steps(...):
            if stopping.signal is not None:
                save(...)
                raise Interrupted(step, total, by=stopping.signal, saved=path, run=folder)

The first of them is only noted, so it disturbs nothing: the update and a save that is under way are
finished. The second leaves at once, with exit code 130, whatever the process is doing; what was
saved before is whole, because a save comes into being by one rename.

What comes within half a second of the first belongs to it: a shell that loses its terminal and the
kernel each send SIGHUP, `timeout` sends its signal to the process and to its group, systemd sends
SIGTERM and SIGHUP. None of them means that a save should be abandoned.

A signal that is ignored when the context begins stays ignored: `nohup duiti train` outlives its
terminal. Only a process's main thread can receive signals; in another thread the context does
nothing, and whoever started the thread decides. Earlier handlers are back behind the context.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from duiti.errors import DuitiError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_CODE = 130
SAME_REQUEST_S = 0.5
"""Signals that follow the first one this closely are the same request."""

_STDERR = 2
_SHOW_CURSOR = b"\x1b[?25h\r\n"
_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Interrupted(DuitiError):
    """The run was asked to stop, and has saved where it stands."""

    exit_code = EXIT_CODE

    def __init__(
        self, step: int, total_steps: int, *, by: signal.Signals, saved: Path, run: Path
    ) -> None:
        super().__init__(
            f"stopped by {by.name} after step {step} of {total_steps}; saved in {saved}",
            fix=f"{shlex.join(['duiti', 'train', '--resume', str(run)])} goes on from there;"
            f" with --cool-down {max(1, step // 10)} it comes to a good end soon",
        )


class Stopping:
    """While its context lasts, whether the process was asked to stop.

    Python runs a handler between two of its own instructions, once for all signals of a kind that
    came before. A backward pass is one instruction and may take a minute. So signals are also heard
    by a thread, from a pipe into which the interpreter writes each of them as it arrives.
    """

    def __init__(self, announce: Callable[[signal.Signals], None] | None = None) -> None:
        """`announce` is called once, in another thread, when the first signal comes: to tell the
        person that the update is being finished."""
        self.signal: signal.Signals | None = None
        """The first signal that came."""
        self._announce = announce
        self._before: dict[signal.Signals, _Handler] = {}
        self._wakeup_before = -1
        self._writing: int | None = None
        self._handler_heard = _Heard()
        self._thread_heard = _Heard()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is not threading.main_thread():
            return self
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)  # the interpreter must never wait
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in taken}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writing is None:
            return
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)  # that ends the thread
        self._writing = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        came = signal.Signals(number)
        self._note(came)
        if self._handler_heard.insists():  # the thread has left already, unless it is in `announce`
            _leave(came)

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in numbers:
                    if number in SIGNALS:  # the pipe gets every signal that this process handles
                        self._hear(signal.Signals(number))

    def _hear(self, came: signal.Signals) -> None:
        is_first = not self._thread_heard.anything
        self._note(came)
        if self._thread_heard.insists():
            _leave(came)
        if is_first and self._announce is not None:
            # The terminal may be gone or the stream closed, which may be what the signal is about.
            # The run goes on to its save, and the caller tells how it ended.
            with suppress(OSError, ValueError):
                self._announce(came)

    def _note(self, came: signal.Signals) -> None:
        if self.signal is None:
            self.signal = came


class _Heard:
    """The signals as one listener hears them."""

    def __init__(self) -> None:
        self._first_s: float | None = None

    @property
    def anything(self) -> bool:
        return self._first_s is not None

    def insists(self) -> bool:
        """Count one more; whether it is a second request."""
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
        return now_s - self._first_s >= SAME_REQUEST_S


def _leave(came: signal.Signals) -> None:
    """End the process, with no clean-up that could wait for anything."""
    line = f"stopped at once by a second signal ({came.name}); checkpoints on disk are whole\n"
    try:
        # Straight to the file: whoever is writing may hold the locks of the stream. And only where
        # that does not mean to wait for a reader.
        if select.select([], [_STDERR], [], 0)[1]:
            os.write(_STDERR, (_SHOW_CURSOR if os.isatty(_STDERR) else b"") + line.encode())
    except OSError:
        pass  # nobody is there to read it
    finally:
        os._exit(EXIT_CODE)
