"""When checkpoints are made: by updates, by time and never more than a fiftieth of it, for the best
model, and when asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import make
from torch import nn

from duiti import saving
from duiti.config import Config
from duiti.identity import Identity, RowsIdentity
from duiti.model.artefact import TrainedOn
from duiti.model.freeze import choose_trained
from duiti.saving import Checkpoints
from duiti.training.keeper import candidates
from duiti.training.log import Talk
from duiti.training.optim import make_optimizer
from duiti.training.state import Best, RunState
from duiti.types import Progress

ROWS = RowsIdentity(files=(), examples=0, sha256="0" * 64)
TRAINED_ON = TrainedOn(base="b", weights="0" * 64, config="0" * 64, tokenizer="0" * 64,
                       template="0" * 64)  # fmt: skip
IDENTITY = Identity(data=ROWS, val=ROWS, trained_on=TRAINED_ON)
Parts = tuple[dict[str, nn.Parameter], torch.optim.AdamW]


@pytest.fixture(scope="module")
def parts() -> Parts:
    trained = choose_trained(make("llama"), Config(method="lora", lora={"rank": 2})).parameters
    return trained, make_optimizer(trained.values(), weight_decay=0.0)


def state(step: int, best: int | None = None) -> RunState:
    return RunState(
        micro_batch_tokens=64,
        progress=Progress(step=step),
        best=None if best is None else Best(step=best, val_loss=1.0),
    )


def steps_of(folder: Path) -> list[int | None]:
    return [found.step for found in candidates(folder / "checkpoints")]


@pytest.fixture
def opened(parts: Parts, tmp_path: Path) -> Callable[..., Checkpoints]:
    (tmp_path / "env.json").write_text('{"id": "this run"}')

    def make(talk: Talk | None = None, **settings: object) -> Checkpoints:
        config = Config(model="m", **settings)
        return Checkpoints(tmp_path, config, {}, IDENTITY, *parts, talk or Talk(quiet=True))

    return make


def test_by_updates_the_newest_are_kept_and_the_best(
    opened: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    with opened(save_every="2", keep=2) as checkpoints:
        for step in range(1, 10):
            checkpoints.offer(state(step, best=3 if step >= 3 else None))
    assert steps_of(tmp_path) == [8, 6, 3]


def test_never_means_only_when_asked(opened: Callable[..., Checkpoints], tmp_path: Path) -> None:
    with opened(save_every="never") as checkpoints:
        for step in range(1, 4):
            checkpoints.offer(state(step, best=step))
        assert checkpoints.make(state(3)).name == "step-000003"
    assert steps_of(tmp_path) == [3]


def test_one_that_is_asked_for_is_not_made_twice(
    opened: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    with opened(save_every="1") as checkpoints:
        checkpoints.offer(state(1))
        assert checkpoints.make(state(1)).name == "step-000001"
    assert steps_of(tmp_path) == [1]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Listener(Talk):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def say(self, label: str, text: str) -> None:
        self.heard.append(text)


def test_by_time_they_take_no_more_than_a_fiftieth_of_it(
    opened: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, made = Clock(), []

    def slow(folder: Path, step: int, *_: object, **__: object) -> Path:
        made.append(step)
        clock.now += 20
        return folder

    monkeypatch.setattr(saving, "time", clock)
    monkeypatch.setattr(saving, "save", slow)
    talk = Listener()
    with opened(talk, save_every="10m") as checkpoints:
        for step in range(1, 31):
            clock.now += 100
            checkpoints.offer(state(step))
            checkpoints._saver.finish()
    # The first after ten minutes; it took 20 seconds, so the next ones are 1,000 apart.
    assert made[0] == 6
    assert all(later - before >= 9 for before, later in itertools.pairwise(made))
    assert len(made) == 3
    assert talk.heard == ["a checkpoint takes 20 s, so there is one every 16:40 at most: 2% of the"
                          " time"]  # fmt: skip


def test_without_room_for_a_copy_training_waits(
    opened: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(saving, "available_memory", lambda device: None)
    with opened(save_every="1") as checkpoints:
        checkpoints.offer(state(1))
        assert steps_of(tmp_path) == [1]
