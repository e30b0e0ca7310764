"""A run cut to the memory that there is: what it will need, from shapes, before weights are loaded.

    config, fit = fit_memory(config, material, reasons)
    fit.describe(), fit.refusal

The usual micro-batch is kept if it fits. If not: smaller micro-batches, down to the longest row;
then activation checkpointing; then it is refused, with the length of rows that would fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from duiti.config import Config
from duiti.data.storage.store import ExampleStore
from duiti.errors import UsageError
from duiti.material import Material
from duiti.plan import num_examples, step_plan, total_steps
from duiti.quantities import size_in_bytes
from duiti.training.available import Room, available_memory, resident_bytes
from duiti.training.heaviest import heaviest
from duiti.training.log import megabytes
from duiti.training.need import Circumstances, Need, expected
from duiti.training.rehearsal import Rehearsal
from duiti.training.shapes import CannotTell, MicroBatch, ShapeModel

SHORTEST = 16
"""Tokens of a row below which no length is suggested: no row would be left."""

NUM_TRIES = 4

NeedOf = Callable[[int, bool], Need]
"""(micro_batch_tokens, whether activations are checkpointed) → what that needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a run will need, and what it may use."""

    need: Need | None = None
    """None: it cannot be told without the weights."""
    unknown: str = ""
    """Why not."""
    room: Room | None = None
    """None: this machine does not say."""
    refusal: UsageError | None = None
    """Where it does not fit, whatever is chosen."""

    def describe(self) -> str:
        """The line about it."""
        if self.need is None:
            return f"cannot be told from shapes ({self.unknown})"
        room = f" · {megabytes(self.room.num_bytes)} {self.room.reason}" if self.room else ""
        return f"{self.need.describe()}{room}"

    def after(self, rehearsal: Rehearsal) -> int:
        """The peak of the run, its heaviest micro-batches behind it."""
        elsewhere = 0 if self.need is None else self.need.elsewhere_bytes
        return max(rehearsal.peak_bytes, elsewhere)

    def as_dict(self) -> dict[str, int | bool | str | None]:
        """The machine-readable form."""
        need: dict[str, int] = {} if self.need is None else self.need.as_dict()
        return {
            **need,
            "unknown": self.unknown or None,
            "available_bytes": None if self.room is None else self.room.num_bytes,
            "fits": None if self.need is None or self.room is None else self.refusal is None,
        }


def fit_memory(config: Config, material: Material, reasons: dict[str, str]) -> tuple[Config, Fit]:
    """Choose what decides about memory where it is `auto`; say why, by key, in `reasons`.

    Args:
        config: settled, but for that.
        reasons: why each setting is what it is; those of these are replaced.

    Raises:
        DuitiError: the settings do not go with the model, whatever the memory.
    """
    shapes = _Shapes(config, material)
    room = room_for(config)
    usual = config.micro_batch_tokens
    assert usual != "auto"
    try:
        budgets = [usual]
        if "micro_batch_tokens" in reasons:  # it was left open
            budgets = halved(usual, min(usual, shapes.longest))
        kinds = shapes.kinds()
        chosen = first_that_fits(budgets, kinds, shapes.need, room)
        tokens, is_checkpointed = chosen or (budgets[-1], kinds[-1])
        fit = Fit(need=shapes.need(tokens, is_checkpointed), room=room)
        if chosen is None and room is not None:
            fit = replace(fit, refusal=_refusal(shapes, room, tokens, is_checkpointed))
    except CannotTell as error:
        tokens, is_checkpointed = usual, config.activation_checkpointing is True
        fit = Fit(room=room, unknown=str(error))
    limit = f"the {megabytes(room.num_bytes)} {room.reason}" if room else ""
    if tokens != usual:
        reasons["micro_batch_tokens"] = f"{usual:,} do not fit into {limit}"
    if config.activation_checkpointing == "auto":
        reasons["activation_checkpointing"] = (
            f"without, it does not fit into {limit}" if is_checkpointed else "not needed"
        )
    values = {"micro_batch_tokens": tokens, "activation_checkpointing": is_checkpointed}
    return config.model_copy(update=values), fit


def room_for(config: Config) -> Room | None:
    """What `max_memory` allows; `auto`: what this machine has."""
    if config.max_memory == "auto":
        return available_memory(torch.device(config.device))
    return Room(size_in_bytes(config.max_memory), "allowed by max_memory")


def halved(usual: int, longest: int) -> list[int]:
    """Budgets to try, from the usual one down to the longest row."""
    budgets = [usual]
    while budgets[-1] > longest:
        budgets.append(max(longest, budgets[-1] // 2))
    return budgets


def first_that_fits(
    budgets: Sequence[int], kinds: Sequence[bool], need_of: NeedOf, room: Room | None
) -> tuple[int, bool] | None:
    """The first (budget, kind) whose need fits: all budgets before the next kind."""
    if room is None:
        return budgets[0], kinds[0]
    for is_checkpointed in kinds:
        for budget in budgets:
            if need_of(budget, is_checkpointed).peak_bytes <= room.num_bytes:
                return budget, is_checkpointed
    return None


def longest_that_fits(longest: int, peak_of: Callable[[int], int], limit_bytes: int) -> int | None:
    """The longest row whose peak is within the limit; None: none is.

    A peak grows with the length, in proportion or faster: between a length that fits and one that
    does not, a line is never too low. So the line is tried, and again from where it led.
    """
    fits, fails = SHORTEST, longest
    low, high = peak_of(fits), peak_of(fails)
    if low > limit_bytes:
        return None
    for _ in range(NUM_TRIES):
        between = fits + int((fails - fits) * (limit_bytes - low) / (high - low))
        if between <= fits or between >= fails:
            break
        peak = peak_of(between)
        if peak <= limit_bytes:
            fits, low = between, peak
        else:
            fails, high = between, peak
    return fits


class _Shapes:
    """The run's model without weights, and what its micro-batches need; each is asked once."""

    def __init__(self, config: Config, material: Material) -> None:
        self.config, self.material = config, material
        self.longest = int(material.train.lengths.max())
        self._process_bytes = resident_bytes()
        self._models: dict[bool, ShapeModel] = {}
        self._needs: dict[tuple[int, bool], Need] = {}

    def kinds(self) -> list[bool]:
        """Whether activations are checkpointed: what may be tried, in order."""
        wanted = self.config.activation_checkpointing
        if wanted == "auto":
            return [False, True] if self.can_checkpoint else [False]
        return [wanted]

    @property
    def can_checkpoint(self) -> bool:
        return self._model(False).can_checkpoint

    def need(self, micro_batch_tokens: int, is_checkpointed: bool) -> Need:
        """Of the heaviest micro-batches, where they have this many tokens at most."""
        key = (micro_batch_tokens, is_checkpointed)
        if key not in self._needs:
            store = self.material.train
            values = {"micro_batch_tokens": micro_batch_tokens}
            plan = step_plan(self.config.model_copy(update=values), len(store))
            needs = [
                self._need(_micro_batch(store, part.rows), is_checkpointed, is_first=part.is_first)
                for part in heaviest(store.lengths, store.num_supervised, plan)
            ]
            self._needs[key] = max(needs, key=lambda need: need.peak_bytes)
        return self._needs[key]

    def need_of_row(self, length: int, is_checkpointed: bool) -> Need:
        """Of a row alone, as much of it trained as of any."""
        trained = min(length - 1, int(self.material.train.num_supervised.max()))
        row = MicroBatch(lengths=(length,), supervised=(trained,))
        return self._need(row, is_checkpointed, is_first=False)

    def _need(self, batch: MicroBatch, is_checkpointed: bool, *, is_first: bool) -> Need:
        model = self._model(is_checkpointed)
        return expected(
            model.need(batch, is_first=is_first), batch.num_tokens, self._around(model.num_weights)
        )

    def _model(self, is_checkpointed: bool) -> ShapeModel:
        if is_checkpointed not in self._models:
            self._models[is_checkpointed] = ShapeModel(
                self.material.source,
                self.material.model_config,
                self.config,
                is_checkpointed=is_checkpointed,
            )
        return self._models[is_checkpointed]

    def _around(self, num_weights: int) -> Circumstances:
        config, stored = self.config, self.material.model_config.dtype
        read_bytes = 0  # a file in the dtype that is asked for is used where it lies
        if isinstance(stored, torch.dtype) and (
            config.quantize != "none" or stored != getattr(torch, config.dtype)
        ):
            read_bytes = stored.itemsize * num_weights
        return Circumstances(
            is_cpu=config.device == "cpu",
            is_half=config.dtype == "bfloat16",
            num_steps=total_steps(config, num_examples(config, self.material)),
            process_bytes=self._process_bytes,
            loading_bytes=read_bytes,
        )


