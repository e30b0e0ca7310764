"""The strength dial: what a trained adapter wins and costs when it is applied more or less.

    sweep = sweep_strength(sft, val, watch)
    sweep.recommended, sweep.why
    write_json(folder / STRENGTH_FILE, sweep.as_dict())

Nothing is trained. Every adapter is multiplied by s (`duiti.model.lora.adapters_scaled`): 0 is the
base, 1 what was trained. At each s the loss on validation rows is measured, and how far the model
is from the base on the anchor. Of a model that was trained without adapters there is no dial: that
would take the base's weights beside its own, which an export does (`duiti export --strength`).

Recommended is the weakest strength that keeps nearly all of the gain: at least `ENOUGH` of what the
best one wins on the validation rows. A weaker adapter moves the model less, so that is the point
where almost nothing of the gain is paid for what else the model could do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from duiti.errors import UsageError
from duiti.eval.evaluate import held_out_loss
from duiti.model.lora import adapters_scaled, check_strength, lora_layers
from duiti.model.sft_model import SFTModel
from duiti.types import Example

STRENGTH_FILE = "strength.json"
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
MAX_ROWS = 200
"""Validation rows that are measured at each strength; of more, an even choice."""
ENOUGH = 0.99
"""Share of the best gain that counts as all of it."""


class Drifted(Protocol):
    """How far the model is from its base, as it is now."""

    @property
    def kl(self) -> float:
        """Nats per token of the anchor."""
        ...

    @property
    def nll_change(self) -> float:
        """Nats per token of the anchor."""
        ...


class Watcher(Protocol):
    """Measures that: `duiti.eval.drift.Watch`."""

    def measure(self) -> Drifted:
        """Of the model as it is now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The model at one strength."""

    strength: float
    val_loss: float | None
    """On the rows of the sweep, in nats; None: there are no validation rows."""
    anchor_kl: float | None
    """None: there is no anchor."""
    anchor_nll_change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The dial, measured."""

    points: tuple[Point, ...]
    """By strength."""
    recommended: float | None
    """None: nothing can be recommended; `why` tells the reason."""
    why: str

    def as_dict(self) -> dict[str, object]:
        """The stored form (`strength.json`); what is not finite is null."""
        points = [
            {key: _finite(value) for key, value in asdict(point).items()} for point in self.points
        ]
        return {"points": points, "recommended": self.recommended, "why": self.why}


def sweep_strength(
    sft: SFTModel,
    val: Sequence[Example] | None,
    watch: Watcher | None,
    strengths: Sequence[float] = STRENGTHS,
) -> Sweep:
    """Measure the model at each strength, and recommend one. The model is, to the bit, what it was.

    Args:
        val: held-out rows; without any, nothing is recommended.
        watch: measures the drift from the base; None: not measured.

    Raises:
        UsageError: the model has no adapters, or the dial does not go there.
    """
    if not lora_layers(sft.model):
        raise UsageError(
            "the strength of this run cannot be swept",
            why="it was trained without adapters: what it learned is in the weights themselves",
            fix="--method lora; or one strength at a time: duiti export merged --strength 0.8",
        )
    for strength in strengths:
        check_strength(strength)
    rows = _spread(val or (), MAX_ROWS)
    points = tuple(_point(sft, rows, watch, strength) for strength in sorted(strengths))
    recommended, why = recommend(points, num_rows=len(rows))
    return Sweep(points=points, recommended=recommended, why=why)


def recommend(points: Sequence[Point], *, num_rows: int) -> tuple[float | None, str]:
    """The strength to use, and why; or None, and why not.

    Args:
        points: by strength, with or without that of the base, which is what a gain is measured by.
        num_rows: on which they were measured.
    """
    if not num_rows:
        why = "without validation rows nobody can tell what a weaker adapter would lose: --val 5%"
        return None, why
    losses = {p.strength: p.val_loss for p in points if p.val_loss is not None}
    losses = {s: loss for s, loss in losses.items() if math.isfinite(loss)}
    if 0 not in losses:
        return None, "the loss of the base on the validation rows is not known"
    gains = {s: losses[0] - loss for s, loss in losses.items()}
    best = max(gains, key=lambda s: (gains[s], -s))
    if gains[best] <= 0:
        return None, f"at no strength is the loss on {num_rows} validation rows below the base's"
    chosen = min(s for s, gain in gains.items() if gain >= ENOUGH * gains[best])
    kept = gains[chosen] / gains[best]
    why = (
        f"the weakest with at least {ENOUGH:.0%} of the best gain: the loss on {num_rows}"
        f" validation rows falls from {losses[0]:.4f} to {losses[chosen]:.4f}"
    )
    why += (
        f", {kept:.1%} of what strength {best:g} wins" if chosen != best else ", which is the best"
    )
    return chosen, why + _drift({p.strength: p.anchor_kl for p in points}, chosen)


def _drift(kl: dict[float, float | None], chosen: float) -> str:
    """What that saves, in words."""
    own, full = kl[chosen], kl.get(1)
    if own is None or full is None:
        return ""
    if chosen == 1:
        return f"; the drift from the base is {own:.4f} nats a token"
    return f"; the drift from the base is {own:.4f} nats a token, and {full:.4f} as it was trained"


def _point(sft: SFTModel, rows: Sequence[Example], watch: Watcher | None, strength: float) -> Point:
    with adapters_scaled(sft.model, strength):
        drift = None if watch is None else watch.measure()
        return Point(
            strength=float(strength),
            val_loss=held_out_loss(sft, rows) if rows else None,
            anchor_kl=None if drift is None else drift.kl,
            anchor_nll_change=None if drift is None else drift.nll_change,
        )


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them, evenly over all."""
    if len(examples) <= count:
        return list(examples)
    places = np.linspace(0, len(examples) - 1, count).round().astype(int)
    return [examples[place] for place in places.tolist()]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
