"""What is unusual: a loss that jumps, a gradient that explodes, rows whose numbers are bad.

    said = anomaly(loss, grad_norm, recent)         # None, or a line without step and rows
    recent = with_update(recent, loss, grad_norm)   # what is usual, one update later

What is usual is told by the last updates: their median, and the median of their distances from it,
which a few wild updates do not move. All of it follows from the metrics of these updates, so a run
that goes on after a stop finds what the undisturbed run finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import nn

from duiti.data.batch import collate
from duiti.model.sft_model import SFTModel
from duiti.training.no_trace import drop_gradients
from duiti.training.out_of_memory import is_out_of_memory
from duiti.types import Example

WINDOW = 64
"""Updates that tell what is usual."""
LEAST = 16
"""Updates before anything is called unusual."""
LOSS_SIGMAS = 8.0
"""How far above the median an unusual loss is, in standard deviations as the median distance gives
them. Losses of small updates have long tails; what is meant here is a break, not a hard batch."""
NORM_SIGMAS = 6.0
"""The same for the logarithm of a gradient's norm, whose tails are shorter."""
LEAST_RISE = 0.25
"""And by how much a loss must rise above the median: of the median, and no less nats than that."""
LEAST_FACTOR = 4.0
"""And how many times the median a gradient's norm must be."""
_TO_SIGMA = 1.4826
"""Of a normal distribution: the standard deviation over the median distance from the median."""

Recent = tuple[tuple[float, float], ...]
"""Loss and gradient norm of updates, the newest last."""


def with_update(recent: Recent, loss: float, grad_norm: float) -> Recent:
    """The window, one update later."""
    return (*recent, (loss, grad_norm))[-WINDOW:]


def anomaly(loss: float, grad_norm: float, recent: Recent) -> str | None:
    """What is unusual about an update after these, in words; None: nothing."""
    if len(recent) < LEAST:
        return None
    found = []
    losses = [value for value, _ in recent]
    usual, sigma = _usual(losses)
    if loss - usual > max(LOSS_SIGMAS * sigma, LEAST_RISE * max(1.0, usual)):
        found.append(f"the loss is {loss:.4g}, and was {usual:.4g} (median of {len(recent)})")
    # A norm is compared by its logarithm; one of zero has none and is as small as any.
    norms = [math.log(max(value, 1e-30)) for _, value in recent]
    usual, sigma = _usual(norms)
    if math.log(max(grad_norm, 1e-30)) - usual > max(NORM_SIGMAS * sigma, math.log(LEAST_FACTOR)):
        found.append(f"the gradient's norm is {grad_norm:.4g}, and was {math.exp(usual):.4g}"
                     f" (median of {len(recent)})")  # fmt: skip
    return "; ".join(found) or None


def _usual(values: Sequence[float]) -> tuple[float, float]:
    middle = median(values)
    return middle, _TO_SIGMA * median(abs(value - middle) for value in values)


def bad_rows(
    sft: SFTModel,
    parameters: Sequence[nn.Parameter],
    rows: Sequence[Example],
    *,
    reseed: Callable[[], None],
) -> list[Example]:
    """Those rows of an update that give a loss or a gradient that is not finite even alone.

    It costs about as much as the update and is made only where one failed. Losses come first; only
    where none of them is bad, gradients are asked. Gradients are dropped at the end.

    Args:
        reseed: puts the random streams where the update began.
    """
    device = parameters[0].device
    try:
        with torch.no_grad():
            found = [row for row in rows if not _loss_is_finite(sft, row, device, reseed)]
        return found or [
            row for row in rows if not _gradient_is_finite(sft, parameters, row, device, reseed)
        ]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return []  # it stays with the rows of the whole update
    finally:
        drop_gradients(parameters)


def _loss_is_finite(
    sft: SFTModel, row: Example, device: torch.device, reseed: Callable[[], None]
) -> bool:
    reseed()
    return math.isfinite(sft(collate([row], device))[0].item())


def _gradient_is_finite(
    sft: SFTModel,
    parameters: Sequence[nn.Parameter],
    row: Example,
    device: torch.device,
    reseed: Callable[[], None],
) -> bool:
    reseed()
    drop_gradients(parameters)
    loss, _ = sft(collate([row], device))
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return math.isfinite(norm.item())
