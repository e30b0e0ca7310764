"""Where a fault happens: a folder with data and a run, what is done there, and what is found.

    with World(root) as world:
        place = world.begun()                       # data, and no run yet
        done = place.train(Faults(die_at=40))
        place.same_in_the_end()                     # goes on, and compares every byte

Nothing of duiti judges: checkpoints are verified with json and hashlib, results by their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.inject import Faults
from faults.warm import LIMIT_S, NO_FAULTS, Started, Warm

MODEL = ["-m", "tiny", "--device", "cpu", "--dtype", "float32"]
SETTINGS = ["--batch-size", "4", "--epochs", "2", "--lora.dropout", "0.1", "--no-proof"]
SAVING = ["--save-every", "3", "--keep", "2"]
RUN = "runs/x"
ADAPTER = "adapter_model.safetensors"
NUM_STEPS = 20
STATE_FILES = ("state.json", "trained.safetensors", "optimizer.safetensors", "manifest.json")
TIMES = {"tokens_per_s", "peak_memory_bytes"}
"""Of a line of metrics: what is no part of the result."""


class Wrong(AssertionError):
    """The program did not do what is expected."""


def must(holds: object, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


@dataclass(frozen=True, slots=True)
class Done:
    """A command line that ended."""

    code: int
    text: str

    def says(self, *parts: str) -> Done:
        """It must have said all of these, whatever lines were broken where."""
        flat = " ".join(self.text.split())
        for part in parts:
            must(" ".join(part.split()) in flat, f"does not say {part!r}: {self.brief}")
        return self

    def ends(self, *codes: int) -> Done:
        must(self.code in codes, f"exit {self.code}, not {codes}: {self.brief}")
        must("Traceback" not in self.text, f"a traceback: {self.brief}")
        return self

    @property
    def brief(self) -> str:
        text = self.text.strip()
        return text if len(text) < 1500 else f"{text[:500]} […] {text[-900:]}"


class World:
    """The undisturbed run, a stopped run to damage, and fresh places."""

    def __init__(self, root: Path, *, seed: int = 0) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.warm = Warm()
        self._number = 0
        self.changes: list[str] = []
        """What the undisturbed run does to the disk, a line per change."""

    def __enter__(self) -> World:
        self.warm.__enter__()
        (self.root / "cache").mkdir(parents=True)
        (self.root / "reference").mkdir()
        write_data(self.root / "reference/data.jsonl")
        modules = self.root / "modules"
        self.reference = Place(self, self.root / "reference")
        self.reference.train(FAULTS_MODULES=str(modules)).ends(0)
        self.warm.warm_up(modules)
        again = self.begun()
        trace = self.root / "trace"
        started = time.monotonic()
        again.train(Faults(trace=str(trace))).ends(0)
        self.run_s = time.monotonic() - started
        again.same()
        self.changes = trace.read_text(encoding="utf-8").splitlines()
        self._stopped = self.begun()
        self._stopped.train(Faults(die_on="mkdir", die_once=self.mkdir_of(12))).ends(-9)
        must(self._stopped.steps() == [6, 9], f"left {self._stopped.steps()}")
        return self

    def __exit__(self, *_: object) -> None:
        self.warm.__exit__()

    def begun(self, name: str = "") -> Place:
        """Data, and no run yet."""
        self._number += 1
        folder = self.root / f"{self._number:04}" / name
        folder.mkdir(parents=True)
        write_data(folder / "data.jsonl")
        return Place(self, folder)

    def stopped(self) -> Place:
        """A run that was killed in update 12, with checkpoints of steps 6 and 9."""
        place = self.begun()
        shutil.copytree(self._stopped.run, place.run)
        return place

    def mkdir_of(self, step: int) -> int:
        """Which of the folders that are made is that of a checkpoint."""
        made = [line for line in self.changes if line.startswith("mkdir")]
        return 1 + next(n for n, line in enumerate(made) if f"step-{step:06}.tmp" in line)

    def changes_from(self, first: str, last: str) -> list[int]:
        """Numbers of the changes from the first line with one part to the last with another."""
        numbers = [n for n, line in enumerate(self.changes, 1) if first in line]
        ends = [n for n, line in enumerate(self.changes, 1) if last in line]
        return list(range(numbers[0], ends[-1] + 1))


@dataclass(frozen=True)
class Place:
    """A folder with `data.jsonl` in which `runs/x` is trained."""

    world: World
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def start(self, *arguments: str, faults: Faults = NO_FAULTS, **more: Any) -> Started:
        log = self.world.root / f"log-{time.monotonic_ns()}"
        cache = Path(more.pop("cache", self.world.root / "cache"))
        folder = more.pop("folder", self.folder)
        return self.world.warm.start(
            list(arguments), folder=folder, log=log, cache=cache, faults=faults, **more
        )

    def does(self, *arguments: str, faults: Faults = NO_FAULTS, **more: Any) -> Done:
        return ended(self.start(*arguments, faults=faults, **more))

    def starts_training(self, faults: Faults = NO_FAULTS, *flags: str, **more: Any) -> Started:
        return self.start(*train_line(*flags), faults=faults, **more)

    def train(self, faults: Faults = NO_FAULTS, *flags: str, **more: Any) -> Done:
        return ended(self.starts_training(faults, *flags, **more))

    def resume(self, *flags: str, faults: Faults = NO_FAULTS, **more: Any) -> Done:
        return self.does("train", "--resume", RUN, *flags, faults=faults, **more)

    def steps(self) -> list[int]:
        """Of the checkpoints whose every byte is what was written."""
        named = [
            re.fullmatch(r"step-([0-9]{6})(-[0-9]+)?", path.name) for path in self.checkpoints()
        ]
        whole = [name for name in named if name and is_whole(self.run / "checkpoints" / name[0])]
        return sorted({int(name[1]) for name in whole})

    def checkpoints(self) -> list[Path]:
        """All that lies there, sorted by name."""
        folder = self.run / "checkpoints"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def lines(self) -> int:
        """Updates that were logged so far."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def same_in_the_end(self, *flags: str) -> str:
        """Go on, as the program says one can; the result must be that of the undisturbed run."""
        if not self.run.is_dir():
            self.train().ends(0)
            return f"begun, {self.same()}"
        done = self.resume(*flags)
        if done.code == 1 and "there is no checkpoint to go on from" in done.text:
            must(not self.steps(), f"there are {self.steps()}: {done.brief}")
            found = re.search(r"begin again: duiti (train -c .+? -o )ANOTHER", done.text)
            must(found, f"does not say how to begin again: {done.brief}")
            assert found is not None
            again = [*shlex.split(found[1]), "runs/again"]
            self.does(*again).ends(0)
            return f"begun again, {self.same('runs/again')}"
        if done.code == 2 and "no run" in done.text:
            must(not (self.run / "config.yaml").exists(), f"{done.brief}")
            self.train(NO_FAULTS, "-o", "runs/again").ends(0)
            return f"begun again, {self.same('runs/again')}"
        done.ends(0)
        if "nothing left to do" in done.text:
            return f"it was finished, {self.same()}"
        return f"went on, {self.same()}"

    def same(self, run: str = RUN) -> str:
        """The result must be that of the undisturbed run, and nothing may lie about."""
        found, expected = self.folder / run, self.world.reference.run
        for name in (ADAPTER, "adapter_config.json", "tokenizer.json", "generation_config.json"):
            one, other = found / name, expected / name
            must(one.is_file(), f"there is no {name}")
            must(one.read_bytes() == other.read_bytes(), f"{name} has other bytes")
        gone = {path.name for path in expected.iterdir()} - {path.name for path in found.iterdir()}
        must(not gone, f"there is no {', '.join(sorted(gone))}")
        must(metrics(found) == metrics(expected), "the metrics are others")
        left = [path.name for path in found.rglob("*.tmp-*")]
        must(not left, f"left behind: {left}")
        must(is_whole(found), "the finished run's manifest does not hold")
        kept = Place(self.world, found.parent.parent).steps() if run == RUN else [15, 18]
        must(kept in ([15, 18], [18]), f"checkpoints of {kept} are kept")  # --keep 2, or 1
        return "same bytes"


