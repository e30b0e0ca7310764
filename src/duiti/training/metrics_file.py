"""`metrics.jsonl`: a line per update, in order, none twice.

    file = MetricsFile(folder / "metrics.jsonl", start_step=200)     # cut behind step 200
    file.add({"step": 201, "loss": 1.5})
    file.close()
    file.problem, file.num_waiting

That the disk is full, or the file cannot be written for another reason, does not end a run. Lines
wait in memory and are written, in order, as soon as they can be. What is on disk is always whole
lines. A file that somebody deletes is put back at the end. That the run's whole folder is gone ends
the run: nothing more of it can be kept.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from duiti.disk_errors import gone
from duiti.durable import write_file
from duiti.errors import DuitiError
from duiti.run import CONFIG_FILE


class MetricsFile:
    """Lines of updates behind those that are there."""

    def __init__(self, path: Path, *, start_step: int = 0) -> None:
        """
        Args:
            path: continued behind the line of `start_step`; begun anew where that is 0.

        Raises:
            DuitiError: it cannot be written.
        """
        self._path = path.absolute()
        self._is_of_run = (path.parent / CONFIG_FILE).exists()
        kept = _lines_until(path, start_step)
        self.num_missing = start_step - len(kept)
        """Updates before `start_step` of which there is no line."""
        self.problem: str | None = None
        """Why a line could not be written at once; stays when it could be written later."""
        self._waiting: deque[bytes] = deque()
        write_file(path, b"".join(kept))
        self._file = path.open("a+b", buffering=0)  # read, too: see `_put_back`
        self._num_bytes = os.fstat(self._file.fileno()).st_size

    @property
    def num_waiting(self) -> int:
        """Lines that are not on disk."""
        return len(self._waiting)

    def add(self, values: Mapping[str, object]) -> None:
        """One line more; numbers that are not finite are null, for JSON has no word for them.

        Raises:
            DuitiError: the folder is gone.
        """
        self._require_folder()
        told = {key: _told(value) for key, value in values.items()}
        self._waiting.append(json.dumps(told, ensure_ascii=False).encode() + b"\n")
        self._write()

    def close(self) -> None:
        """Try once more, and close."""
        self._write()
        try:
            if self._is_deleted:
                self._put_back()
            self._file.close()
        except OSError as error:  # some file systems tell of a full disk only here
            self.problem = _reason(error)

    def _require_folder(self) -> None:
        """Stop here if what was deleted or moved is more than this file."""
        folder = self._path.parent
        if not folder.is_dir() or (self._is_deleted and not self._is_run_there):
            raise gone(folder)

    @property
    def _is_run_there(self) -> bool:
        folder = self._path.parent
        return folder.is_dir() and (not self._is_of_run or (folder / CONFIG_FILE).exists())

    @property
    def _is_deleted(self) -> bool:
        return os.fstat(self._file.fileno()).st_nlink == 0

    def _put_back(self) -> None:
        """What was deleted is there until it is closed."""
        self.problem = "it was deleted while the run went on"
        self._file.seek(0)
        lines = self._file.read() or b""
        try:
            if self._is_run_there and not self._path.exists():
                write_file(self._path, lines)
                return
        except DuitiError as error:
            self.problem = f"{self.problem}, and cannot be put back ({error.what})"
        self._waiting.extendleft(reversed(lines.splitlines(keepends=True)))

    def _write(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                self._append(line)
            except OSError as error:
                self.problem = _reason(error)
                return
            self._waiting.popleft()
            self._num_bytes += len(line)

    def _append(self, line: bytes) -> None:
        """All of it, or nothing."""
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError:
            with suppress(OSError):  # then half a line stays, which whoever reads on will cut
                os.ftruncate(self._file.fileno(), self._num_bytes)
            raise


def _lines_until(path: Path, step: int) -> list[bytes]:
    """Lines of the updates up to `step`, as they are. One that a crash has torn is left out."""
    if step == 0 or not path.is_file():
        return []
    kept, last = [], 0
    for line in path.read_bytes().split(b"\n"):
        with suppress(ValueError):
            values = json.loads(line)
            number = values.get("step") if isinstance(values, dict) else None
            if isinstance(number, int) and last < number <= step:
                kept.append(line + b"\n")
                last = number
    return kept


def _told(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
