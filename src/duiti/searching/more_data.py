"""`--more-data`: would more rows help? The loss on the validation rows after trainings on 25 %,
50 % and 100 % of the rows, each from the start.

    found = more_data(job, shop, talk)           # before the run begins: shop is as it was found
    found.says

Each share is trained for as many epochs as the run has: what somebody gets who has only so many
rows and the same settings. (With equal updates instead, fewer rows would be seen more often, and
the question would be another one: rows or epochs.) A smaller share lies within the larger ones, and
rows that repeat each other are in a share together. Nothing of it is left in the run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from duiti.data.repeats.duplicates import find_duplicates
from duiti.data.repeats.split import Indices, split
from duiti.data.storage.store import ExampleStore
from duiti.errors import UsageError
from duiti.eval.bootstrap import Interval
from duiti.material import Material
from duiti.plan import total_steps
from duiti.run import write_json
from duiti.searching.as_found import as_found
from duiti.searching.attempt import Attempt, try_training
from duiti.searching.held_out import with_rehearsed
from duiti.searching.stopping import say_abandoning
from duiti.training.log import Talk, clock
from duiti.training.signals import Stopping
from duiti.training.step import StepPlan
from duiti.workshop import Job, Workshop

MORE_DATA_FILE = "more_data.json"
SHARES = (0.25, 0.5, 1.0)
FEWEST_ROWS = 16
"""To train on, in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A training on a part of the rows."""

    share: float
    num_rows: int
    attempt: Attempt
    interval: Interval | None
    """Of the mean loss, the validation rows being a sample; None: it came to nothing."""

    def as_dict(self) -> dict[str, object]:
        """Its part of `more_data.json`."""
        interval = self.interval
        return {
            "share": self.share,
            "rows": self.num_rows,
            "val_loss": self.attempt.held_out_loss,
            "low": None if interval is None else interval.low,
            "high": None if interval is None else interval.high,
            "problem": self.attempt.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreData:
    """What the shares came to."""

    points: tuple[Share, ...]
    """From the smallest share to the largest."""
    says: str

    def as_dict(self) -> dict[str, object]:
        """What `more_data.json` holds."""
        return {"points": [point.as_dict() for point in self.points], "says": self.says}


def refuse_indivisible(material: Material) -> None:
    """What is measured on must be there, and rows enough to divide.

    Raises:
        UsageError: there are none.
    """
    if not len(material.val):
        raise UsageError(
            "--more-data has nothing to measure on",
            why="it compares losses on rows that are never trained",
            fix="--val 10%, or a file",
        )
    if len(material.train) < FEWEST_ROWS:
        raise UsageError(
            f"--more-data has {len(material.train)} rows to divide",
            fix=f"it needs {FEWEST_ROWS} at least; leave it out",
        )


def more_data(job: Job, shop: Workshop, talk: Talk) -> MoreData:
    """Train on each share and measure; `more_data.json` is written.

    Args:
        job: of a run that has not begun.
        shop: made for it, with the learning rate that it will have.

    Raises:
        UsageError: there are too few rows, or none to measure on.
        Abandoned: a signal came.
    """
    assert job.state is None
    refuse_indivisible(job.material)
    val = job.material.val
    train = job.material.train
    chosen = shares_of(train, seed=shop.config.seed)
    stores = [with_rehearsed(shop.examples, len(train), rows) for rows in chosen]
    plans = [_plan(shop, len(store)) for store in stores]
    total = sum(plan.total_steps for plan in plans)
    talk.say("rows", f"would more of them help? trainings on {_percents()} of them, {total:,}"
             f" updates before the {shop.plan.total_steps:,} of the run")  # fmt: skip
    parameters = list(shop.trained.parameters.values())
    points: list[Share] = []
    with (
        Stopping(partial(say_abandoning, talk)) as stopping,
        as_found(shop.sft, parameters, shop.optimizer) as begin_again,
    ):
        started, done = time.perf_counter(), 0
        for share, own, rows, plan in zip(SHARES, chosen, stores, plans, strict=True):
            begin_again()
            attempt = try_training(shop, rows, plan, val, stopping=stopping)
            losses = attempt.losses
            interval = None if losses is None else losses.interval(seed=shop.config.seed)
            points.append(Share(share=share, num_rows=len(own), attempt=attempt, interval=interval))
            done += plan.total_steps
            left_s = (time.perf_counter() - started) / done * (total - done)
            talk.say(
                "rows", _line(points[-1]) + (f" · about {clock(left_s)} more" * (done < total))
            )
    found = MoreData(points=tuple(points), says=says(points, seed=shop.config.seed))
    talk.say("rows", found.says)
    write_json(job.folder / MORE_DATA_FILE, found.as_dict())
    return found


def shares_of(train: ExampleStore, *, seed: int) -> list[Indices]:
    """Indices of the rows of each share; each lies within the next."""
    groups = find_duplicates(train).groups
    found = [split(train, share=share, seed=seed, groups=groups)[1] for share in SHARES[:-1]]
    if not all(map(len, found)):
        raise UsageError(
            f"--more-data cannot divide these {len(train)} rows: too many repeat each other",
            fix="leave it out",
        )
    return [*found, np.arange(len(train))]


def says(points: Sequence[Share], *, seed: int) -> str:
    """One sentence about the last doubling of the rows."""
    half, whole = points[-2:]
    if half.attempt.losses is None or whole.attempt.losses is None:
        problem = whole.attempt.problem or half.attempt.problem
        return f"whether more rows would help cannot be told: {problem}"
    change = whole.attempt.losses.interval_of_change(half.attempt.losses, seed=seed)
    assert change.mean is not None
    assert change.low is not None
    assert change.high is not None
    before, after = half.attempt.losses.mean, whole.attempt.losses.mean
    what = (
        f"from half of the rows to all of them, the val loss went from {before:.4f} to {after:.4f}"
        f" ({change.mean:+.4f}, 95 % interval {change.low:+.4f} to {change.high:+.4f})"
    )
    if change.high < 0:
        return f"more rows would probably help: {what}"
    if change.low > 0:
        return f"more rows of this kind would probably not help: {what}"
    return f"nothing says that more rows of this kind would help: {what}"


def _plan(shop: Workshop, num_rows: int) -> StepPlan:
    """The run's plan for so many rows. A budget of time is left out: it would cut shares unlike."""
    whole = shop.plan
    total = total_steps(shop.config, num_rows)
    warmup = whole.rate.warmup_steps
    if warmup:
        warmup = max(1, round(warmup * total / whole.total_steps))
    rate = replace(whole.rate, total_steps=total, warmup_steps=warmup, budget_s=None)
    return replace(whole, rate=rate)


def _line(point: Share) -> str:
    losses, interval = point.attempt.losses, point.interval
    said = point.attempt.problem
    if losses is not None and interval is not None:
        said = f"val {losses.mean:.4f} (95 % {interval.low:.4f} to {interval.high:.4f})"
    return f"{point.share:4.0%}, {point.num_rows:,} rows: {said}"


def _percents() -> str:
    *first, last = [f"{share:.0%}" for share in SHARES]
    return f"{', '.join(first)} and {last}"