def train_line(*flags: str, data: str = "data.jsonl") -> list[str]:
    """`train` with its flags, each once: those given here win."""
    found: dict[str, list[str]] = {}
    flag = ""
    for token in (*MODEL, *SETTINGS, *SAVING, "-o", RUN, *flags):
        if token == "--proof":
            del found["--no-proof"]
        if token.startswith("-"):
            flag = token
            found[flag] = []
        else:
            found[flag].append(token)
    return ["train", data, *(token for flag, rest in found.items() for token in (flag, *rest))]


def ended(started: Started) -> Done:
    code = started.wait()
    return Done(code, started.log.read_text(encoding="utf-8", errors="replace"))


def until(holds: Callable[[], bool], started: Started | None = None) -> bool:
    """Wait for it; False if the process ends before."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if holds():
            return True
        if started is not None and started.poll() is not None:
            return holds()
        time.sleep(0.002)
    raise TimeoutError("it did not happen")


def write_data(path: Path) -> None:
    rows = [
        {"prompt": f"Who wrote number {n}?" + " Please say." * (n % 4), "response": f"It was {n}."}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics(run: Path) -> list[dict[str, object]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def is_whole(folder: Path) -> bool:
    """Whether all that its manifest lists is there, with these sizes and hashes."""
    try:
        values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        seal, files = values.pop("sha256"), values["files"]
        contents = {name: (folder / name).read_bytes() for name in files}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    text = json.dumps(values, indent=1, sort_keys=True) + "\n"
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        return False
    return bool(files) and all(
        (len(contents[name]), hashlib.sha256(contents[name]).hexdigest())
        == (seal["bytes"], seal["sha256"])
        for name, seal in files.items()
    )


def listing(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything under a folder, with time of change and hash."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, share: float = 0.5) -> None:
    """One bit, somewhere in the file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
