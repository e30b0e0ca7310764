"""The learning rate by hand, and AdamW against its formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from duiti.errors import DuitiError
from duiti.training.optim import (
    CoolDown,
    RatePlan,
    cooled_down,
    default_learning_rate,
    learning_rate_at,
    make_optimizer,
)


def rates(schedule: str, warmup: int, total: int) -> list[float]:
    plan = RatePlan(peak=8.0, schedule=schedule, warmup_steps=warmup, total_steps=total)
    return [learning_rate_at(step, plan) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "total", "expected"),
    [
        ("constant", 0, 3, [8, 8, 8]),
        ("constant", 2, 4, [4, 8, 8, 8]),
        ("linear", 0, 4, [8, 6, 4, 2]),
        ("linear", 2, 6, [4, 8, 8, 6, 4, 2]),
        # (1 + cos(pi k/4)) / 2 for k = 0, 1, 2, 3
        ("cosine", 0, 4, [8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)]),
        ("cosine", 1, 3, [8, 8, 4]),
        ("linear", 1, 1, [8]),
        ("cosine", 0, 1, [8]),
        ("linear", 4, 2, [2, 4]),
    ],
)
def test_the_rate_is_what_one_computes_by_hand(
    schedule: str, warmup: int, total: int, expected: list[float]
) -> None:
    assert rates(schedule, warmup, total) == pytest.approx(expected, rel=1e-12)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 40),
    total=st.integers(1, 60),
)
def test_no_rate_is_zero_or_above_the_peak_and_it_rises_then_falls(
    schedule: str, warmup: int, total: int
) -> None:
    found = rates(schedule, warmup, total)
    assert all(0 < rate <= 8 for rate in found)
    rising, falling = found[:warmup], found[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup < total:
        assert max(found) == pytest.approx(8.0)


def budgeted(schedule: str, *, warmup: int = 0, total: int = 100, budget_s: float = 60) -> RatePlan:
    return RatePlan(peak=8.0, schedule=schedule, warmup_steps=warmup, total_steps=total,
                    budget_s=budget_s)  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "step", "spent_s", "expected"),
    [
        ("linear", 1, 0, 8),
        ("linear", 11, 3, 7.2),  # a tenth of the updates, a twentieth of the time
        ("linear", 11, 30, 4),  # half of the time
        ("linear", 100, 0, 0.08),  # fast: the updates are made before the time is over
        ("linear", 2, 59.4, 0.08),  # slow
        ("linear", 2, 61, 0),
        ("cosine", 11, 30, 4),
        ("cosine", 11, 60, 0),
        ("constant", 11, 59, 8),
    ],
)
def test_with_a_budget_the_schedule_is_as_far_as_updates_or_time(
    schedule: str, step: int, spent_s: float, expected: float
) -> None:
    found = learning_rate_at(step, budgeted(schedule), spent_s=spent_s)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_time_counts_in_the_warm_up_too() -> None:
    plan = budgeted("linear", warmup=4)
    assert learning_rate_at(2, plan, spent_s=0) == 4
    # Half of the time: warm-up is over after 3 % of it, and the schedule is half down.
    assert learning_rate_at(2, plan, spent_s=30) == 4
    long = budgeted("constant", warmup=1000)
    assert learning_rate_at(2, long, spent_s=0.9) == pytest.approx(4)  # half of the 1.8 s
    assert learning_rate_at(3, long, spent_s=1.8) == pytest.approx(8)


@given(
    schedule=st.sampled_from(["linear", "cosine"]),
    warmup=st.integers(0, 5),
    total=st.integers(6, 60),
    times=st.lists(st.floats(0, 100), min_size=6, max_size=6).map(sorted),
)
def test_with_a_budget_the_rate_is_never_above_that_without_and_never_rises_after_warm_up(
    schedule: str, warmup: int, total: int, times: list[float]
) -> None:
    plan = budgeted(schedule, warmup=warmup, total=total)
    steps = range(1, 7)
    found = [learning_rate_at(n, plan, spent_s=t) for n, t in zip(steps, times, strict=True)]
    without = rates(schedule, warmup, total)[:6]
    assert all(0 <= rate <= 8 for rate in found)
    behind = list(zip(found, without, strict=True))[warmup:]
    assert all(rate <= other for rate, other in behind)
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert [learning_rate_at(n, plan, spent_s=0.0) for n in steps] == without


def test_a_cool_down_falls_linearly_from_where_the_rate_stands_and_ends_the_run() -> None:
    plan = budgeted("cosine", warmup=2)
    cooling = cooled_down(plan, CoolDown(start_step=40, num_steps=3, rate=6.0))
    assert (cooling.total_steps, cooling.budget_s) == (43, None)
    found = [learning_rate_at(step, cooling, spent_s=1e9) for step in range(41, 45)]
    assert found == pytest.approx([4.5, 3.0, 1.5, 0.0])
    plain = replace(plan, total_steps=43, budget_s=None)
    assert learning_rate_at(40, cooling) == learning_rate_at(40, plain)


def test_decay_is_on_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 3))
    optimizer = make_optimizer(model.parameters(), weight_decay=0.1)
    decayed = {
        id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.1 for p in g["params"]
    }
    rest = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert rest == {id(p) for p in model.parameters() if p.ndim < 2}


def test_an_update_is_that_of_adamw_as_published() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64 on paper."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = make_optimizer([weight], weight_decay=0.01)
    w = weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 6):
        grad = torch.randn(4, 3)
        weight.grad = grad.clone()
        optimizer.param_groups[0]["lr"] = 0.1 * step
        optimizer.step()
        g = grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        unbiased = (m / (1 - 0.9**step), v / (1 - 0.999**step))
        w = w - 0.1 * step * 0.01 * w
        w = w - 0.1 * step * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    # About 10 float32 roundings (2^-24) in each of 5 updates of size <= 0.5: 2e-6.
    assert (weight.detach() - w).abs().max() <= 2e-6


def test_default_rates_are_those_that_the_reason_names() -> None:
    assert default_learning_rate("lora", 4096)[0] == 2e-4
    assert default_learning_rate("full", 4096)[0] == 2e-5
    assert default_learning_rate("last-n", 1024)[0] == 8e-5
    assert default_learning_rate("lora", 256)[0] == pytest.approx(2e-4 * 8)  # 16^(3/4) = 8
    assert "256" in default_learning_rate("lora", 256)[1]


def test_moments_are_there_before_the_first_step_as_torch_makes_them_and_nothing_has_moved() -> (
    None
):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.tensor([-0.0, 2.0, 1e-38]))]
    before = [p.detach().clone() for p in parameters]
    ours = make_optimizer(parameters, weight_decay=0.1)
    for parameter, kept in zip(parameters, before, strict=True):
        assert torch.equal(parameter.view(torch.int32), kept.view(torch.int32))  # -0.0 too
        assert parameter.grad is None
        assert all(not bool(value.any()) for value in ours.state[parameter].values())
    fresh = torch.optim.AdamW([nn.Parameter(kept) for kept in before], fused=True)
    for group in fresh.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    fresh.step()
    for found, expected in zip(ours.state.values(), fresh.state.values(), strict=True):
        assert {k: (v.dtype, v.shape, v.device) for k, v in found.items()} == {
            k: (v.dtype, v.shape, v.device) for k, v in expected.items()
        }


def test_an_optimizer_that_does_not_fit_says_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros_like", refuse)
    with pytest.raises(DuitiError, match="moments do not fit") as caught:
        make_optimizer([nn.Parameter(torch.ones(3, 3))], weight_decay=0.0)
    assert "--method lora" in caught.value.fix
