"""AdamW and the learning rate: both plain functions of the plan.

rate = learning_rate_at(step, plan)
optimizer = make_optimizer(parameters, weight_decay=0.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from duiti.config import Method, Schedule
from duiti.errors import DuitiError
from duiti.training.out_of_memory import is_out_of_memory

WARMUP_SHARE = 0.03
"""Of the time of a budget, after which warm-up is over: how many updates that is nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolDown:
    """A short end for a run that stops before its plan does."""

    start_step: int
    """The last update before it."""
    num_steps: int
    """Updates until the end."""
    rate: float
    """The rate of update `start_step`, from which it falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePlan:
    """A learning rate for every update of a run."""

    peak: float
    schedule: Schedule
    warmup_steps: int
    total_steps: int
    budget_s: float | None = None
    """Time after which the run ends, if its updates take longer; None: as long as they take."""
    cool_down: CoolDown | None = None
    """Ends the run in place of the schedule (`cooled_down`)."""


def learning_rate_at(step: int, plan: RatePlan, *, spent_s: float = 0.0) -> float:
    """The rate of update `step` (from 1): linear warm-up to the peak, then the schedule.

    Decays aim at zero one update *after* the last, so that no update is wasted on a rate of zero.
    With a budget, the schedule is as far as the updates are or as the time is, whichever is
    further: it ends near zero where either of them does ("constant" stays constant), and
    warm-up is over after its updates or after its share of the time, whichever comes first.

    Args:
        spent_s: time spent on training before this update.
    """
    if plan.cool_down is not None and step > plan.cool_down.start_step:
        return _cooling(step, plan.cool_down)
    warm = step / plan.warmup_steps if step <= plan.warmup_steps else 1.0
    if plan.budget_s is not None:
        warm = min(1.0, max(warm, spent_s / (WARMUP_SHARE * plan.budget_s)))
    if plan.schedule == "constant":
        return plan.peak * warm
    done = (step - 1 - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    if plan.budget_s is not None:
        done = max(done, spent_s / plan.budget_s)
    done = min(1.0, max(0.0, done))
    factor = 1 - done if plan.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return plan.peak * warm * factor


def cooled_down(plan: RatePlan, cool_down: CoolDown) -> RatePlan:
    """The plan of a run that is brought to an end now: its rate falls linearly from where it
    stands and would be zero one update after the last; no budget cuts it short.

    A model that was trained at a high rate gains most of what annealing gives in a short linear
    decay at the end, whenever that comes; a tenth to a fifth of the updates so far is enough
    (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations"; the schedule that is built on it is WSD, Hu et al. 2024, MiniCPM).
    """
    total = cool_down.start_step + cool_down.num_steps
    return replace(plan, total_steps=total, budget_s=None, cool_down=cool_down)


def _cooling(step: int, cool_down: CoolDown) -> float:
    left = cool_down.start_step + cool_down.num_steps + 1 - step
    return cool_down.rate * max(0, left) / (cool_down.num_steps + 1)


def default_learning_rate(method: Method, hidden_size: int) -> tuple[float, str]:
    """A peak rate that is known to work for the method and width, and why.

    At width 4096: 2e-4 for LoRA and a tenth of it for weights themselves ("LoRA Without Regret",
    Schulman et al. 2025, finds that factor over many models). Narrower models take more: LoRA's
    rate grows with width^-3/4, that of weights with 1/width (as in muP, Yang et al. 2022).
    Measured at width 192: LoRA's default is within a factor of three of the rate with the lowest
    held-out loss, and forgets less than it (docs/learning-rate.md, `benchmarks/learning_rate.py`).
    """
    width = 4096 / hidden_size
    if method == "lora":
        rate = 2e-4 * width**0.75
        law = "2e-4 at width 4096, growing as width^-3/4"
    else:
        rate = 2e-5 * width
        law = "2e-5 at width 4096, growing as 1/width"
    reason = f"{law}; this model's width is {hidden_size}; --find-lr tries others"
    return float(f"{rate:.1e}"), reason


def make_optimizer(parameters: Iterable[nn.Parameter], *, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019); decay on matrices, none on norms and biases.

    Its moments are allocated here and its kernels loaded, so that no update needs memory for them.

    Raises:
        DuitiError: they do not fit into memory.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)
    try:
        _step_in_place(optimizer, parameters)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        num_bytes = 12 * sum(p.numel() for p in parameters)
        raise DuitiError(
            "out of memory: the optimizer's moments do not fit",
            why=f"the gradients and moments of what is trained take {num_bytes / 1e9:.1f} GB",
            fix="--method lora or --method last-n trains less; or a smaller model",
        ) from None
    return optimizer


def _step_in_place(optimizer: torch.optim.AdamW, parameters: list[nn.Parameter]) -> None:
    """A step along gradients of zero, at a rate of zero: it moves nothing and makes all state."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
        optimizer.state[parameter]["step"].zero_()
