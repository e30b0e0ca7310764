"""What a run says while it runs: `metrics.jsonl` always; a bar on a terminal, plain lines
elsewhere.

    talk.say("data", "3,114 rows")
    with RunLog(folder, talk, total_steps=390) as log:
        log.step(metrics, {"val_loss": 1.25})

Nothing of it ends a run: neither a reader that went away nor a file that cannot be written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from duiti.data.meter import Progress as Prepared
from duiti.run import METRICS_FILE, Run
from duiti.training.bar import Bar, Moment
from duiti.training.figures import clock as clock
from duiti.training.figures import gigabytes as gigabytes
from duiti.training.figures import measured_text
from duiti.training.figures import megabytes as megabytes
from duiti.training.lasting_stream import LastingStream
from duiti.training.metrics_file import MetricsFile
from duiti.training.step import StepMetrics
from duiti.training.tracking import Trackers
from duiti.types import Progress as Done

PLAIN_EVERY_S = 5.0
"""Seconds between two plain lines; the last step always gets one."""
MAX_ROWS = 8
"""Rows that are named in a line for people; `metrics.jsonl` names them all."""
_BEGINNING = Done()
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Talk:
    """Lines with a label in front, for people. To stderr, so that stdout is for results; a verb
    whose result *is* such lines sends them to stdout. Where nobody reads them, they are dropped."""

    def __init__(self, *, plain: bool = False, quiet: bool = False, stdout: bool = False) -> None:
        stream = LastingStream(sys.stdout if stdout else sys.stderr)
        self.console = Console(file=cast(IO[str], stream), highlight=False, quiet=quiet)
        is_plain = plain or not self.console.is_terminal or self.console.is_dumb_terminal
        self.is_plain = is_plain

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
    """Writes a run's metrics, hands them to trackers, and shows its progress."""

    def __init__(
        self,
        folder: Path,
        talk: Talk,
        *,
        total_steps: int,
        start: Done = _BEGINNING,
        budget_s: float | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        """
        Args:
            start: where the run goes on: what `metrics.jsonl` says of later updates is cut off.
            budget_s: of the plan, if it has one.
            trackers: what else gets the numbers; closed with the log.

        Raises:
            DuitiError: `metrics.jsonl` cannot be written.
        """
        self._talk = talk
        self._total = total_steps
        self._start = start
        self._budget_s = budget_s
        self._trackers = trackers
        self._file = MetricsFile(folder / METRICS_FILE, start_step=start.step)
        self._is_problem_said = False
        self._unsaid: str | None = None
        self._measured: dict[str, float] = {}
        self._started = self._last_line = time.monotonic()
        self._bar = None if talk.is_plain else Bar(talk.console)
        if self._bar is not None and budget_s is None:  # what came before belongs to the curve
            for line in Run(folder).metrics:
                if isinstance(line["step"], int) and isinstance(line.get("loss"), float):
                    self._bar.curve.add(line["step"] / total_steps, line["loss"])

    def __enter__(self) -> RunLog:
        if self._file.num_missing:
            missing = f"{self._file.num_missing:,} of {self._start.step:,} lines before this one"
            self._talk.say("metrics", f"{METRICS_FILE}: {missing} are missing")
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        if self._unsaid is not None:
            self._talk.say("step", self._unsaid)
        self._file.close()
        if self._file.problem is not None:
            waiting = self._file.num_waiting
            left = f"{waiting:,} lines are missing" if waiting else "all lines are there now"
            self._talk.say("metrics", f"{METRICS_FILE}: {self._file.problem}; {left}")
        if self._trackers is not None:
            self._trackers.close()
            for text in (*self._trackers.news(), *self._trackers.summary()):
                self._talk.say("track", text)

    def step(self, metrics: StepMetrics, measured: Mapping[str, float] = _NOTHING) -> None:
        """Record one update, and show it.

        Args:
            measured: behind it, if anything was: figures by their keys in `metrics.jsonl`.
        """
        values = {**_recorded(metrics), **measured}
        self._file.add(values)
        if self._trackers is not None:
            self._trackers.log(metrics.step, values)
        self._measured |= measured
        self._say_news(metrics)
        now = time.monotonic()
        left_s = self._left_s(metrics.step, now - self._started)
        if self._bar is not None:
            self._bar.update(self._moment(metrics, left_s), share=self._share(metrics.step, now))
            return
        line = _plain_line(metrics, measured, total=self._total, left_s=left_s)
        is_first = metrics.step == self._start.step + 1
        is_last = metrics.step == self._total
        is_time = now - self._last_line >= PLAIN_EVERY_S
        if is_first or is_last or is_time or measured:
            self._last_line = now
            self._unsaid = None
            self._talk.say("step", line)
        else:
            self._unsaid = line  # unless another one comes, which is not always known before

    def _moment(self, metrics: StepMetrics, left_s: float) -> Moment:
        return Moment(
            step=metrics.step,
            total=self._total,
            loss=metrics.loss,
            tokens_per_s=metrics.tokens_per_s,
            memory_bytes=metrics.peak_memory_bytes,
            left_s=left_s,
            measured=dict(self._measured),
        )

    def _say_news(self, metrics: StepMetrics) -> None:
        """What does not happen in every update."""
        if self._file.problem is not None and not self._is_problem_said:
            self._is_problem_said = True
            self._talk.say("metrics", f"{METRICS_FILE} cannot be written: {self._file.problem};"
                           " training goes on, and its lines wait")  # fmt: skip
        if self._trackers is not None:
            for text in self._trackers.news():
                self._talk.say("track", text)
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

    def _share(self, step: int, now: float) -> float:
        """Of the run that is done: of its updates, or of its time where that may end it before."""
        share = step / self._total
        if self._budget_s is not None:
            spent_s = self._start.spent_s + now - self._started
            share = max(share, spent_s / self._budget_s)
        return min(share, 1.0)


def _plain_line(
    metrics: StepMetrics, measured: Mapping[str, float], *, total: int, left_s: float
) -> str:
    parts = [
        f"{metrics.step}/{total}",
        f"loss {metrics.loss:.4f}",
        *measured_text(measured),
        f"{metrics.tokens_per_s:,.0f} tok/s",
        gigabytes(metrics.peak_memory_bytes),
        f"lr {metrics.lr:.2e}",
        f"{clock(left_s)} left",
    ]
    return " · ".join(parts)


def _recorded(metrics: StepMetrics) -> dict[str, object]:
    """The line of an update: what is unusual stands in it only where there is something, and losses
    of single rows have a file of their own."""
    values = asdict(metrics)
    values.pop("row_losses", None)
    rare = {"skipped": False, "anomaly": None, "rows": (), "drift_weight": None, "drift_kl": None}
    return {key: v for key, v in values.items() if key not in rare or v != rare[key]}


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
