"""What a run says while it runs: `metrics.jsonl` always; a bar on a terminal, plain lines
elsewhere.

    talk.say("data", "3,114 rows")
    with RunLog(folder, talk, total_steps=390) as log:
        log.step(metrics, val_loss=None)

Nothing of it ends a run: neither a reader that went away nor a file that cannot be written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from duiti.data.meter import Progress as Prepared
from duiti.run import METRICS_FILE
from duiti.training.lasting_stream import LastingStream
from duiti.training.metrics_file import MetricsFile
from duiti.training.step import StepMetrics
from duiti.types import Progress as Done

PLAIN_EVERY_S = 5.0
"""Seconds between two plain lines; the last step always gets one."""
MAX_ROWS = 8
"""Rows that are named in a line for people; `metrics.jsonl` names them all."""
_BEGINNING = Done()


class Talk:
    """Lines with a label in front, for people. To stderr, so that stdout is for results; a verb
    whose result *is* such lines sends them to stdout. Where nobody reads them, they are dropped."""

    def __init__(self, *, plain: bool = False, quiet: bool = False, stdout: bool = False) -> None:
        stream = LastingStream(sys.stdout if stdout else sys.stderr)
        self.console = Console(file=cast(IO[str], stream), highlight=False, quiet=quiet)
        self.is_plain = plain or not self.console.is_terminal

    def say(self, label: str, text: str) -> None:
        """One line, or several with the label before the first."""
        first, *more = text.splitlines() or [""]
        self.console.print(f"[bold]{label:<9}[/] {escape(first)}", soft_wrap=True)
        for line in more:
            self.console.print(f"{'':<9} {escape(line)}", soft_wrap=True)


class Preparing:
    """Shows how far the preparation of data has come, once that takes longer than a moment."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._started = self._last = time.monotonic()
        self._first: Prepared | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, line: str) -> None:
        """Something that the cache has to say."""
        self._talk.say("cache", line)

    def report(self, progress: Prepared) -> None:
        """How far it has come."""
        if self._first is None:
            self._first = progress
            self._started = time.monotonic()
        passed = time.monotonic() - self._started
        if self._talk.is_plain:
            if time.monotonic() - self._last >= PLAIN_EVERY_S:
                self._last = time.monotonic()
                self._talk.say("prepare", progress_line(self._first, progress, passed))
        elif passed > 1:
            if self._bar is None:
                self._bar = self._start()
            shown = progress_line(self._first, progress, passed)
            self._bar.update(self._task, completed=_share(progress) or 0, shown=shown)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _start(self) -> Progress:
        bar = Progress(
            TextColumn("prepare"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            console=self._talk.console,
            transient=True,
        )
        self._task = bar.add_task("prepare", total=1, shown="")
        bar.start()
        return bar


def progress_line(first: Prepared, now: Prepared, passed_s: float) -> str:
    """`12,000 rows · 1,800 rows/s · 1:05 left`, both from what was done since `first`: what an
    earlier run had done took no time."""
    rate = (now.rows - first.rows) / max(passed_s, 1e-9)
    line = f"{now.rows:,} rows · {rate:,.0f} rows/s"
    before, share = _share(first), _share(now)
    if before is None or share is None or share <= before:
        return line
    return f"{line} · {clock(passed_s * (1 - share) / (share - before))} left"


def _share(progress: Prepared) -> float | None:
    """Of the data; its size is an estimate, so the end is never claimed."""
    if not progress.total_bytes:
        return None
    return min(progress.read_bytes / progress.total_bytes, 0.999)


@contextmanager
def preparing(talk: Talk) -> Iterator[Preparing]:
    """What `read_material` reports to while it works."""
    watch = Preparing(talk)
    try:
        yield watch
    finally:
        watch.stop()


class RunLog:
    """Writes a run's metrics and shows its progress."""

    def __init__(
        self,
        folder: Path,
        talk: Talk,
        *,
        total_steps: int,
        start: Done = _BEGINNING,
        budget_s: float | None = None,
    ) -> None:
        """
        Args:
            start: where the run goes on: what `metrics.jsonl` says of later updates is cut off.
            budget_s: of the plan, if it has one.

        Raises:
            DuitiError: `metrics.jsonl` cannot be written.
        """
        self._talk = talk
        self._total = total_steps
        self._start = start
        self._budget_s = budget_s
        self._file = MetricsFile(folder / METRICS_FILE, start_step=start.step)
        self._is_problem_said = False
        self._unsaid: str | None = None
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not talk.is_plain:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[shown]}"),
                TextColumn("{task.fields[left]}"),
                console=talk.console,
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start.step, shown="", left=""
            )

    def __enter__(self) -> RunLog:
        if self._file.num_missing:
            missing = f"{self._file.num_missing:,} of {self._start.step:,} lines before this one"
            self._talk.say("metrics", f"{METRICS_FILE}: {missing} are missing")
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._unsaid is not None:
            self._talk.say("step", self._unsaid)
        self._file.close()
        if self._file.problem is not None:
            waiting = self._file.num_waiting
            left = f"{waiting:,} lines are missing" if waiting else "all lines are there now"
            self._talk.say("metrics", f"{METRICS_FILE}: {self._file.problem}; {left}")

    def step(self, metrics: StepMetrics, *, val_loss: float | None = None) -> None:
        """Record one update, and show it."""
        values = _recorded(metrics)
        if val_loss is not None:
            values["val_loss"] = val_loss
        self._file.add(values)
        self._say_news(metrics)
        shown = f"loss {metrics.loss:.4f}"
        if val_loss is not None:
            shown += f" · val {val_loss:.4f}"
        shown += f" · {metrics.tokens_per_s:,.0f} tok/s · {gigabytes(metrics.peak_memory_bytes)}"
        now = time.monotonic()
        left = f"{clock(self._left_s(metrics.step, now - self._started))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=metrics.step, shown=shown, left=left)
            return
        line = f"{metrics.step}/{self._total} · {shown} · lr {metrics.lr:.2e} · {left}"
        is_first = metrics.step == self._start.step + 1
        is_last = metrics.step == self._total
        is_time = now - self._last_line >= PLAIN_EVERY_S
        if is_first or is_last or is_time or val_loss is not None:
            self._last_line = now
            self._unsaid = None
            self._talk.say("step", line)
        else:
            self._unsaid = line  # unless another one comes, which is not always known before

    def _say_news(self, metrics: StepMetrics) -> None:
        """What does not happen in every update."""
        if self._file.problem is not None and not self._is_problem_said:
            self._is_problem_said = True
            self._talk.say("metrics", f"{METRICS_FILE} cannot be written: {self._file.problem};"
                           " training goes on, and its lines wait")  # fmt: skip
        if metrics.out_of_memory:
            self._talk.say("memory", _ran_out(metrics))
        if metrics.anomaly is not None:
            what = "the update was left out" if metrics.skipped else "the update was made"
            self._talk.say("skipped" if metrics.skipped else "unusual",
                           f"step {metrics.step}: {metrics.anomaly} · {what} · its rows:"
                           f" {_some(metrics.rows)}")  # fmt: skip

    def _left_s(self, step: int, passed_s: float) -> float:
        """Until the end, at the pace so far."""
        left_s = passed_s / (step - self._start.step) * (self._total - step)
        if self._budget_s is not None:
            left_s = min(left_s, self._budget_s - self._start.spent_s - passed_s)
        return max(0.0, left_s)


def _recorded(metrics: StepMetrics) -> dict[str, object]:
    """The line of an update: what is unusual stands in it only where there is something."""
    values = asdict(metrics)
    for key, nothing in (("skipped", False), ("anomaly", None), ("rows", ())):
        if values[key] == nothing:
            del values[key]
    return values


def _some(rows: Sequence[str]) -> str:
    named = ", ".join(rows[:MAX_ROWS])
    more = len(rows) - MAX_ROWS
    return named if more <= 0 else f"{named} and {more} more (see {METRICS_FILE})"


def _ran_out(metrics: StepMetrics) -> str:
    times = "" if metrics.out_of_memory == 1 else f" {metrics.out_of_memory} times"
    return (
        f"ran out{times} in step {metrics.step}; the update was made all the same, from the same"
        f" rows · from here on {metrics.micro_batch_tokens:,} tokens at most go through the model"
        " at once"
    )


def gigabytes(count: int) -> str:
    """`1.4 GB` (decimal)."""
    return f"{count / 1e9:.1f} GB"


def megabytes(count: int) -> str:
    """`4.6 MB`, from a thousand of them on `4.6 GB` (decimal)."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else gigabytes(count)


def clock(seconds: float) -> str:
    """`1:05`, `2:10:00`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
