"""Checkpoints that are not what was written: cut, changed, gone, junk among them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.place import (
    STATE_FILES,
    Place,
    World,
    flip,
    listing,
    must,
    truncate,
)  # fmt: skip


def to_the_newest(world: World, harm: Callable[[Path], object]) -> Iterator[Trial]:
    """Each file of the newest checkpoint in turn: the one before it is taken."""

    def trial(name: str) -> str:
        place = world.stopped()
        harm(place.run / "checkpoints/step-000009" / name)
        return falls_back(place, "step-000009")

    for name in STATE_FILES:
        yield name, partial(trial, name)


def falls_back(place: Place, *named: str) -> str:
    """It goes on from step 6, names what it does not use, and the result is the same."""
    done = place.resume().ends(0).says(*named, "from step 6")
    must("nothing left to do" not in done.text, done.brief)
    return f"went on from step 6, {place.same()}"


def truncated(world: World) -> Iterator[Trial]:
    return to_the_newest(world, truncate)


def flipped(world: World) -> Iterator[Trial]:
    for share in (0.0, 0.5, 0.999):
        for label, trial in to_the_newest(world, partial(flip, share=share)):
            yield f"{label} at {share:.1%}", trial


def removed(world: World) -> Iterator[Trial]:
    return to_the_newest(world, Path.unlink)


def manifests(world: World) -> Iterator[Trial]:
    def trial(change: Callable[[Path], object]) -> str:
        place = world.stopped()
        change(place.run / "checkpoints/step-000009/manifest.json")
        return falls_back(place, "step-000009")

    def of_the_other(path: Path) -> None:
        shutil.copy(path.parent.with_name("step-000006") / path.name, path)

    def edited(path: Path) -> None:
        values = json.loads(path.read_text())
        values["facts"]["step"] = 99
        path.write_text(json.dumps(values))

    yield "empty", partial(trial, lambda path: path.write_text(""))
    yield "{}", partial(trial, lambda path: path.write_text("{}"))
    yield "a list, nested a thousand times", partial(trial, lambda path: path.write_text("[" * 999))
    yield "of the checkpoint before", partial(trial, of_the_other)
    yield "edited", partial(trial, edited)


def junk(world: World) -> Iterator[Trial]:
    def trial(make: Callable[[Path], object], name: str) -> str:
        place = world.stopped()
        path = place.run / "checkpoints" / name
        make(path)
        done = place.resume().ends(0).says("from step 9")
        is_first = name.startswith("step-") and name[5:].isdecimal() and name > "step-000009"
        must(name in done.text or not is_first, f"not named: {done.brief}")
        must(os.path.lexists(path) or ".tmp-" in name, "it was removed")
        if ".tmp-" not in name:
            (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)
        return f"{'named and ' if is_first else ''}left alone, {place.same()}"

    def folder_with_text(path: Path) -> None:
        path.mkdir()
        (path / "state.json").write_text("{}")

    yield "an empty folder step-999999", partial(trial, Path.mkdir, "step-999999")
    yield "a folder step-abc", partial(trial, folder_with_text, "step-abc")
    yield "a file step-000100", partial(trial, lambda path: path.write_text("x"), "step-000100")
    yield (
        "a folder step-0000009",
        partial(
            trial, lambda path: shutil.copytree(path.with_name("step-000009"), path), "step-0000009"
        ),
    )
    yield (
        "a loop of symbolic links",
        partial(trial, lambda path: path.symlink_to(path.name), "step-000200"),
    )
    yield (
        "a symbolic link to a good one",
        partial(trial, lambda path: path.symlink_to("step-000009"), "step-000300"),
    )
    yield "a named pipe", partial(trial, os.mkfifo, "step-000400")


def leftovers(world: World) -> Iterator[Trial]:
    def trial() -> str:
        place = world.stopped()
        own = place.run / "checkpoints"
        shutil.copytree(own / "step-000009", own / "step-000012.tmp-999999999")
        place.resume().ends(0)
        return f"removed, {place.same()}"

    yield "step-000012.tmp-999999999, a whole one", trial


def all_bad(world: World) -> Iterator[Trial]:
    def trial(harm: Callable[[Path], object], name: str) -> str:
        place = world.stopped()
        for folder in place.checkpoints():
            if (folder / name).exists():
                harm(folder / name)
        before = listing(place.run)
        done = (
            place.resume().ends(1).says("no checkpoint to go on from", "step-000006", "step-000009")
        )
        done.says("begin again: duiti train -c runs/x/config.yaml -o")
        after = listing(place.run)
        changed = {name for name in before if before[name] != after.get(name)} - {".", "run.lock"}
        must(not changed, f"changed {changed}")
        return f"exit 1, all named, nothing is changed; {place.same_in_the_end()}"

    yield "trained.safetensors flipped", partial(trial, flip, "trained.safetensors")
    yield "manifest.json gone", partial(trial, Path.unlink, "manifest.json")


def retention(world: World) -> Iterator[Trial]:
    """The newest is damaged, one is kept: the good one stays until a new one is verified."""

    def trial(change: int) -> str:
        place = world.stopped()
        flip(place.run / "checkpoints/step-000009/optimizer.safetensors")
        place.resume("--keep", "1", faults=Faults(die_at=change))
        must(place.steps(), "no valid checkpoint is left")
        return place.same_in_the_end()

    def trace() -> list[str]:
        place = world.stopped()
        flip(place.run / "checkpoints/step-000009/optimizer.safetensors")
        path = world.root / "trace-retention"
        place.resume("--keep", "1", faults=Faults(trace=str(path))).ends(0)
        return path.read_text(encoding="utf-8").splitlines()

    lines = trace()
    first = [n for n, line in enumerate(lines, 1) if "step-000009-2" in line]
    for change in range(first[0], first[-1] + 20):
        yield f"killed before {lines[change - 1]}", partial(trial, change)


def times_of_files(world: World) -> Iterator[Trial]:
    def trial(newest: str, seconds: int) -> str:
        place = world.stopped()
        for path in place.run.rglob("*"):
            os.utime(path, (0, 0))
        for path in (place.run / "checkpoints" / newest).rglob("*"):
            os.utime(path, (seconds, seconds))
        os.utime(place.run / "checkpoints" / newest, (seconds, seconds))
        done = place.resume().ends(0).says("from step 9")
        must("step-000006" not in done.text, done.brief)
        return f"went on from step 9, {place.same()}"

    yield "all of 1970", partial(trial, "step-000009", 0)
    yield "the older one of 2100", partial(trial, "step-000006", 4102444800)


def cache(world: World) -> Iterator[Trial]:
    def trial(number: int, harm: Callable[[Path], object]) -> str:
        place = world.begun()
        folder = place.folder.with_name(f"{place.folder.name}-cache")
        shutil.copytree(world.root / "cache", folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = files[number % len(files)]
        if path.stat().st_size:
            harm(path)
        place.train(cache=folder).ends(0)
        return place.same()

    num_files = sum(path.is_file() for path in (world.root / "cache").rglob("*"))
    for number in range(min(num_files, 12)):
        for word, harm in (("flipped", flip), ("cut", truncate), ("removed", Path.unlink)):
            yield f"file {number} {word}", partial(trial, number, harm)


OLDER = "named, and the older one is taken; the same bytes in the end"


OLDER = "named, and the older one is taken; the same bytes in the end"
FAULTS = [
    Fault(
        name="cut", number="F10", what="each file of the newest checkpoint cut in half",
        expected=OLDER, trials=truncated, num_sampled=1,
    ),
    Fault(
        name="bit", number="F11", what="one bit flipped in each file", expected=OLDER,
        trials=flipped, num_sampled=1,
    ),
    Fault(
        name="gone", number="F12", what="each file removed", expected=OLDER, trials=removed,
    ),
    Fault(
        name="manifest", number="F13", what="a manifest that is empty, another's, or edited",
        expected=OLDER, trials=manifests,
    ),
    Fault(
        name="junk", number="F14", what="things that are no checkpoints",
        expected="named and left alone; the same bytes in the end", trials=junk,
    ),
    Fault(
        name="leftovers", number="F2", what="what a killed save left behind",
        expected="not used, and removed", trials=leftovers,
    ),
    Fault(
        name="all-bad", number="F15", what="no checkpoint is good",
        expected="exit 1 with all of them and the reasons; nothing is changed", trials=all_bad,
        num_sampled=1,
    ),
    Fault(
        name="cache", number="F24", what="a file of prepared data is damaged",
        expected="prepared anew: the same bytes", trials=cache,
    ),
    Fault(
        name="times", number="F27", what="times of files that mean nothing",
        expected="the newest is told by its number; the same bytes", trials=times_of_files,
    ),
    Fault(
        name="retention", number="F31",
        what="the newest is damaged, one is kept, and the next save is killed anywhere",
        expected="the last valid one is never removed; the same bytes", trials=retention,
    ),
]  # fmt: skip
