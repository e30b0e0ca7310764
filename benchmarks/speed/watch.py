"""Runs a command that writes a line to a file after every update, and holds the clock beside it.

    seen = watch([python, "…"], lines=Path("metrics.jsonl"), environment=…)
    seen.at_s; seen.lines; seen.peak_bytes

Both sides of a comparison are timed in this one way, from outside: all that happens between two
updates counts, start-up and saving do not. The peak is what the kernel says of the process when it
has ended. A caller must be small itself: a new process starts with the peak of the one it was
forked from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.005
"""How often the file is looked at: the most that a time can be off."""
SHOWN_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a process."""

    lines: tuple[str, ...]
    at_s: tuple[float, ...]
    """When each line was there, from an arbitrary start."""
    peak_bytes: int
    """The most memory that the process ever held (resident)."""


class Failed(Exception):
    """A process that did not end well, with what it said last."""


def watch(
    command: Sequence[str],
    *,
    lines: Path,
    log: Path,
    environment: Mapping[str, str],
    stdin: str = "",
) -> Seen:
    """Run `command` to its end.

    Args:
        lines: the file it writes to; it need not exist yet.
        log: where its stdout and stderr go.

    Raises:
        Failed: it ended with an error.
    """
    given = log.with_suffix(".stdin")
    given.write_text(stdin, encoding="utf-8")
    with log.open("w", encoding="utf-8") as out, given.open(encoding="utf-8") as into:
        process = subprocess.Popen(
            command, stdin=into, stdout=out, stderr=subprocess.STDOUT, env=dict(environment)
        )
        follower = _Follower(lines)
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                follower.look()
                if pid:
                    break
                time.sleep(POLL_S)
        except BaseException:
            process.kill()
            raise
    # Popen did not see the end itself.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        shown = "\n".join(last)
        raise Failed(f"{' '.join(command[:4])} … ended with {process.returncode}:\n{shown}")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return Seen(
        lines=tuple(follower.lines), at_s=tuple(follower.at_s), peak_bytes=usage.ru_maxrss * unit
    )


class _Follower:
    """Reads whole lines of a growing file and notes when it saw them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._rest = ""
        self.lines: list[str] = []
        self.at_s: list[float] = []

    def look(self) -> None:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size == self._size:
            return
        now = time.perf_counter()
        with self._path.open("rb") as file:
            file.seek(self._size)
            added = file.read(size - self._size)
        self._size = size
        *whole, self._rest = (self._rest + added.decode("utf-8")).split("\n")
        self.lines += whole
        self.at_s += [now] * len(whole)
