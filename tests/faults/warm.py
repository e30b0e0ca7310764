"""Command lines of duiti, each in a process of its own, without the seconds that imports take.

    with Warm() as warm:
        started = warm.start(["train", "data.jsonl", "-m", "tiny"], folder=folder)
        os.kill(started.pid, signal.SIGKILL)
        code = started.wait()

A server imports what a run imports and then forks for every command line; the child reads its
arguments, installs its faults and goes through `duiti.cli.main` to its exit like any other process.
The server has no thread and holds no state of a run. Where the very start or end of a process
matters (pipes, terminals), use `command` instead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from faults.inject import Faults

LIMIT_S = 600
"""After which a process is taken for stuck."""
TESTS = Path(__file__).parent.parent
NO_FAULTS = Faults()


def environment(**more: str) -> dict[str, str]:
    """Of a process: one thread, no network, the tests' modules at hand."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(TESTS),
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **fixed, **more}


def command(*arguments: str) -> list[str]:
    """The same command line without the server."""
    return [sys.executable, "-m", "duiti", *arguments]


@dataclass(frozen=True, slots=True)
class Started:
    """A process that runs a command line."""

    pid: int
    log: Path
    """What it says, both streams."""
    server: Warm

    def poll(self) -> int | None:
        """Its exit code, or None while it runs; negative if a signal ended it."""
        return self.server.poll(self.pid)

    def wait(self) -> int:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            code = self.poll()
            if code is not None:
                return code
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        raise TimeoutError(f"still running after {LIMIT_S} s: {self.log.read_text()}")


class Warm:
    """The server, from outside."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._codes: dict[int, int] = {}

    def __enter__(self) -> Warm:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=TESTS,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def start(
        self,
        arguments: list[str],
        *,
        folder: Path,
        log: Path,
        cache: Path,
        faults: Faults = NO_FAULTS,
        **env: str,
    ) -> Started:
        """Begin a command line in a folder; the faults concern what lies under it."""
        pid = self._ask(
            start=arguments,
            folder=str(folder),
            log=str(log),
            faults=asdict(faults),
            env={"DUITI_CACHE": str(cache), **env},
        )
        return Started(pid, log, self)

    def warm_up(self, names: Path) -> None:
        """Import the modules that a run had imported when it ended, by that list of names."""
        self._ask(load=str(names))

    def poll(self, pid: int) -> int | None:
        if pid not in self._codes:
            code = self._ask(poll=pid)
            if code is None:
                return None
            self._codes[pid] = code
        return self._codes[pid]

    def _ask(self, **request: Any) -> Any:
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> dict[str, Any] | None:
    """Answer requests; in a child, return what it is to do."""
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        answer: int | None = None
        if "load" in request:
            for name in Path(request["load"]).read_text(encoding="utf-8").split():
                _load(name)
        elif "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return dict(request)
        os.write(1, (json.dumps(answer) + "\n").encode())
    return None


def _load(name: str) -> None:
    if name.partition(".")[0] in ("__main__", "faults"):
        return
    with suppress(ImportError):  # some are made at run time; the child makes its own
        import_module(name)


def _become(request: dict[str, Any]) -> None:
    """A fresh process in a folder of its own: streams, environment, signals, faults."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, target in enumerate((nothing, log, log)):
        os.dup2(target, number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.update(request["env"])
    sys.argv = ["duiti", *request["start"]]
    Faults(**request["faults"]).install(Path(request["folder"]))


def _main() -> None:
    request = _serve()
    if request is None:
        return
    _become(request)
    from duiti.cli import main

    try:
        main(request["start"])
    finally:
        if names := os.environ.get("FAULTS_MODULES"):
            Path(names).write_text("\n".join(sorted(sys.modules)), encoding="utf-8")


if __name__ == "__main__":
    _main()
