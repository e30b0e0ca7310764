"""Faults in a process that is about to train: placed by what it does to the disk, not by the clock.

    Faults(die_at=17).install(folder)              # kill -9 before its 17th change under `folder`
    Faults(signals={17: "SIGTERM"}).install(folder)

A change is what Python tells its audit hooks of (a file opened for writing, a name made, renamed or
removed), and every fsync, before and after. safetensors are written by other code between two of
them; `largest_file_bytes` ends the process in the middle of such a write.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
INSISTS_S = 0.8
"""Between two signals that are two requests (`duiti.training.signals`)."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is to go wrong."""

    trace: str = ""
    """A file that gets a line per change."""
    die_at: int = 0
    """Before which change (from 1) the process is killed."""
    die_on: str = ""
    """The same, by a part of the change's line."""
    die_once: int = 1
    """At which of the changes that have this part."""
    signals: dict[str, list[str]] = field(default_factory=dict)
    """The number of a change, or a part of its line: signals that are sent before it."""
    largest_file_bytes: int = 0
    """A file that would grow beyond: the write fails, or the process dies (`dies_of_size`)."""
    dies_of_size: bool = False
    umask: int = -1
    uid: int = -1
    jumping_clock: bool = False
    """`time.time` goes back ten years and forth again."""

    def install(self, folder: Path) -> None:
        """From here on, in this process."""
        if self.umask >= 0:
            os.umask(self.umask)
        if self.uid >= 0:
            os.setgid(self.uid)
            os.setuid(self.uid)
        if self.jumping_clock:
            _make_clock_jump()
        if self.largest_file_bytes:
            if self.dies_of_size:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file_bytes, -1))
        if self.trace or self.die_at or self.die_on or self.signals:
            _Watch(self, str(folder)).start()


class _Watch:
    def __init__(self, faults: Faults, folder: str) -> None:
        self._faults = faults
        self._folder = folder
        self._number = self._found = 0
        self._signals = dict(faults.signals)
        self._is_quiet = False

    def start(self) -> None:
        sys.addaudithook(self._hear)
        sync = os.fsync  # of which Python tells no hook

        def told_sync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            name = os.readlink(f"/dev/fd/{number}")
            if name.startswith(self._folder):
                self._change(f"before fsync {name}")
            sync(file)
            if name.startswith(self._folder):
                self._change(f"after fsync {name}")

        os.fsync = told_sync

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_quiet:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and self._is_inside(path, -1):
                self._change(f"open {os.fsdecode(path)}")
        elif event in _CHANGES:
            path = arguments[0]
            if self._is_inside(path, arguments[-1]):
                shown = " ".join(
                    os.fsdecode(part) for part in arguments if isinstance(part, str | bytes)
                )
                self._change(f"{event.removeprefix('os.')} {shown}")

    def _is_inside(self, path: object, folder: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        if isinstance(folder, int) and folder >= 0:
            return True  # relative to an open folder, as shutil.rmtree removes
        return os.path.abspath(os.fsdecode(path)).startswith(self._folder)

    def _is_meant(self, key: str, line: str) -> bool:
        return key == str(self._number) if key.isdecimal() else key in line

    def _change(self, line: str) -> None:
        self._number += 1
        faults = self._faults
        if faults.die_at == self._number:
            os.kill(os.getpid(), signal.SIGKILL)
        if faults.die_on and faults.die_on in line:
            self._found += 1
            if self._found == faults.die_once:
                os.kill(os.getpid(), signal.SIGKILL)
        for key in [key for key in self._signals if self._is_meant(key, line)]:
            for place, name in enumerate(self._signals.pop(key)):
                if place:
                    time.sleep(INSISTS_S)
                os.kill(os.getpid(), signal.Signals[name])
        if faults.trace:
            self._is_quiet = True
            with open(faults.trace, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(line.replace("\n", "\\n") + "\n")
            self._is_quiet = False


def _make_clock_jump() -> None:
    real = time.time
    calls = 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return real() - (calls % 2) * 10 * 365 * 86400

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
