"""The checkpoints of a run that is under way: when one is due, and how it is made beside training.

    with Checkpoints(folder, config, reasons, identity, trained, optimizer, talk) as checkpoints:
        for metrics, progress in train_steps(...):
            checkpoints.offer(state)                     # makes one if it is due
        checkpoints.make(state)                          # makes one now, and waits for it

A copy of the tensors is taken between two updates and written by another thread while training goes
on; where memory has no room for a copy, training waits instead. Checkpoints by time never take more
than a fiftieth of it: where they are large, they are further apart than was asked, and it is said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from duiti.config import Config, own_settings
from duiti.errors import DuitiError
from duiti.identity import Identity
from duiti.quantities import SaveEvery
from duiti.run import Run
from duiti.training.available import available_memory, resident_bytes
from duiti.training.keeper import CHECKPOINTS, examine, prune_surplus, save
from duiti.training.log import Talk, clock
from duiti.training.saver import Saver
from duiti.training.state import (
    Best,
    RunState,
    Snapshot,
    checkpoint_bytes,
    snapshot,
    snapshot_bytes,
    write_state,
)
from duiti.types import Json

ROOM = 4
"""A copy is taken where so many would fit into the memory that is free."""
MAX_SHARE = 0.02
"""Of the time, for checkpoints that are made by time."""


class Checkpoints:
    """Makes checkpoints of one run."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        reasons: Mapping[str, str],
        identity: Identity,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
        talk: Talk,
        *,
        start_step: int = 0,
    ) -> None:
        """
        Args:
            folder: of the run.
            config: settled.
            trained: what is trained, by name.
            start_step: of the checkpoint that the run goes on from.
        """
        self._folder = folder / CHECKPOINTS
        self._config = config
        self._facts: dict[str, Json] = {
            "run": Run(folder).id,
            "config": own_settings(config),
            "reasons": dict(reasons),
            "identity": identity.as_dict(),
        }
        self._trained = trained
        self._optimizer = optimizer
        self._talk = talk
        self._every = SaveEvery.parse(config.save_every)
        self._last_step, self._last_s = start_step, time.monotonic()
        self._saved: Path | None = None
        self._cost_s = 0.0
        self._is_pace_said = False
        self._saver = Saver()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._saver.__exit__(kind, error, trace)

    def tidy(self, state: RunState) -> None:
        """Remove what a process that was killed had no time to remove."""
        try:
            prune_surplus(self._folder, keep=self._config.keep, protected=_needed(state))
        except DuitiError as error:
            self._talk.say("save", str(error))

    def offer(self, state: RunState) -> None:
        """Make a checkpoint if it is time for one, or if this is the best model so far.

        Raises:
            DuitiError: it, or the one before, cannot be written.
        """
        step, now = state.progress.step, time.monotonic()
        never = self._every == SaveEvery()
        is_best = state.best is not None and state.best.step == step
        is_due = self._every.is_due(step, now, self._last_step, self._last_s)
        if is_due and self._every.seconds is not None:
            is_due = now - self._last_s >= self._cost_s / MAX_SHARE
            self._say_pace(is_due=is_due)
        if is_due or (is_best and not never):
            self._begin(state)

    def make(self, state: RunState) -> Path:
        """Make a checkpoint behind an update, unless there is one of it; returns where it is.

        Raises:
            DuitiError: it cannot be written.
        """
        if self._last_step != state.progress.step:
            self._begin(state)
        self._saved = self._saver.finish() or self._saved
        assert self._saved is not None  # one was begun, if not now then before
        return self._saved

    def best(self, best: Best) -> Path:
        """The checkpoint of the best update, verified.

        Raises:
            DuitiError: there is none that is whole.
        """
        self._saver.finish()
        for found in examine(self._folder):
            if found.step == best.step and found.problem is None:
                return found.path
        raise DuitiError(
            f"there is no whole checkpoint of step {best.step:,}, the best one",
            why=f"it was removed from {self._folder}, or damaged",
            fix="duiti train --resume goes on from the newest that is whole",
        )

    def _say_pace(self, *, is_due: bool) -> None:
        if is_due or self._is_pace_said:
            return
        self._is_pace_said = True
        apart = clock(self._cost_s / MAX_SHARE)
        self._talk.say("save", f"a checkpoint takes {self._cost_s:.0f} s, so there is one every"
                       f" {apart} at most: {MAX_SHARE:.0%} of the time")  # fmt: skip

    def _begin(self, state: RunState) -> None:
        self._saver.finish()
        began_s = time.monotonic()
        has_room = self._has_room()
        tensors = snapshot(self._trained, self._optimizer, copy=has_room)
        step = state.progress.step
        write = partial(_write, state, tensors)

        def make() -> Path:
            path = save(
                self._folder,
                step,
                write,
                self._facts,
                keep=self._config.keep,
                protected=_needed(state),
                num_bytes=checkpoint_bytes(self._trained),
                say=partial(self._talk.say, "save"),
            )
            self._cost_s = time.monotonic() - began_s
            return path

        self._saver.submit(make)
        self._last_step, self._last_s = step, time.monotonic()
        if not has_room:
            self._saved = self._saver.finish()

    def _has_room(self) -> bool:
        """Whether the host has memory for a copy of what is saved."""
        room = available_memory(torch.device("cpu"))
        free_bytes = 0 if room is None else room.num_bytes - resident_bytes()
        return ROOM * snapshot_bytes(self._trained) <= free_bytes


def _needed(state: RunState) -> set[int]:
    """Steps that stay however many newer ones there are."""
    return {state.progress.step} if state.best is None else {state.progress.step, state.best.step}


def _write(state: RunState, tensors: Snapshot, folder: Path) -> None:
    write_state(folder, state, tensors)
