"""What the files of a run say, for cards and lists: its choices, and its numbers. No torch.

    own_choices(run, run.config)            # settings that are not the default, with reasons
    end_and_best(run.metrics)               # {"val_loss": Figure(end=1.2, best=1.1, best_step=40)}

Files may have been edited: a value of another kind is as good as none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from duiti.config import Config, own_settings
from duiti.run import Run

LOWER_IS_BETTER = frozenset({"loss", "val_loss", "anchor_kl", "anchor_nll_change", "drift_kl"})
"""Of the figures in `metrics.jsonl`; of scores the highest is the best."""
_BESIDE = frozenset({"step", "epoch", "lr", "num_tokens", "supervised_tokens", "grad_norm",
                     "tokens_per_s", "peak_memory_bytes", "micro_batch_tokens", "out_of_memory",
                     "drift_weight"})  # fmt: skip
"""Numbers in `metrics.jsonl` that tell how a run went, not how well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A setting that is not the default."""

    key: str
    value: object
    """As JSON has it."""
    reason: str
    """Why it was chosen, where duiti chose it; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number over a run."""

    end: float
    """The newest."""
    best: float
    best_step: int
    """Of equal ones the first."""


def own_choices(run: Run, config: Config) -> list[Choice]:
    """Settings that are not the default, or were chosen with a reason; `lora.rank`, …"""
    defaults, reasons = flat(Config().model_dump(mode="json")), run.reasons
    return [
        Choice(key=key, value=value, reason=reasons.get(key, ""))
        for key, value in flat(own_settings(config)).items()
        if key in reasons or value != defaults.get(key)
    ]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a section beside the others."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("lora", "last_n"):
            found |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            found[key] = value
    return found


def end_and_best(records: Iterable[Mapping[str, Any]]) -> dict[str, Figure]:
    """Loss, and whatever was measured beside it."""
    found: dict[str, Figure] = {}
    for line in records:
        for key, value in line.items():
            number = number_of(value)
            if key in _BESIDE or number is None:
                continue
            before = found.get(key)
            sign = 1 if key in LOWER_IS_BETTER else -1
            is_best = before is None or sign * number < sign * before.best
            best, step = (
                (number, line["step"])
                if is_best or before is None
                else (before.best, before.best_step)
            )
            found[key] = Figure(end=number, best=best, best_step=step)
    return found


def number_of(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def object_of(value: object) -> Mapping[str, Any]:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """A text as it is, anything else as JSON, nothing as nothing."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
