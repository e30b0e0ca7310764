"""`--find-lr`: a few learning rates, each tried in a short training on the model of the run, and
the one that is chosen by the loss on held-out rows.

    shop, found = find_learning_rate(job, set_up(job, talk), talk)     # the run has not begun
    found.chosen, found.why

Every rate gets the same updates of the same rows from the same start, on a schedule of its own that
comes to its end. One that diverges, or for which memory runs out, is a result like any other.
Nothing of it is left in the run, which is bit for bit the one that is started with
`--learning-rate` and the rate that was found.

The choice: the lowest held-out loss; or the next lower rate that was tried, if its loss is not
higher by more than one standard error of the difference. That is the rule of one standard error of
Breiman et al. (1984, Classification and Regression Trees, 3.4.3), bounded to one step down. Down,
because a rate that wins a short training is rather too high for a long one (Bjorck et al. 2024,
"Scaling Optimal LR Across Token Horizons"); bounded, because with few held-out rows everything lies
within one standard error, and a rate at which nothing is learned must not win by that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from duiti.errors import DuitiError
from duiti.run import write_config, write_json
from duiti.searching.as_found import as_found
from duiti.searching.attempt import Attempt, try_training
from duiti.searching.held_out import RowLosses, apart, row_losses, with_rehearsed
from duiti.searching.stopping import say_abandoning
from duiti.training.log import Talk, clock
from duiti.training.optim import RatePlan
from duiti.training.signals import Stopping
from duiti.training.step import StepPlan
from duiti.workshop import Job, Workshop

FIND_LR_FILE = "find_lr.json"
STEP = 3.0
"""From one rate to the next: half an order of magnitude. Loss is flat in the rate near the best."""
EACH_WAY = 2
"""Rates below the default, and above it."""
MOST_FURTHER = 2
"""Rates that are tried beyond these, where the best one is the last of them."""
FEWEST_UPDATES, MOST_UPDATES = 10, 30
SHARE_OF_RUN = 0.1
WARMUP_SHARE = 0.1
"""Of a short training. More than of a whole run: it is over before a moment is known otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One learning rate, tried."""

    learning_rate: float
    attempt: Attempt

    def as_dict(self) -> dict[str, object]:
        """Its part of `find_lr.json`."""
        curve = self.attempt.curve
        return {
            "learning_rate": self.learning_rate,
            "val_loss": self.attempt.held_out_loss,
            "train_loss": curve[-1] if curve else None,
            "curve": list(curve),
            "problem": self.attempt.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRate:
    """What a search came to."""

    points: tuple[Point, ...]
    """From the lowest rate to the highest."""
    before: RowLosses
    """Of the model before training, on the held-out rows."""
    num_updates: int
    """Of each rate."""
    is_val: bool
    """Whether the held-out rows are the validation rows."""
    chosen: float
    why: str

    def as_dict(self) -> dict[str, object]:
        """What `find_lr.json` holds."""
        return {
            "points": [point.as_dict() for point in self.points],
            "updates": self.num_updates,
            "held_out": {
                "rows": len(self.before.sums),
                "source": "val" if self.is_val else "train",
                "loss_before": self.before.mean,
            },
            "chosen": self.chosen,
            "why": self.why,
        }

    def write(self, folder: Path) -> None:
        """Into the run's folder."""
        write_json(folder / FIND_LR_FILE, self.as_dict())


def find_learning_rate(job: Job, shop: Workshop, talk: Talk) -> tuple[Workshop, FoundRate]:
    """The workshop with the rate that was found in its plan and settings. The file about the search
    is written, and `config.yaml` anew.

    Args:
        job: of a run that has not begun; the reason for its rate is changed.
        shop: made for it; nothing in it has been trained.

    Raises:
        UsageError: there are too few rows.
        Abandoned: a signal came.
        DuitiError: no rate could be tried.
    """
    assert job.state is None
    train = job.material.train
    chosen_rows, held_out = apart(train, job.material.val, seed=shop.config.seed)
    rows = with_rehearsed(shop.examples, len(train), chosen_rows)
    plan = short_plan(shop.plan)
    default = plan.rate.peak
    rates = [rounded(default * STEP**n) for n in range(-EACH_WAY, EACH_WAY + 1)]
    source = "validation" if len(job.material.val) else "training"
    talk.say("search", f"{len(rates)} learning rates, {plan.total_steps} updates each, measured on"
             f" {len(held_out):,} {source} rows")  # fmt: skip
    parameters = list(shop.trained.parameters.values())
    with (
        Stopping(partial(say_abandoning, talk)) as stopping,
        as_found(shop.sft, parameters, shop.optimizer) as begin_again,
    ):
        before = row_losses(shop.sft, held_out)

        def measure(rate: float) -> Attempt:
            begin_again()
            return try_training(shop, rows, at_rate(plan, rate), held_out, stopping=stopping)

        points = sweep(rates, measure, talk)
    chosen, why = choose(points, default=default, before=before)
    found = FoundRate(points=tuple(points), before=before, num_updates=plan.total_steps,
                      is_val=bool(len(job.material.val)), chosen=chosen, why=why)  # fmt: skip
    found.write(job.folder)
    talk.say("rate", f"{chosen:g}: {why}")
    job.reasons["learning_rate"] = f"found by --find-lr: {why}"
    config = shop.config.model_copy(update={"learning_rate": chosen})
    write_config(job.folder, config, job.reasons)
    return replace(shop, config=config, plan=at_rate(shop.plan, chosen)), found


