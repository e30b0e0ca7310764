"""Disks and files that fail or are changed under a run."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.kills import kill
from faults.place import ADAPTER, Done, Place, World, ended, metrics, must, train_line, until
from faults.warm import LIMIT_S, NO_FAULTS, Started, command, environment
from made_faults import read_only, small_disk


def disk_full(world: World) -> Iterator[Trial]:
    """A file system for `runs/` that has no room for everything; then it gets more."""

    def trial(num_bytes: int) -> str:
        place = world.begun()
        with small_disk(place.folder / "runs", num_bytes):
            done = place.train().ends(1).says("runs/x")
            must("space" in done.text or "full" in done.text, f"no reason: {done.brief}")
            left = [path.name for path in place.run.rglob("*.tmp-*")]
            must(not left, f"left {left}")
            kept = place.steps()
            subprocess.run(
                ["mount", "-o", "remount,size=100m", str(place.folder / "runs")], check=True
            )
            return f"exit 1, {'a' if kept else 'no'} checkpoint is whole, {place.same_in_the_end()}"

    for millions in (0.005, 0.1, 1.5, 3.5, 6.5):
        yield f"{millions} MB", partial(trial, int(millions * 1e6))


def files_limited(world: World) -> Iterator[Trial]:
    def trial(num_bytes: int) -> str:
        place = world.begun()
        done = place.train(Faults(largest_file_bytes=num_bytes)).ends(1).says("runs/x")
        left = [path.name for path in place.run.rglob("*.tmp-*")]
        must(not left, f"left {left}: {done.brief}")
        return f"exit 1, {place.same_in_the_end()}"

    for num_bytes in (500, 100_000, 1_000_000):
        yield f"{num_bytes:,} bytes", partial(trial, num_bytes)


def unwritable_output(world: World) -> Iterator[Trial]:
    def refused(place: Place, *flags: str) -> str:
        done = place.train(NO_FAULTS, *flags).ends(1, 2)
        must("plan  " not in done.text, f"the model was loaded before: {done.brief}")
        return f"exit {done.code} before the model is loaded"

    def in_read_only() -> str:
        place = world.begun()
        (place.folder / "runs").mkdir()
        with read_only(place.folder / "runs"):
            return refused(place)

    def a_file() -> str:
        place = world.begun()
        place.run.parent.mkdir()
        place.run.write_text("mine")
        seen = refused(place)
        must(place.run.read_text() == "mine", "it was overwritten")
        return seen

    def parent_is_file() -> str:
        place = world.begun()
        (place.folder / "runs").write_text("mine")
        return refused(place)

    def holds_something() -> str:
        place = world.begun()
        place.run.mkdir(parents=True)
        (place.run / "notes.txt").write_text("mine")
        return refused(place)

    def too_long() -> str:
        return refused(world.begun(), "-o", "runs/" + "x" * 300)

    yield "read-only", in_read_only
    yield "a file", a_file
    yield "below a file", parent_is_file
    yield "a folder that holds something", holds_something
    yield "a name of 300 letters", too_long


def read_only_midway(world: World) -> Iterator[Trial]:
    def trial() -> str:
        place = world.begun()
        started = place.starts_training(NO_FAULTS, "--epochs", "20")
        until(lambda: place.lines() >= 5, started)
        kill(started, signal.SIGSTOP)
        checkpoints = place.run / "checkpoints"
        with read_only(checkpoints):
            kill(started, signal.SIGCONT)
            done = ended(started).ends(1).says("checkpoints")
        must(place.steps(), "no valid checkpoint is left")
        place.resume().ends(0)
        return f"exit {done.code}, named; goes on afterwards"

    yield "the folder of the checkpoints", trial


def log_unwritable(world: World) -> Iterator[Trial]:
    """No file of the process may grow, for a while, between two checkpoints."""

    def limit(pid: int, num_bytes: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
        os.kill(pid, signal.SIGCONT)

    def trial() -> str:
        place = world.begun()
        line = command(*train_line("--save-every", "never", "--plain"))
        env = environment(DUITI_CACHE=str(world.root / "cache"))
        with subprocess.Popen(
            line, cwd=place.folder, env=env, stderr=subprocess.PIPE, text=True
        ) as process:  # a pipe: the limit is one of files
            assert process.stderr is not None
            until(lambda: place.lines() >= 2 or process.poll() is not None)
            limit(process.pid, 100)
            said = ""
            for said in process.stderr:
                if "metrics.jsonl cannot be written" in said:
                    break
            limit(process.pid, resource.RLIM_INFINITY)
            done = Done(process.wait(LIMIT_S), said + process.stderr.read())
        done.ends(0).says("metrics.jsonl cannot be written", "all lines are there now")
        must(metrics(place.run) == metrics(world.reference.run), "the metrics are others")
        same = (world.reference.run / ADAPTER).read_bytes() == (place.run / ADAPTER).read_bytes()
        must(same, "other bytes")
        return "said; trained on; all lines are there; same bytes"

    yield "metrics.jsonl", trial


def data_edited(world: World) -> Iterator[Trial]:
    def trial(edit: Callable[[Path], object]) -> str:
        place = world.begun()
        started = place.starts_training()
        until(lambda: place.lines() >= 1, started)
        kill(started, signal.SIGSTOP)
        edit(place.folder / "data.jsonl")
        kill(started, signal.SIGCONT)
        ended(started).ends(0)
        return f"trained on as begun: {place.same()}"

    def append(path: Path) -> None:
        with path.open("a") as file:
            file.write('{"prompt": "new", "response": "new"}\n')

    yield "a row is appended", partial(trial, append)
    yield "cut to nothing", partial(trial, lambda path: os.truncate(path, 0))
    yield "overwritten in place", partial(trial, lambda path: path.write_bytes(b"x" * 5000))
    yield "removed", partial(trial, Path.unlink)


def run_removed(world: World) -> Iterator[Trial]:
    def removed(name: str) -> tuple[Place, Started]:
        place = world.begun()
        started = place.starts_training()
        until(lambda: place.lines() >= 4, started)
        kill(started, signal.SIGSTOP)
        path = place.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return place, started

    def folder(*, is_other: bool) -> str:
        place, started = removed("")
        if is_other:
            place.run.mkdir()
        kill(started, signal.SIGCONT)
        done = ended(started).ends(1).says("runs/x is gone")
        must(is_other == place.run.exists(), "a folder was made anew")
        must(not is_other or not os.listdir(place.run), "what is not ours was written into")
        return f"exit {done.code}, named, nothing is made anew"

    def checkpoints() -> str:
        place, started = removed("checkpoints")
        kill(started, signal.SIGCONT)
        ended(started).ends(0)
        return f"trained on: {place.same()}"

    def metrics() -> str:
        place, started = removed("metrics.jsonl")
        kill(started, signal.SIGCONT)
        ended(started).ends(0).says("it was deleted while the run went on; all lines are there")
        return f"said, and put back: {place.same()}"

    yield "metrics.jsonl", metrics
    yield "the folder of the run", partial(folder, is_other=False)
    yield "the same, and another one is made", partial(folder, is_other=True)
    yield "the folder of the checkpoints", checkpoints


FAULTS = [
    Fault(
        name="disk", number="F7", what="the disk is full, at several sizes",
        expected="exit 1 with the path and the reason, older checkpoints whole, nothing half;"
        " with more room the same bytes",
        trials=disk_full, num_sampled=1,
    ),
    Fault(
        name="quota", number="F7", what="a file cannot grow beyond a limit",
        expected="the same", trials=files_limited,
    ),
    Fault(
        name="output", number="F8", what="a place where no run can be made",
        expected="an error before the model is loaded", trials=unwritable_output, num_sampled=1,
    ),
    Fault(
        name="read-only", number="F8", what="the disk becomes read-only while it trains",
        expected="exit 1, named; checkpoints whole", trials=read_only_midway,
    ),
    Fault(
        name="log", number="F9", what="the log cannot be written for a while",
        expected="said once; training goes on; all lines are written in the end",
        trials=log_unwritable,
    ),
    Fault(
        name="edited", number="F23", what="the data is edited while it trains",
        expected="trained as begun: the same bytes", trials=data_edited, num_sampled=1,
    ),
    Fault(
        name="removed", number="F9", what="the run's files are removed while it trains",
        expected="the folder: exit 1, and nothing is made anew; else the same bytes",
        trials=run_removed, num_sampled=2,
    ),
]  # fmt: skip