def _micro_batch(store: ExampleStore, rows: Sequence[int]) -> MicroBatch:
    indices = list(rows)
    return MicroBatch(
        lengths=tuple(store.lengths[indices].tolist()),
        supervised=tuple(store.num_supervised[indices].tolist()),
    )


def _refusal(shapes: _Shapes, room: Room, tokens: int, is_checkpointed: bool) -> UsageError:
    """What is needed at least, what there is, and what would help."""
    need = shapes.need(tokens, is_checkpointed)
    return UsageError(
        f"the run needs {megabytes(need.peak_bytes)} of memory, and {megabytes(room.num_bytes)}"
        f" {'is' if room.num_bytes < 2e9 else 'are'} {room.reason}",
        why=need.describe(),
        fix=_what_would_fit(shapes, room, tokens, is_checkpointed),
    )


def _what_would_fit(shapes: _Shapes, room: Room, tokens: int, is_checkpointed: bool) -> str:
    budgets = halved(tokens, min(tokens, shapes.longest))
    smaller = first_that_fits(budgets, [is_checkpointed], shapes.need, room)
    if smaller is not None:
        return f"--micro-batch-tokens {smaller[0]}"
    if not is_checkpointed and shapes.can_checkpoint:
        other = first_that_fits(budgets, [True], shapes.need, room)
        if other is not None:
            return "--activation-checkpointing" + (
                "" if other[0] == tokens else f" --micro-batch-tokens {other[0]}"
            )
    length = longest_that_fits(
        shapes.longest,
        lambda length: shapes.need_of_row(length, is_checkpointed).peak_bytes,
        room.num_bytes,
    )
    if length is not None:
        longer = int((shapes.material.train.lengths > length).sum())
        return (
            f"--max-length {length}: {longer:,} of {len(shapes.material.train):,} rows are longer"
            " (they are dropped, or with --over-length truncate cut)"
        )
    trains = "" if shapes.config.method == "lora" else "--method lora, "
    packed = "" if shapes.config.quantize == "nf4" else ", or --quantize nf4"
    return f"{trains}a smaller model{packed if shapes.config.method == 'lora' else ''}"
