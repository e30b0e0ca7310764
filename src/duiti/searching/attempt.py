"""One short training and what it came to. That it diverges is a result, too.

attempt = try_training(shop, rows, plan, held_out, stopping=stopping)
attempt.losses or attempt.problem
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from signal import Signals

from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.searching.held_out import RowLosses, row_losses
from duiti.training.out_of_memory import is_out_of_memory, release_memory
from duiti.training.signals import EXIT_CODE, Stopping
from duiti.training.step import BadNumbers, StepPlan, train_steps
from duiti.workshop import Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A short training that is over."""

    curve: tuple[float, ...]
    """Training loss of every update that was made, before it."""
    losses: RowLosses | None
    """On the held-out rows; None: there is a problem."""
    problem: str | None = None
    """Why it came to nothing."""

    @property
    def held_out_loss(self) -> float | None:
        """Mean over the held-out rows' tokens."""
        return None if self.losses is None else self.losses.mean


class Abandoned(DuitiError):
    """The process was asked to stop before the run began."""

    exit_code = EXIT_CODE

    def __init__(self, by: Signals) -> None:
        super().__init__(
            f"stopped by {by.name} in a short training before the run; the run has not begun",
            fix="give the command again; where it named an output folder, another one",
        )


def try_training(
    shop: Workshop,
    rows: ExampleStore,
    plan: StepPlan,
    held_out: ExampleStore,
    *,
    stopping: Stopping,
) -> Attempt:
    """Train to the end of the plan, held to the base as the run will be, and measure.

    Args:
        shop: whose model is trained, from where it stands.

    Raises:
        Abandoned: a signal came.
    """
    curve: list[float] = []
    try:
        for metrics, _ in train_steps(shop.sft, shop.optimizer, rows, plan, hold=shop.hold):
            curve.append(metrics.loss)
            if stopping.signal is not None:
                raise Abandoned(stopping.signal)
    except Abandoned:
        raise
    except BadNumbers as bad:
        problem = f"diverged at update {bad.metrics.step}: the loss or gradient is not finite"
        return Attempt(curve=tuple(curve), losses=None, problem=problem)
    except DuitiError as error:  # memory does not suffice for a row alone
        return Attempt(curve=tuple(curve), losses=None, problem=error.what)
    return _measured(shop.sft, held_out, tuple(curve))


def _measured(sft: SFTModel, held_out: ExampleStore, curve: tuple[float, ...]) -> Attempt:
    try:
        losses = row_losses(sft, held_out)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        losses = None
    if losses is None:
        # Here the error is gone, and with it the last reference to what was computed.
        release_memory(next(sft.parameters()).device)
        problem = "out of memory while the held-out rows were measured"
        return Attempt(curve=curve, losses=None, problem=problem)
    if not math.isfinite(losses.mean):
        return Attempt(
            curve=curve, losses=None, problem="diverged: the held-out loss is not finite"
        )
    return Attempt(curve=curve, losses=losses)
