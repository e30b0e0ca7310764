"""Where a run stands, on disk: all that determines what follows, beside settings and data.

    state = state.after(metrics, progress, val_loss)             # behind every update
    tensors = snapshot(trained.parameters, optimizer)            # the only part that stops training
    write_state(folder, state, tensors)                          # may run in another thread

    state = read_state(folder)
    load_tensors(folder, trained.parameters, optimizer)          # into a model made anew
    plan = replace(plan, micro_batch_tokens=state.micro_batch_tokens)
    train_steps(sft, optimizer, examples, plan, start=state.progress)

`state.json`, and the tensors beside it (`tensors.py`). No random stream is among them: they follow
from (seed, step). Reading is strict: exactly the keys, shapes and dtypes of this run, finite
numbers, and the step counts that belong to the state, or an error that names the first difference.
Nothing is ever filled in.

Whether the files are whole and belong to this run is for whoever keeps them to prove beforehand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from duiti.data.reading.strict_json import StrictJson
from duiti.disk_errors import explained
from duiti.errors import DuitiError, RowError
from duiti.training.optim import CoolDown
from duiti.training.step import StepMetrics
from duiti.training.tensors import (
    OPTIMIZER_FILE,
    TRAINED_FILE,
    Snapshot,
    check_tensors,
    file_bytes,
    put_tensors,
    refused,
    save_tensors,
    snapshot,
    snapshot_bytes,
)
from duiti.types import Progress

__all__ = [
    "FILES",
    "Best",
    "RunState",
    "Snapshot",
    "checkpoint_bytes",
    "load_tensors",
    "read_state",
    "snapshot",
    "snapshot_bytes",
    "write_state",
]

STATE_FILE = "state.json"
FILES = (STATE_FILE, TRAINED_FILE, OPTIMIZER_FILE)
MAX_STATE_BYTES = 2**20
"""Of `state.json`, which holds some kilobytes."""
_BESIDE_BYTES = 2**16
"""For `state.json`, and what the other files hold beside their tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best that was measured on validation rows."""

    step: int
    val_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A moment of a run, without its tensors."""

    micro_batch_tokens: int
    """Those in force: memory may have run out since the plan was made."""
    progress: Progress = field(default_factory=Progress)
    last: StepMetrics | None = None
    """Of the last update that was made."""
    val_before: float | None = None
    """Validation loss before the first update."""
    val_after: float | None = None
    """The newest validation loss."""
    best: Best | None = None
    """The lowest validation loss of any update; of equal ones the first."""
    out_of_memory: int = 0
    """Times that memory ran out in an update."""
    cool_down: CoolDown | None = None
    """The end that the run has been given, in place of its schedule's."""

    def after(
        self, metrics: StepMetrics, progress: Progress, val_loss: float | None = None
    ) -> RunState:
        """The state with one more update, as `train_steps` yields it.

        Args:
            val_loss: measured behind it, if it was. One that is not finite is not kept.
        """
        best = self.best
        if val_loss is None or not math.isfinite(val_loss):
            val_loss = self.val_after
        elif best is None or val_loss < best.val_loss:
            best = Best(step=metrics.step, val_loss=val_loss)
        return replace(
            self,
            micro_batch_tokens=metrics.micro_batch_tokens,
            progress=progress,
            last=self.last if metrics.skipped else replace(metrics, row_losses=()),
            val_after=val_loss,
            best=best,
            out_of_memory=self.out_of_memory + metrics.out_of_memory,
        )


def checkpoint_bytes(trained: Mapping[str, nn.Parameter]) -> int:
    """Room on disk that the three files take, at most."""
    return file_bytes(trained) + _BESIDE_BYTES


def write_state(folder: Path, state: RunState, tensors: Snapshot) -> None:
    """Write the three files into a folder that is there.

    Raises:
        DuitiError: a number is not finite (then nothing is written), or a file cannot be written.
    """
    if fault := tensors.fault():
        raise DuitiError(
            f"step {state.progress.step} is not saved: {fault}",
            why="a run that went on from there could only get worse",
            fix="a lower --learning-rate is the usual cure; earlier checkpoints are as they were",
        )
    stored = _Stored(version=1, optimizer_steps=tensors.optimizer_steps, state=state)
    text = json.dumps(asdict(stored), indent=1, allow_nan=False) + "\n"
    with explained(folder, tensors.num_bytes):
        save_tensors(folder, tensors)
        (folder / STATE_FILE).write_text(text, encoding="utf-8")


def read_state(folder: Path) -> RunState:
    """The state without its tensors.

    Raises:
        DuitiError: it is missing, or anything about it is not as `write_state` writes it.
    """
    return _read(folder).state


def load_tensors(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    """Put parameters and moments where they were. Nothing is changed before all of it is checked.

    Args:
        trained: as for `snapshot`, of a model made anew.
        optimizer: as `make_optimizer` makes it, of the same parameters.

    Raises:
        DuitiError: a file is missing or cannot be read; keys, shapes, dtypes, numbers or step
            counts are others than this run's.
    """
    expected = _read(folder).optimizer_steps
    steps = check_tensors(folder, trained, optimizer)
    if steps != expected:
        why = f"it is of step {steps} of the optimizer, and {STATE_FILE} of step {expected}"
        raise refused(folder / OPTIMIZER_FILE, why)
    put_tensors(folder, trained, optimizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What `state.json` says."""

    version: Literal[1]
    optimizer_steps: int
    """The largest step count in the optimizer's file."""
    state: RunState


def _read(folder: Path) -> _Stored:
    path = folder / STATE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        raise refused(path, "it is missing") from None
    except OSError as error:
        raise refused(path, error.strerror or "cannot be read") from None
    if len(content) > MAX_STATE_BYTES:
        raise refused(path, "it is much too large")
    try:
        values = StrictJson().parse_line(content)  # no key twice, no NaN, for pydantic takes both
        stored = TypeAdapter(_Stored).validate_json(content, strict=True)
    except RowError as error:
        raise refused(path, str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise refused(path, f"{place}: {first['msg']}") from None
    # Keys too many, and keys that a default would stand in for.
    if json.loads(json.dumps(asdict(stored))) != values:
        raise refused(path, "its keys are not those of a state")
    progress = stored.state.progress
    if not 0 <= stored.optimizer_steps <= progress.step - progress.skipped_steps:
        raise refused(path, f"{stored.optimizer_steps} steps of the optimizer in"
                      f" {progress.step} updates, {progress.skipped_steps} skipped")  # fmt: skip
    return stored
