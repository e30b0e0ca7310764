"""What is around a run: rows, clocks, networks, measuring, names, other users."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.kills import in_shell, real_command
from faults.place import Place, World, ended, must, train_line, write_data
from faults.warm import NO_FAULTS

NOBODY = 65534


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
    "[bold]red {x}", "a" * 200,
]  # fmt: skip


def names(world: World) -> Iterator[Trial]:
    def trial(name: str) -> str:
        place = world.begun(name)
        (place.folder / "data.jsonl").rename(place.folder / f"{name}.jsonl")
        shutil.copy(place.folder / f"{name}.jsonl", place.folder / "data.jsonl")
        out = f"runs/{name}"
        data = f"./{name}.jsonl"
        done = place.start(
            *train_line("-o", out, data=data),
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


FAULTS = [
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
        trials=clocks,
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
        expected="the same bytes", trials=elsewhere,
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
