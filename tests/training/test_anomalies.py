"""What is unusual is told, with its rows; what is usual is not; what is bad is found row by row."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from made_models import document, make
from torch import Tensor

from duiti.config import Config
from duiti.data.batch import epoch_updates
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.anomalies import LEAST, WINDOW, Recent, anomaly, with_update
from duiti.training.optim import RatePlan, learning_rate_at, make_optimizer
from duiti.training.step import (
    TIMED,
    BadNumbers,
    StepMetrics,
    StepPlan,
    train_step,
    train_steps,
)
from duiti.types import Batch, Example, Progress

LENGTHS = (4, 30, 13, 2, 22, 9, 40, 6, 17, 25, 11, 3, 8)
ODD = 2
"""A token id that `document` never draws."""


def examples(odd_rows: tuple[int, ...] = ()) -> list[Example]:
    found = [document(length, number) for number, length in enumerate(LENGTHS, 1)]
    for index in odd_rows:
        found[index].input_ids[0] = ODD
    return found


class Scaled(SFTModel):
    """A model whose loss (and gradient) is multiplied in some calls, counted from 1."""

    def __init__(self, *args: Any, factors: dict[int, float]) -> None:
        super().__init__(*args)
        self.factors, self.calls = factors, 0

    def forward(self, batch: Batch, **more: Any) -> tuple[Tensor, int | float]:
        self.calls += 1
        loss, weight_sum = super().forward(batch, **more)
        return loss * self.factors.get(self.calls, 1.0), weight_sum


def start(
    config: Config | None = None, factors: dict[int, float] | None = None
) -> tuple[Scaled, torch.optim.AdamW]:
    model = copy.deepcopy(make("llama"))
    trained = choose_trained(model, config or Config(lora={"rank": 4, "dropout": 0.1}))
    optimizer = make_optimizer(trained.parameters.values(), weight_decay=0.1)
    return Scaled(model, factors=factors or {}), optimizer


def plan(steps: int, *, skip: int = 0, batch_size: int = 5) -> StepPlan:
    rate = RatePlan(peak=1e-3, schedule="linear", warmup_steps=0, total_steps=steps)
    return StepPlan(
        rate=rate, batch_size=batch_size, micro_batch_tokens=4096, max_grad_norm=1.0, seed=0,
        skip_bad_steps=skip,
    )  # fmt: skip


# Against what is usual


def flagged(losses: list[float], norms: list[float]) -> list[int]:
    recent: Recent = ()
    found = []
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if anomaly(loss, norm, recent):
            found.append(number)
        recent = with_update(recent, loss, norm)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("end", [3.0, 0.01])
def test_noise_and_a_curve_that_falls_are_usual(seed: int, noise: float, end: float) -> None:
    random = np.random.default_rng(seed)
    steps = np.arange(1000)
    curve = end + (4.0 - end) * np.exp(-steps / 100)
    losses = curve * np.exp(noise * random.normal(size=1000))
    norms = np.exp(noise * random.normal(size=1000)) * (1 + 10 * np.exp(-steps / 5))
    assert flagged(losses.tolist(), norms.tolist()) == []


@pytest.mark.parametrize("place", [LEAST, LEAST + 1, WINDOW + 5, 199])
def test_a_spike_is_found_and_its_neighbours_are_not(place: int) -> None:
    random = np.random.default_rng(0)
    losses = (1.5 + 0.1 * random.normal(size=200)).tolist()
    norms = np.exp(0.3 * random.normal(size=200)).tolist()
    assert flagged(losses, norms) == []
    spiked = [*losses[:place], 4.0, *losses[place + 1 :]]
    assert flagged(spiked, norms) == [place]
    exploded = [*norms[:place], 50.0, *norms[place + 1 :]]
    assert flagged(losses, exploded) == [place]


def test_a_spike_does_not_hide_the_next() -> None:
    losses = [1.5] * 100
    for place in range(40, 60):
        losses[place] = 9.0
    assert flagged(losses, [1.0] * 100) == list(range(40, 60))


def test_a_fall_is_no_anomaly_and_neither_is_the_beginning() -> None:
    assert flagged([3.0] * 50 + [0.1] * 50, [1.0] * 50 + [0.01] * 50) == []
    assert flagged([1.0] * (LEAST - 1) + [100.0], [1.0] * (LEAST - 1) + [100.0]) == []


def test_a_gradient_of_zero_is_as_small_as_any() -> None:
    assert flagged([1.0] * 40, [0.0] * 40) == []
    assert flagged([1.0] * 40, [0.0] * 39 + [1.0]) == [39]


def test_both_are_told_in_words_with_what_is_usual() -> None:
    said = anomaly(9.0, 80.0, ((1.5, 2.0),) * 20)
    assert said == (
        "the loss is 9, and was 1.5 (median of 20); the gradient's norm is 80, and was 2"
        " (median of 20)"
    )


# In a run


def run(
    sft: SFTModel, optimizer: torch.optim.AdamW, steps: StepPlan, begin: Progress | None = None
) -> list[tuple[StepMetrics, Progress]]:
    return list(train_steps(sft, optimizer, examples(), steps, start=begin or Progress()))


def test_an_unusual_update_is_told_with_its_rows_after_a_stop_too() -> None:
    steps = plan(30)
    found = run(*start(factors={25: 20.0}), steps)
    told = [metrics for metrics, _ in found if metrics.anomaly]
    assert [metrics.step for metrics in told] == [25]
    assert "the loss is" in str(told[0].anomaly)
    assert "the gradient's norm is" in str(told[0].anomaly)
    order = [rows for epoch in range(10) for rows in epoch_updates(13, 5, seed=0, epoch=epoch)]
    assert told[0].rows == tuple(f"test:{index + 1}" for index in order[24])
    # What is usual follows from the metrics alone, and goes with the progress.
    for number, (_, progress) in enumerate(found, 1):
        metrics = [own for own, _ in found[:number]]
        assert progress.recent == tuple((m.loss, m.grad_norm) for m in metrics[-WINDOW:])
    sft, optimizer = start(factors={25: 20.0})
    going = train_steps(sft, optimizer, examples(), steps)
    stopped = [next(going) for _ in range(20)][-1][1]
    assert found[20:] == [
        (replace(metrics, tokens_per_s=expected.tokens_per_s,
                 peak_memory_bytes=expected.peak_memory_bytes), progress)
        for (metrics, progress), (expected, _) in zip(
            run(sft, optimizer, steps, stopped), found[20:], strict=True)
    ]  # fmt: skip


def state_of(optimizer: torch.optim.AdamW) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [value for p in parameters for value in optimizer.state[p].values()]
    return [tensor.detach().clone() for tensor in (*parameters, *moments)]


def assert_equal(one: list[Tensor], two: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def blow_up(sft: SFTModel) -> None:
    """What reads the odd token is no number from here on; nobody trains that weight."""
    with torch.no_grad():
        sft.model.get_input_embeddings().weight[ODD] = float("inf")


def update_of(row: int) -> int:
    """Which update of the first epoch it is in, from 1."""
    for number, rows in enumerate(epoch_updates(13, 5, seed=0, epoch=0), 1):
        if row in rows:
            return number
    raise AssertionError


@pytest.mark.parametrize("budget", [1, 4096])
def test_the_row_that_is_bad_alone_is_named_among_those_of_the_update(budget: int) -> None:
    sft, optimizer = start()
    blow_up(sft)
    rows, bad = examples((6,)), update_of(6)
    steps = replace(plan(3), micro_batch_tokens=budget)
    with pytest.raises(BadNumbers) as caught:
        list(train_steps(sft, optimizer, rows, steps))
    assert caught.value.what.startswith(f"step {bad}: the loss is nan")
    assert caught.value.what.endswith("bad even alone: test:7")
    own = list(epoch_updates(13, 5, seed=0, epoch=0))[bad - 1]
    assert caught.value.why == "the rows of this update: " + ", ".join(f"test:{i + 1}" for i in own)
    assert "--skip-bad-steps" in caught.value.fix
    assert all(parameter.grad is None for parameter in sft.parameters())
    assert sft.training


def test_a_gradient_that_is_bad_alone_is_found_where_the_loss_is_good() -> None:
    class Steep(SFTModel):
        def forward(self, batch: Batch, **more: Any) -> tuple[Tensor, int | float]:
            loss, weight_sum = super().forward(batch, **more)
            if loss.requires_grad and any(ids[0] == ODD for ids in batch.documents):
                loss.register_hook(lambda grad: grad * float("inf"))
            return loss, weight_sum

    model = copy.deepcopy(make("llama"))
    trained = choose_trained(model, Config(method="full"))
    optimizer = make_optimizer(trained.parameters.values(), weight_decay=0.0)
    with pytest.raises(BadNumbers, match=r"the gradient's norm (nan|inf); bad even") as caught:
        list(train_steps(Steep(model), optimizer, examples((6, 8)), plan(1, batch_size=13)))
    named = caught.value.what.partition("alone: ")[2]
    assert sorted(named.split(", ")) == ["test:7", "test:9"]


def test_where_none_is_bad_alone_none_is_named() -> None:
    sft, optimizer = start(factors={1: float("nan")})  # the update, and not the rows after it
    with pytest.raises(BadNumbers) as caught:
        run(sft, optimizer, plan(1))
    assert "alone" not in str(caught.value)
    assert caught.value.why.count("test:") == 5


def test_memory_that_runs_out_in_the_search_ends_the_search_only() -> None:
    sft, optimizer = start(factors={1: float("nan")})

    def refuse(*_: object) -> None:
        if sft.calls >= 2:  # the first one is the update's
            raise torch.OutOfMemoryError("CUDA out of memory.")

    sft.model.register_forward_pre_hook(refuse)
    sft.model.model.register_forward_pre_hook(refuse)
    with pytest.raises(BadNumbers, match="the loss is nan"):
        run(sft, optimizer, plan(1))


# Left out


def by_hand(
    sft: SFTModel, optimizer: torch.optim.AdamW, rows: list[Example], steps: StepPlan, left_out: int
) -> list[StepMetrics]:
    found = []
    order = list(epoch_updates(len(rows), steps.batch_size, seed=0, epoch=0))
    for number, own in enumerate(order, 1):
        if number != left_out:
            given = [rows[index] for index in own]
            found.append(train_step(sft, optimizer, given, steps, step=number, epoch=1.0))
    return found


def steady(metrics: StepMetrics) -> dict[str, Any]:
    return {k: v for k, v in asdict(metrics).items() if k not in TIMED | {"epoch"}}


def test_a_skipped_update_leaves_parameters_and_moments_and_the_schedule_goes_on() -> None:
    rows, bad = examples((6,)), update_of(6)
    sft, optimizer = start()
    blow_up(sft)
    before = state_of(optimizer)
    found = []
    for metrics, progress in train_steps(sft, optimizer, rows, plan(3, skip=1)):
        found.append((metrics, progress))
        if metrics.step == bad:
            assert_equal(before, state_of(optimizer))
        before = state_of(optimizer)
    assert [metrics.step for metrics, _ in found] == [1, 2, 3]
    assert [metrics.skipped for metrics, _ in found] == [n == bad for n in (1, 2, 3)]
    assert [progress.skipped_steps for _, progress in found] == [int(n >= bad) for n in (1, 2, 3)]
    rates = [learning_rate_at(step, plan(3).rate) for step in (1, 2, 3)]
    assert [metrics.lr for metrics, _ in found] == rates
    left_out = found[bad - 1][0]
    assert math.isnan(left_out.loss)
    assert "bad even alone: test:7" in str(left_out.anomaly)
    assert "test:7" in left_out.rows
    assert len(left_out.rows) == 5 or bad == 3
    # All others are what one gets who leaves that one out.
    other, reference = start()
    blow_up(other)
    expected = by_hand(other, reference, rows, plan(3), bad)
    assert [steady(m) for m, _ in found if not m.skipped] == [steady(m) for m in expected]
    assert_equal(state_of(optimizer), state_of(reference))
    made = found[-1][1]
    assert made.cursor == 13
    assert made.supervised_tokens == sum(metrics.supervised_tokens for metrics in expected)
    assert len(made.recent) == 2


def test_one_more_than_may_be_skipped_stops_the_run_after_a_stop_too() -> None:
    rows = examples((6,))
    sft, optimizer = start()
    blow_up(sft)
    seen: list[Progress] = []
    going = train_steps(sft, optimizer, rows, plan(9, skip=1))
    with pytest.raises(BadNumbers):  # the same row again in the second epoch
        seen.extend(progress for _, progress in going)
    assert 3 <= len(seen) < 6
    assert seen[-1].skipped_steps == 1
    with pytest.raises(BadNumbers):
        list(train_steps(sft, optimizer, rows, plan(9, skip=1), start=seen[2]))
    going = train_steps(sft, optimizer, rows, plan(6, skip=2), start=seen[2])
    assert [metrics.skipped for metrics, _ in going].count(True) == 1
