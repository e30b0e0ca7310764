"""Saving beside the training: one thread, one save at a time, and no error lost.

    with Saver() as saver:
        saver.finish()                     # before the next copy of the state is made
        saver.submit(lambda: save(folder, step, write, facts, keep=2))
        ...
    # the last save is done

An error of a save is raised where the training is: at the next `submit` or `finish`, or when the
block ends. Where the block ends with an error of its own, that one is raised, and what befell the
save is a note on it. Waiting can be interrupted by a signal. The thread never keeps the process
from ending: who leaves at once leaves a temporary folder behind, and the older checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Saver:
    """Runs saves on a background thread, at most one at a time."""

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._is_closed = False

    def __enter__(self) -> Saver:
        return self

    def submit(self, save: Callable[[], Path]) -> None:
        """Begin a save, once the one before is done.

        Raises:
            Exception: what the one before raised; this one is not begun then.
        """
        if self._is_closed:
            raise ValueError("the saver is closed")
        self.finish()
        self._job = _Job(save)
        self._job.start()

    def finish(self) -> Path | None:
        """Wait for the save in flight, if there is one; what it returned.

        Raises:
            Exception: what it raised, once.
        """
        job = self._job
        if job is None:
            return None
        job.wait()
        self._job = None
        if job.error is not None:
            raise job.error
        return job.saved

    def close(self) -> None:
        """Wait for the save in flight; none can be submitted from now on.

        Raises:
            Exception: what it raised, once.
        """
        self._is_closed = True
        self.finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as second:
            error.add_note(f"The last checkpoint could not be saved either: {second}")


class _Job:
    """One save and what came of it."""

    def __init__(self, save: Callable[[], Path]) -> None:
        self.saved: Path | None = None
        self.error: BaseException | None = None
        self._save = save
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> None:
        # An event and no `join`: a join that a signal interrupts takes the thread for ended
        # (CPython's issue 45274 as it was mended), and the next one would not wait.
        if self._thread.ident is not None:
            self._is_done.wait()

    def _run(self) -> None:
        try:
            self.saved = self._save()
        except BaseException as error:
            self.error = error
        finally:
            self._is_done.set()
