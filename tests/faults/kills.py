"""Processes that end in the middle of things: kill -9, signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.place import (
    RUN,
    Done,
    Place,
    World,
    ended,
    must,
    train_line,
    until,
)  # fmt: skip
from faults.warm import LIMIT_S, NO_FAULTS, Started, command, environment

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NUM_RANDOM = 20


def kill(started: Started, number: int = signal.SIGKILL) -> None:
    os.kill(started.pid, number)


def at_random(world: World) -> Iterator[Trial]:
    def trial(after_s: float) -> str:
        place = world.begun()
        started = place.starts_training()
        time.sleep(after_s)
        kill(started)
        started.wait()
        return place.same_in_the_end()

    for _ in range(NUM_RANDOM):
        after_s = world.random.uniform(0.0, world.run_s)
        yield f"after {after_s:.2f} s", partial(trial, after_s)


def at_random_again_and_again(world: World) -> Iterator[Trial]:
    def trial(shares: list[float]) -> str:
        place = world.begun()
        started = place.starts_training()
        for share in shares:
            time.sleep(share * world.run_s)
            kill(started)
            started.wait()
            started = place.start("train", "--resume", RUN)
        started.wait()
        return place.same_in_the_end()

    for _ in range(5):
        shares = [world.random.uniform(0.4, 0.9) for _ in range(4)]
        yield f"at {', '.join(f'{share:.2f}' for share in shares)}", partial(trial, shares)


def before_a_change(world: World, numbers: list[int]) -> Iterator[Trial]:
    def trial(number: int) -> str:
        place = world.begun()
        place.train(Faults(die_at=number)).ends(-9)
        return place.same_in_the_end()

    for number in numbers:
        yield f"{number}: before {world.changes[number - 1]}", partial(trial, number)


def in_a_save(world: World) -> Iterator[Trial]:
    """The third one, which removes the first."""
    return before_a_change(world, world.changes_from("step-000009.tmp", "step-000003"))


def at_the_beginning(world: World) -> Iterator[Trial]:
    first = world.changes_from("step-000003.tmp", "step-000003")[0]
    return before_a_change(world, list(range(1, first)))


def at_the_end(world: World) -> Iterator[Trial]:
    """Behind the last checkpoint: weights, tokenizer, README, manifest."""
    last = [n for n, line in enumerate(world.changes, 1) if "checkpoints" in line][-1]
    return before_a_change(world, list(range(last + 1, len(world.changes) + 1)))


def while_resuming(world: World) -> Iterator[Trial]:
    """Before every change that a resumed run makes until its first checkpoint is there."""

    def trial(number: int) -> str:
        place = world.stopped()
        done = place.resume(faults=Faults(die_at=number))
        must(done.code in (-9, 0), f"exit {done.code}: {done.brief}")
        return place.same_in_the_end()

    place = world.stopped()
    trace = world.root / "trace-resumed"
    place.resume(faults=Faults(trace=str(trace))).ends(0)
    lines = trace.read_text(encoding="utf-8").splitlines()
    until_first = next(n for n, line in enumerate(lines, 1) if "step-000015.tmp" in line)
    for number in range(1, until_first):
        yield f"{number}: before {lines[number - 1]}", partial(trial, number)


def in_the_proof(world: World) -> Iterator[Trial]:
    """The finished run is there; another process is looking at it."""

    def trial(number: signal.Signals) -> str:
        place = world.begun()
        started = place.starts_training(NO_FAULTS, "--proof")
        until(
            lambda: "README.md" in os.listdir(place.run) if place.run.is_dir() else False, started
        )
        time.sleep(0.2)
        kill(started, number)
        done = ended(started).ends(-9, 0)
        if done.code == 0:  # asked to stop: the proof is all that was left, and comes first
            must((place.run / "proof.json").is_file(), f"not proven: {done.brief}")
            return "the proof was finished, and the run with it"
        must(not (place.run / "proof.json").exists(), "it was killed too late")
        again = place.resume().ends(0)
        must((place.run / "proof.json").is_file(), f"not proven, and nothing said: {again.brief}")
        return f"exit {done.code}, proven when it goes on"

    for number in (signal.SIGKILL, signal.SIGTERM):
        yield number.name, partial(trial, number)


def in_a_write(world: World) -> Iterator[Trial]:
    def trial(num_bytes: int) -> str:
        place = world.begun()
        done = place.train(Faults(largest_file_bytes=num_bytes, dies_of_size=True))
        done.ends(-signal.SIGXFSZ)
        return place.same_in_the_end()

    folder = world.stopped().checkpoints()[-1]
    for name in ("trained.safetensors", "optimizer.safetensors"):
        size = (folder / name).stat().st_size
        for share in (0.01, 0.5, 0.99):
            yield f"{name} at {share:.0%}", partial(trial, int(size * share))


def one_signal(world: World) -> Iterator[Trial]:
    def trial(number: signal.Signals, step: int) -> str:
        place = world.begun()
        started = place.starts_training()
        until(lambda: place.lines() >= step, started)
        kill(started, number)
        done = ended(started).ends(130)
        done.says(f"stopped by {number.name} after step", "duiti train --resume runs/x")
        must(place.steps(), "no checkpoint")
        return f"exit 130, {place.same_in_the_end()}"

    for number in SIGNALS:
        for step in (1, 11):  # before the first checkpoint, and in the second epoch
            yield f"{number.name} after step {step}", partial(trial, number, step)


def signal_in_a_save(world: World) -> Iterator[Trial]:
    def trial(number: signal.Signals, change: int) -> str:
        place = world.begun()
        done = place.train(Faults(signals={str(change): [number.name]}))
        done.ends(130).says(f"stopped by {number.name}")
        must(9 in place.steps(), f"steps {place.steps()}")
        left = [path.name for path in place.checkpoints() if ".tmp-" in path.name]
        must(not left, f"left {left}")
        return f"exit 130, the save is whole, {place.same_in_the_end()}"

    return in_saves(world, trial)


def two_signals_in_a_save(world: World) -> Iterator[Trial]:
    def trial(number: signal.Signals, change: int) -> str:
        place = world.begun()
        done = place.train(Faults(signals={str(change): [number.name, number.name]})).ends(130)
        done.says("stopped at once by a second signal")
        must(6 in place.steps() or 9 in place.steps(), f"steps {place.steps()}")
        return f"exit 130, a checkpoint is whole, {place.same_in_the_end()}"

    return in_saves(world, trial)


def in_saves(world: World, trial: Callable[[signal.Signals, int], str]) -> Iterator[Trial]:
    """Each signal at the beginning, within and at the end of the third save."""
    numbers = world.changes_from("step-000009.tmp", "step-000003")
    for number in SIGNALS:
        for change in (numbers[0], world.random.choice(numbers), numbers[-1]):
            where = f"{number.name} before {world.changes[change - 1]}"
            yield where, partial(trial, number, change)


def two_signals(world: World) -> Iterator[Trial]:
    def trial(number: signal.Signals) -> str:
        place = world.begun()
        done = place.train(Faults(signals={"metrics.jsonl": [number.name] * 2})).ends(130)
        done.says("stopped at once by a second signal")
        return f"exit 130, {place.same_in_the_end()}"

    for number in SIGNALS:
        yield number.name, partial(trial, number)


def repeated_by_others(world: World) -> Iterator[Trial]:
    """`timeout` sends its signal twice: to the process and to its group."""

    def trial(number: signal.Signals) -> str:
        place = world.begun()
        started = place.starts_training()
        until(lambda: place.lines() >= 5, started)
        kill(started, signal.SIGSTOP)
        for _ in range(2):
            kill(started, number)
            os.killpg(started.pid, number)
        kill(started, signal.SIGCONT)
        ended(started).ends(130).says("stopped by")
        return f"saved once, exit 130, {place.same_in_the_end()}"

    for number in (signal.SIGTERM, signal.SIGHUP):
        yield number.name, partial(trial, number)


def real_command(place: Place, *more: str) -> str:
    return shlex.join(command(*train_line(*more)))


def in_shell(place: Place, line: str) -> Done:
    """A shell's line, with the process's own start and end."""
    env = environment(DUITI_CACHE=str(place.world.root / "cache"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{line}"],
        cwd=place.folder, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout + done.stderr)


def broken_streams(world: World) -> Iterator[Trial]:
    def trial(ending: str) -> str:
        place = world.begun()
        done = in_shell(place, f"{real_command(place)} {ending}")
        must("Traceback" not in done.text, f"a traceback: {done.brief}")
        must((place.run / "manifest.json").is_file(), f"exit {done.code}: {done.brief}")
        must(done.code == 0, f"exit {done.code}: {done.brief}")
        return f"finished, exit {done.code}, {place.same()}"

    for ending in ("2>&1 | head -1", "2>&1 | true", ">&- 2>&-", "2>/dev/full", ">/dev/full"):
        yield ending, partial(trial, ending)


def closed_terminal(world: World) -> Iterator[Trial]:
    def trial(is_bar: bool) -> str:
        place = world.begun()
        ours, theirs = pty.openpty()
        claim = "import fcntl, termios, sys; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        arguments = train_line(*([] if is_bar else ["--plain"]))
        code = f"{claim} from duiti.cli import main; main({arguments!r})"
        process = subprocess.Popen(
            [command()[0], "-c", code], stdin=theirs, stdout=theirs, stderr=theirs,
            cwd=place.folder, env=environment(DUITI_CACHE=str(world.root / "cache")),
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(ours, False)

        def has_begun() -> bool:
            with suppress(BlockingIOError):
                os.read(ours, 65536)  # a reader, so that it does not wait
            return place.lines() >= 5 or process.poll() is not None

        until(has_begun)
        os.close(ours)
        code_seen = process.wait(LIMIT_S)
        must(code_seen == 130, f"exit {code_seen}")
        must(place.steps(), "no checkpoint")
        return f"saved, exit 130, {place.same_in_the_end()}"

    yield "with a bar", partial(trial, True)
    yield "with plain lines", partial(trial, False)


def two_processes(world: World) -> Iterator[Trial]:
    def while_training() -> str:
        place = world.begun()
        first = place.starts_training()
        until(lambda: place.lines() >= 4, first)
        kill(first, signal.SIGSTOP)
        second = place.resume().ends(2).says(f"process {first.pid}", "trains here")
        kill(first, signal.SIGCONT)
        ended(first).ends(0)
        return f"the second: exit {second.code}, the first: {place.same()}"

    def dead_holder() -> str:
        place = world.stopped()
        must((place.run / "run.lock").exists(), "it held no lock")
        return place.same_in_the_end()

    def living_number() -> str:
        place = world.stopped()
        (place.run / "run.lock").write_text("1 localhost\n", encoding="utf-8")
        return place.same_in_the_end()

    yield "a second one while the first trains", while_training
    yield "the lock of one that was killed", dead_holder
    yield "the same, and its number is another process's now", living_number


SAME = "the run goes on and ends with the same bytes"
FAULTS = [
    Fault(
        name="random", number="F1", what="kill -9 at a random moment",
        expected=f"{SAME}; without a checkpoint the command to begin again is told",
        trials=at_random, num_sampled=1,
    ),
    Fault(
        name="random-again", number="F1", what="kill -9 of the run and of everyone that goes on",
        expected=SAME, trials=at_random_again_and_again,
    ),
    Fault(
        name="save", number="F2", what="kill -9 between any two changes that a save makes",
        expected=f"the older checkpoint is whole; {SAME}; nothing is left behind",
        trials=in_a_save, num_sampled=1,
    ),
    Fault(
        name="beginning", number="F2", what="the same before the first checkpoint",
        expected="the command to begin again is told, and works", trials=at_the_beginning,
    ),
    Fault(
        name="end", number="F2", what="the same while the finished run is written",
        expected=SAME, trials=at_the_end, num_sampled=1,
    ),
    Fault(
        name="proof", number="F2", what="killed or stopped while the finished run is proven",
        expected="the proof is made when the run goes on", trials=in_the_proof,
    ),
    Fault(
        name="resuming", number="F2", what="the same while a run goes on, until it saves",
        expected=SAME, trials=while_resuming,
    ),
    Fault(
        name="write", number="F2", what="killed in the middle of writing a file",
        expected=SAME, trials=in_a_write, num_sampled=1,
    ),
    Fault(
        name="signal", number="F3, F5", what="SIGTERM, SIGINT or SIGHUP",
        expected=f"the update is finished, saved, exit 130; {SAME}", trials=one_signal,
        num_sampled=1,
    ),
    Fault(
        name="signal-repeated", number="F3",
        what="the same signal four times at once (`timeout`, a shell that loses its terminal)",
        expected=f"one request: saved once, exit 130; {SAME}", trials=repeated_by_others,
    ),
    Fault(
        name="signal-save", number="F4", what="a signal during a save",
        expected=f"the save is finished once, exit 130; {SAME}", trials=signal_in_a_save,
    ),
    Fault(
        name="signals-save", number="F4", what="two signals during a save",
        expected=f"exit 130 at once, the older checkpoint is whole; {SAME}",
        trials=two_signals_in_a_save, num_sampled=1,
    ),
    Fault(
        name="signals", number="F5", what="two signals", expected=f"exit 130 at once; {SAME}",
        trials=two_signals,
    ),
    Fault(
        name="streams", number="F6", what="nobody reads what is said, or it cannot be written",
        expected="trained to the end, no traceback", trials=broken_streams,
    ),
    Fault(
        name="terminal", number="F6", what="the terminal is closed",
        expected=f"saved, exit 130; {SAME}", trials=closed_terminal,
    ),
    Fault(
        name="lock", number="F18", what="two processes in one run's folder",
        expected="the second is refused by the number of the first; a dead one is no obstacle",
        trials=two_processes, num_sampled=1,
    ),
]  # fmt: skip