def sweep(rates: Sequence[float], measure: Callable[[float], Attempt], talk: Talk) -> list[Point]:
    """Try these rates, and further ones while the best is the first or the last of all.

    Args:
        rates: ascending.
    """
    points: list[Point] = []
    waiting, num_further = list(rates), 0
    while waiting:
        rate, started = waiting.pop(0), time.perf_counter()
        point = Point(learning_rate=rate, attempt=measure(rate))
        points.append(point)
        talk.say("rate", _line(point))
        if len(points) == 1 and waiting:
            left_s = (time.perf_counter() - started) * len(waiting)
            talk.say("", f"about {clock(left_s)} for the others")
        further = _further(points)
        if not waiting and further is not None and num_further < MOST_FURTHER:
            waiting, num_further = [further], num_further + 1
    return sorted(points, key=lambda point: point.learning_rate)


def choose(points: Sequence[Point], *, default: float, before: RowLosses) -> tuple[float, str]:
    """The rate to train with, and why; for the rule see above.

    Args:
        points: from the lowest rate to the highest.
        default: the rate to take where none has learned anything.
        before: of the model before training.

    Raises:
        DuitiError: no rate could be tried to its end.
    """
    tried = [point for point in points if point.attempt.losses is not None]
    best = _best(tried)
    if best is None:
        raise DuitiError(
            "no learning rate could be tried",
            why="; ".join(f"{p.learning_rate:g}: {p.attempt.problem}" for p in points),
            fix="leave --find-lr out to see what a run says; or look at the rows",
        )
    assert best.attempt.losses is not None
    if best.attempt.losses.mean >= before.mean:
        return default, (
            f"no rate made the held-out loss lower than it is before training ({before.mean:.4f}),"
            " so it is the default"
        )
    of = f"{len(points)} rates after {max(len(p.attempt.curve) for p in points)} updates"
    text = f"{best.attempt.losses.mean:.4f}"
    place = tried.index(best)
    lower = tried[place - 1] if place else None
    if lower is not None and lower.attempt.losses is not None:
        change = lower.attempt.losses.change(best.attempt.losses)
        error = lower.attempt.losses.error_of_change(best.attempt.losses)
        if change <= error:
            return lower.learning_rate, (
                f"of {of} the best held-out loss is {text}, at {best.learning_rate:g}; one step"
                f" lower it is {change:.4f} higher, within one standard error ({error:.4f}), and a"
                " long run needs rather less than a short one"
            )
    return best.learning_rate, f"of {of} the lowest held-out loss, {text}"


def _best(points: Sequence[Point]) -> Point | None:
    """The lowest held-out loss; of equal ones the lowest rate."""
    measured = [(p.attempt.held_out_loss, p.learning_rate, p) for p in points]
    found = [each for each in measured if each[0] is not None]
    return min(found, key=lambda each: each[:2])[2] if found else None


def _further(points: Sequence[Point]) -> float | None:
    """The next rate beyond all, where the best is at an edge."""
    best = _best(points)
    rates = [point.learning_rate for point in points]
    if best is None:
        return rounded(min(rates) / STEP)  # all diverged
    if best.learning_rate == max(rates):
        return rounded(best.learning_rate * STEP)
    return rounded(best.learning_rate / STEP) if best.learning_rate == min(rates) else None


def short_plan(plan: StepPlan) -> StepPlan:
    """A plan of the same kind that comes to its end after a tenth of the updates; it stops at the
    first one that is not finite."""
    total = plan.total_steps
    num_updates = min(total, max(FEWEST_UPDATES, min(MOST_UPDATES, round(SHARE_OF_RUN * total))))
    warmup = 0 if plan.rate.warmup_steps == 0 else max(1, round(WARMUP_SHARE * num_updates))
    rate = RatePlan(
        peak=plan.rate.peak,
        schedule=plan.rate.schedule,
        warmup_steps=warmup,
        total_steps=num_updates,
    )
    return replace(plan, rate=rate, skip_bad_steps=0)


def at_rate(plan: StepPlan, peak: float) -> StepPlan:
    """The same plan with another peak."""
    return replace(plan, rate=replace(plan.rate, peak=peak))


def rounded(rate: float) -> float:
    """To two digits, so that it can be given as a flag and is the same number."""
    return float(f"{rate:.1e}")


def _line(point: Point) -> str:
    loss = point.attempt.held_out_loss
    said = f"val {loss:.4f}" if loss is not None else point.attempt.problem
    return f"{point.learning_rate:7.1e}: {said}"
