"""What is around a run: disks, data that is edited, clocks, networks, names, other users."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.kills import in_shell, kill, real_command
from faults.place import Place, World, ended, must, until, write_data
from faults.warm import NO_FAULTS, Started
from made_faults import read_only, small_disk

NOBODY = 65534


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

    for millions in (0.005, 0.1, 1.5, 3.5, 6.5, 9.0):
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

    def limit(started: Started, num_bytes: int) -> None:
        kill(started, signal.SIGSTOP)
        resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
        kill(started, signal.SIGCONT)

    def trial() -> str:
        place = world.begun()
        started = place.starts_training(NO_FAULTS, "--save-every", "never", "--plain")
        until(lambda: place.lines() >= 2, started)
        limit(started, 100)
        until(lambda: "metrics.jsonl" in started.log.read_text(), started)
        limit(started, resource.RLIM_INFINITY)
        ended(started).ends(0).says("metrics.jsonl cannot be written", "all lines are there now")
        shutil.rmtree(place.run / "checkpoints", ignore_errors=True)
        other, mine = world.reference.run, place.run
        must((other / "metrics.jsonl").exists() and (mine / "metrics.jsonl").exists(), "no log")
        must(place.lines() == 20, f"{place.lines()} lines")
        same = (other / "adapter_model.safetensors").read_bytes()
        must((mine / "adapter_model.safetensors").read_bytes() == same, "other bytes")
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
    def trial(name: str) -> str:
        place = world.begun()
        started = place.starts_training()
        until(lambda: place.lines() >= 4, started)
        kill(started, signal.SIGSTOP)
        path = place.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        kill(started, signal.SIGCONT)
        done = ended(started).ends(0, 1)
        return f"exit {done.code}, no traceback"

    yield "the folder of the run", partial(trial, "")
    yield "the folder of the checkpoints", partial(trial, "checkpoints")
    yield "metrics.jsonl", partial(trial, "metrics.jsonl")


def bad_rows(world: World) -> Iterator[Trial]:
    def trial(lines: list[str], *named: str) -> str:
        place = world.begun()
        (place.folder / "data.jsonl").write_text("".join(line + "\n" for line in lines))
        done = place.train().ends(3).says(*named)
        must(not place.run.exists(), "a run was begun")
        return f"exit {done.code} before training, {', '.join(named)} named"

    good = '{"prompt": "What?", "response": "That."}'
    bad = '{"prompt": "What?"}'
    yield "the first row is bad", partial(trial, [bad, good, good], "data.jsonl:1")
    yield "one in the middle", partial(trial, [good, bad, good], "data.jsonl:2")
    yield "the last one", partial(trial, [good, good, '{"prompt": '], "data.jsonl:3")
    yield "all of them", partial(trial, [bad, bad], "data.jsonl:1", "data.jsonl:2")
    yield "no row", partial(trial, [], "data.jsonl")


def few_rows(world: World) -> Iterator[Trial]:
    def trial(number: int) -> str:
        place = world.begun()
        path = place.folder / "data.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:number]))
        place.train(NO_FAULTS, "--batch-size", "16").ends(0)
        must(place.lines() == 2, f"{place.lines()} updates")
        return "trained, an update per epoch"

    for number in (1, 3):
        yield f"{number} of a batch of 16", partial(trial, number)


def clocks(world: World) -> Iterator[Trial]:
    def trial(faults: Faults, **env: str) -> str:
        place = world.begun()
        place.train(faults, **env).ends(0)
        return place.same()

    def stopped() -> str:
        place = world.begun()
        place.train(
            Faults(
                jumping_clock=True, die_at=world.changes_from("step-000009.tmp", "step-000009")[5]
            )
        )
        place.resume(faults=Faults(jumping_clock=True)).ends(0)
        return place.same()

    yield "back ten years and forth at every look", partial(trial, Faults(jumping_clock=True))
    yield "the same, killed and gone on", stopped
    yield "a wrong time zone", partial(trial, NO_FAULTS, TZ="Nowhere/Land-77")


def no_network(world: World) -> Iterator[Trial]:
    def local() -> str:
        place = world.begun()
        in_shell(place, f"unshare -rn {real_command(place)}").ends(0)
        return place.same()

    def hub() -> str:
        place = world.begun()
        line = real_command(place, "-m", "nobody/nothing-of-this-name")
        done = in_shell(place, f"HF_HUB_OFFLINE= unshare -rn timeout 60 {line}").ends(1, 2)
        done.says("nobody/nothing-of-this-name")
        return f"exit {done.code}, named"

    yield "a local base", local
    yield "a base on a hub", hub


def measured(world: World) -> Iterator[Trial]:
    """Measuring leaves no trace, whenever it is and however often a run is stopped between."""

    def train(place: Place, *flags: str, faults: Faults = NO_FAULTS) -> None:
        write_data(place.folder / "val.jsonl")
        text = (place.folder / "val.jsonl").read_text().replace("number", "page")
        (place.folder / "val.jsonl").write_text(text)
        place.train(faults, "--val", "val.jsonl", *flags)

    def trial(every: str) -> str:
        place = world.begun()
        train(place, "--eval-every", every)
        name = "adapter_model.safetensors"
        same = (place.run / name).read_bytes() == (world.reference.run / name).read_bytes()
        must(same, "other bytes than without measuring")
        return "the same bytes as without"

    def killed() -> str:
        place = world.begun()
        train(place, "--eval-every", "2", faults=Faults(die_on="step-000012.tmp"))
        place.resume().ends(0)
        name = "adapter_model.safetensors"
        same = (place.run / name).read_bytes() == (world.reference.run / name).read_bytes()
        must(same, "other bytes than without measuring")
        return "the same bytes as without"

    yield "after every update", partial(trial, "1")
    yield "after every seventh", partial(trial, "7")
    yield "killed and gone on", killed


NAMES = [
    "with spaces", "it's \"quoted\"", "数据 ünïcödé 🙂", "new\nline", "$HOME `ls` ;x", "-dash",
    "[bold]red[/] {x}", "a" * 200,
]  # fmt: skip


def names(world: World) -> Iterator[Trial]:
    def trial(name: str) -> str:
        place = world.begun(name)
        (place.folder / "data.jsonl").rename(place.folder / f"{name}.jsonl")
        shutil.copy(place.folder / f"{name}.jsonl", place.folder / "data.jsonl")
        out = f"runs/{name}"
        data = f"./{name}.jsonl"
        done = place.start(
            "train", data, *_settings(), "-o", out,
            faults=Faults(die_on="mkdir", die_once=world.mkdir_of(12)),
        )  # fmt: skip
        ended(done).ends(-9)
        place.does("train", "--resume", out).ends(0)
        return place.same(out)

    for name in NAMES:
        yield repr(name[:20]), partial(trial, name)


def elsewhere(world: World) -> Iterator[Trial]:
    def trial(name: str, folder: str) -> str:
        place = world.begun()
        stop = Faults(die_on="mkdir", die_once=world.mkdir_of(12))
        place.train(stop).ends(-9)
        away = place.folder / folder
        away.mkdir(parents=True, exist_ok=True)
        named = name.format(run=place.run)
        place.does("train", "--resume", named, folder=away, HOME=str(place.folder)).ends(0)
        return place.same()

    yield "by an absolute path", partial(trial, "{run}", "other/place")
    yield "by a relative path", partial(trial, "../../runs/x", "other/place")
    yield "by a path with a slash at its end", partial(trial, "runs/x/", ".")
    yield "by its name", partial(trial, "x", ".")
    yield "by ~", partial(trial, "~/runs/x", "other/place")
    yield "by nothing: the newest", partial(trial, "newest", ".")
    yield "by a checkpoint", partial(trial, "runs/x/checkpoints/step-000006", ".")


def moved(world: World) -> Iterator[Trial]:
    def trial() -> str:
        place = world.stopped()
        place.run.rename(place.run.with_name("y"))
        place.does("train", "--resume", "runs/y").ends(0)
        return place.same("runs/y")

    yield "runs/x is runs/y now", trial


def modes(world: World) -> Iterator[Trial]:
    def trial(umask: int) -> str:
        place = world.begun()
        place.train(Faults(umask=umask)).ends(0)
        for path in (place.run, *place.run.rglob("*")):
            full = 0o777 if path.is_dir() else 0o666
            mode = stat.S_IMODE(path.stat().st_mode)
            must(mode == full & ~umask, f"{path.name} has {mode:o}, not {full & ~umask:o}")
        return f"modes are what it leaves, {place.same()}"

    for umask in (0o077, 0o022, 0o002):
        yield f"umask {umask:03o}", partial(trial, umask)


def other_users(world: World) -> Iterator[Trial]:
    def trial(harm: Callable[[Place], object]) -> str:
        must(os.getuid() == 0, "only the superuser can become another user")
        place = world.stopped()
        harm(place)
        done = place.resume(faults=Faults(uid=NOBODY)).ends(1, 2)
        must("ermission" in done.text, f"no reason: {done.brief}")
        return f"exit {done.code}, permission named; for its owner: {place.same_in_the_end()}"

    yield "a run of another user", partial(trial, lambda place: None)
    yield "the same, not to be read", partial(trial, lambda place: place.run.chmod(0o700))


def _settings() -> list[str]:
    from faults.place import MODEL, SAVING, SETTINGS

    return [*MODEL, *SETTINGS, *SAVING]


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
        expected="an error or an end, no traceback", trials=run_removed,
    ),
    Fault(
        name="rows", number="F25", what="rows that cannot be used",
        expected="exit 3 before training, file and line named", trials=bad_rows,
    ),
    Fault(
        name="few", number="F26", what="fewer rows than a batch", expected="all are trained",
        trials=few_rows,
    ),
    Fault(
        name="clock", number="F27", what="the clock jumps", expected="the same bytes",
        trials=clocks, num_sampled=1,
    ),
    Fault(
        name="network", number="F29", what="no network", trials=no_network,
        expected="a local run is the same; a hub's name gives an error that names it",
    ),
    Fault(
        name="measured", number="F32", what="measured on validation rows",
        expected="the same bytes as without", trials=measured,
    ),
    Fault(
        name="names", number="F33", what="odd names of data and run, killed and gone on",
        expected="the same bytes", trials=names, num_sampled=1,
    ),
    Fault(
        name="elsewhere", number="F33", what="gone on from another folder, by several names",
        expected="the same bytes", trials=elsewhere, num_sampled=1,
    ),
    Fault(
        name="moved", number="F33", what="the run's folder is renamed", trials=moved,
        expected="the same bytes",
    ),
    Fault(
        name="modes", number="F34", what="a umask", trials=modes,
        expected="no file gets another mode than it leaves",
    ),
    Fault(
        name="users", number="F34", what="a run of another user", trials=other_users,
        expected="an error that says so; the run is as it was",
    ),
]  # fmt: skip
