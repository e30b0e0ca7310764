"""The drift that is held: its gradient against plain transformers, its weight, and runs that stop,
lack memory, or meet bad numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_models import VOCAB, document, make
from torch import Tensor
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.errors import DuitiError
from duiti.model.freeze import Trained, choose_trained
from duiti.model.lora import lora_layers
from duiti.model.sft_model import SFTModel
from duiti.model.top_words import NUM_WORDS
from duiti.training import hold as hold_module
from duiti.training.hold import (
    AIM,
    LEAST,
    MOST,
    TEXTS_PER_UPDATE,
    Hold,
    add_drift,
    beginning,
    held_after,
    make_hold,
    weight_of,
)
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.state import RunState, load_tensors, read_state, snapshot, write_state
from duiti.training.step import TIMED, BadNumbers, StepMetrics, StepPlan, train_step, train_steps
from duiti.types import Example, Held, Origin

LENGTHS = (4, 30, 13, 2, 22, 9, 40, 6, 17, 25, 11, 3, 8)
ROWS = [document(length, number) for number, length in enumerate(LENGTHS, 1)]
METHODS = {
    "lora": Config(lora={"rank": 4}),
    "lora with dropout": Config(lora={"rank": 4, "dropout": 0.2}),
    "last-n": Config(method="last-n", last_n={"layers": 1}),
    "full": Config(method="full"),
}


def text(length: int, number: int) -> Example:
    ids = np.random.default_rng(1000 + number).integers(3, VOCAB, length).astype(np.int32)
    labels = ids.copy()
    labels[0] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("<base>", number + 1))


TEXTS = [text(6 + number, number) for number in range(10)]


class Training:
    """All that a process that trains has in memory."""

    def __init__(
        self, method: str = "lora", *, arch: str = "llama", max_drift: float = 0.05
    ) -> None:
        self.model: PreTrainedModel = copy.deepcopy(base(arch))
        torch.manual_seed(0)
        self.trained: Trained = choose_trained(self.model, METHODS[method])
        self.parameters = list(self.trained.parameters.values())
        self.optimizer = make_optimizer(self.parameters, weight_decay=0.1)
        self.sft = SFTModel(self.model)
        self.hold = make_hold(self.sft, TEXTS, max_drift=max_drift, micro_batch_tokens=40)

    def moved(self) -> Training:
        """Away from the base, as in the middle of a run."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return self

    def tensors(self) -> dict[str, Tensor]:
        own = snapshot(self.trained.parameters, self.optimizer)
        return {**own.trained, **own.optimizer}

    def gradients(self) -> list[Tensor]:
        return [
            parameter.grad.clone() for parameter in self.parameters if parameter.grad is not None
        ]

    def step(self, budget: int = 4096, *, step: int = 3, weight: float = 2.0, **more: Any) -> Any:
        given = {"hold": self.hold, "drift_weight": weight, **more}
        return train_step(
            self.sft, self.optimizer, ROWS[:5], plan(budget), step=step, epoch=1.0, **given
        )


@cache
def base(arch: str) -> PreTrainedModel:
    return make(arch)


def plan(budget: int = 60, *, steps: int = 8, peak: float = 1e-2, **more: Any) -> StepPlan:
    rate = RatePlan(peak=peak, schedule="cosine", warmup_steps=2, total_steps=steps)
    return StepPlan(
        rate=rate, batch_size=5, micro_batch_tokens=budget, max_grad_norm=0.5, seed=4, **more
    )


def steady(metrics: StepMetrics) -> dict[str, Any]:
    return {key: value for key, value in asdict(metrics).items() if key not in TIMED}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def plain_logits(model: PreTrainedModel, example: Example) -> Tensor:
    ids = torch.tensor(example.input_ids.astype(np.int64))
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return logits.double()


def plain_kl(model: PreTrainedModel, arch: str, texts: Sequence[Example]) -> Tensor:
    """Mean over tokens of the KL between whole softmaxes, the words that the base holds unlikely
    put into one bucket."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for example in texts:
        with torch.no_grad():
            p = plain_logits(base(arch), example).softmax(-1)
        q = plain_logits(model, example).softmax(-1)
        own = p.topk(NUM_WORDS).indices
        p, q = p.gather(1, own), q.gather(1, own)
        rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
        total = total + (p * (p / q).log()).sum() + (rest_p * (rest_p / rest_q).log()).sum()
        count += len(own)
    return total / count


@pytest.mark.parametrize("method", ["lora", "last-n", "full"])
@pytest.mark.parametrize("arch", ["llama", "qwen3-tied", "gemma2-capped"])
def test_the_gradient_that_is_added_is_that_of_the_weighted_divergence(
    arch: str, method: str
) -> None:
    training = Training(method, arch=arch).moved()
    texts = [TEXTS[place] for place in training.hold.texts_of(seed=4, step=3)]
    expected = plain_kl(training.model, arch, texts)
    (2.5 * expected).backward()
    wanted = training.gradients()
    training.optimizer.zero_grad()
    found = add_drift(
        training.sft, training.hold, seed=4, step=3, weight=2.5, micro_batch_tokens=4096
    )
    assert expected.item() > 1e-3
    # Sums of float32 over 64 words and 32 places of the hidden state: (64 + 32) * 2^-24 of terms
    # that are at most some tens of times the result.
    assert found.item() == pytest.approx(expected.item(), rel=2e-4)
    largest = max(float(own.abs().max()) for own in wanted)
    for mine, theirs in zip(training.gradients(), wanted, strict=True):
        assert (mine - theirs).abs().max() <= 2e-4 * largest


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_added_once_to_the_gradient_of_the_mean_loss_however_the_update_is_cut(
    method: str,
) -> None:
    alone = Training(method).moved()
    alone.step(hold=None)
    pull = Training(method).moved()
    add_drift(pull.sft, pull.hold, seed=4, step=3, weight=2.0, micro_batch_tokens=4096)
    # Clipped, both: undone by the norms that are told.
    raw = Training(method).moved()
    raw_plan = replace(plan(4096), max_grad_norm=0.0)
    train_step(raw.sft, raw.optimizer, ROWS[:5], raw_plan, step=3, epoch=1.0)
    expected = [a + b for a, b in zip(raw.gradients(), pull.gradients(), strict=True)]
    largest = max(float(own.abs().max()) for own in expected)
    for budget in (1, 30, 4096):
        training = Training(method).moved()
        metrics = train_step(
            training.sft, training.optimizer, ROWS[:5],
            replace(plan(budget), max_grad_norm=0.0),
            step=3, epoch=1.0, hold=training.hold, drift_weight=2.0,
        )  # fmt: skip
        assert metrics.drift_weight == 2.0
        for mine, theirs in zip(training.gradients(), expected, strict=True):
            assert (mine - theirs).abs().max() <= 1e-6 * largest * 4


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_zero_measures_and_moves_nothing(method: str) -> None:
    with_, without = Training(method), Training(method)
    for step in (1, 2, 3):
        measured = steady(with_.step(step=step, weight=0.0))
        plain = steady(without.step(step=step, hold=None))
        assert measured.pop("drift_kl") >= 0
        assert measured.pop("drift_weight") == 0.0
        assert plain.pop("drift_kl") is plain.pop("drift_weight") is None
        assert measured == plain
    assert_same(with_.tensors(), without.tensors())


def test_before_the_first_update_there_is_no_drift() -> None:
    for method in METHODS:
        assert Training(method).step().drift_kl == pytest.approx(0.0, abs=1e-6)
        assert Training(method).moved().step().drift_kl > 1e-3


def test_making_a_hold_leaves_no_trace_and_asks_the_base() -> None:
    training = Training("lora with dropout")
    training.moved()
    training.sft.train()
    training.model.model.layers[0].eval()
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    modes = [module.training for module in training.sft.modules()]
    stream = torch.get_rng_state()
    again = make_hold(training.sft, TEXTS, max_drift=0.05, micro_batch_tokens=7)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in training.sft.modules()] == modes
    assert all(layer.is_on for layer in lora_layers(training.model).values())
    assert all(p.grad is None for p in training.parameters)
    assert_same({name: p.detach() for name, p in training.model.named_parameters()}, before)
    # Of the base, although adapters have moved, and however the texts are put together.
    assert torch.allclose(again.words.log_probs, training.hold.words.log_probs, atol=1e-5)


def test_the_texts_of_an_update_follow_from_seed_and_step_and_all_take_part() -> None:
    hold = Training().hold
    seen = set()
    for step in range(1, 40):
        places = hold.texts_of(seed=1, step=step)
        assert len(set(places)) == len(places) == TEXTS_PER_UPDATE
        assert places == hold.texts_of(seed=1, step=step)
        seen |= set(places)
    assert seen == set(range(len(TEXTS)))
    assert hold.texts_of(seed=1, step=1) != hold.texts_of(seed=2, step=1)
    few = replace(hold, examples=TEXTS[:2])
    assert sorted(few.texts_of(seed=0, step=1)) == [0, 1]


def run(
    training: Training,
    steps: StepPlan,
    state: RunState,
    folder: Path | None = None,
    hold: Hold | None = None,
) -> tuple[list[dict[str, Any]], RunState]:
    found = []
    for metrics, progress in train_steps(
        training.sft, training.optimizer, ROWS, steps,
        start=state.progress, hold=hold or training.hold,
    ):  # fmt: skip
        found.append(steady(metrics))
        state = state.after(metrics, progress)
        if folder is not None:
            own = folder / f"{progress.step}"
            own.mkdir()
            write_state(own, state, snapshot(training.trained.parameters, training.optimizer))
    return found, state


BEGINNING = RunState(micro_batch_tokens=60)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_behind_any_update_the_run_is_the_undisturbed_one(
    tmp_path: Path, method: str
) -> None:
    undisturbed = Training(method)
    expected, end = run(undisturbed, plan(), BEGINNING, tmp_path)
    weights = [line["drift_weight"] for line in expected]
    assert len(set(weights)) > 4  # it does adapt
    for stop in (1, 4, 7):
        torch.manual_seed(stop)
        resumed = Training(method)  # the hold is made before the weights are loaded
        load_tensors(tmp_path / f"{stop}", resumed.trained.parameters, resumed.optimizer)
        state = read_state(tmp_path / f"{stop}")
        assert state.progress.held is not None
        found, after = run(resumed, plan(), state)
        assert found == expected[stop:]
        assert_same(resumed.tensors(), undisturbed.tensors())
        assert after.progress == end.progress
        fresh = replace(state, progress=replace(state.progress, held=None))
        other, _ = run(resumed, plan(), fresh)
        assert other != found  # what is not loaded would show


def test_another_micro_batch_size_is_the_same_run_but_for_rounding() -> None:
    found = {}
    for budget in (1, 60, 4096):
        found[budget], _ = run(Training(), plan(budget), BEGINNING)
    for budget in (1, 60):
        for line, other in zip(found[budget], found[4096], strict=True):
            for key in ("loss", "grad_norm", "drift_kl", "drift_weight"):
                assert line[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("fails_at", [1, 2])
def test_memory_that_runs_out_while_the_drift_is_measured_rolls_the_update_back(
    monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """Bit for bit the run that used smaller micro-batches from that update on."""
    calls = 0
    right = hold_module.drift_loss

    def failing(*args: Any, **more: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(*args, **more)

    disturbed = Training("lora with dropout").moved()
    monkeypatch.setattr(hold_module, "drift_loss", failing)
    metrics = disturbed.step(30)
    monkeypatch.setattr(hold_module, "drift_loss", right)
    assert metrics.out_of_memory == 1
    expected = Training("lora with dropout").moved()
    wanted = expected.step(metrics.micro_batch_tokens)
    assert {**steady(metrics), "out_of_memory": 0} == steady(wanted)
    assert_same(disturbed.tensors(), expected.tensors())


def test_texts_that_do_not_fit_together_go_one_by_one_though_rows_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = hold_module.drift_loss

    def failing(hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        if len(hidden) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(hidden, *args, **more)

    monkeypatch.setattr(hold_module, "drift_loss", failing)
    training = Training().moved()
    one_row = train_step(
        training.sft, training.optimizer, ROWS[:1], plan(4096),
        step=3, epoch=1.0, hold=training.hold, drift_weight=1.0,
    )  # fmt: skip
    assert one_row.out_of_memory > 0


def bad(training: Training) -> Hold:
    words = training.hold.words
    return replace(
        training.hold, words=replace(words, log_probs=torch.full_like(words.log_probs, math.nan))
    )


def test_a_divergence_that_is_not_finite_is_no_update() -> None:
    training = Training().moved()
    before = training.tensors()
    with pytest.raises(BadNumbers, match="the divergence from the base nan"):
        training.step(hold=bad(training))
    assert_same(training.tensors(), before)
    assert all(parameter.grad is None for parameter in training.parameters)


def test_an_update_that_is_left_out_teaches_the_weight_nothing() -> None:
    training = Training().moved()
    steps = train_steps(
        training.sft, training.optimizer, ROWS, plan(skip_bad_steps=1), hold=bad(training)
    )
    metrics, progress = next(steps)
    assert metrics.skipped
    assert progress.held == beginning()
    with pytest.raises(DuitiError):
        next(steps)


def test_the_weight_grows_above_the_aim_and_shrinks_below_within_bounds() -> None:
    held = beginning()
    for _ in range(30):
        before, held = held, held_after(held, 0.4, max_drift=0.1)
    assert held.multiplier > before.multiplier
    assert held.kl == pytest.approx(0.4, rel=0.01)
    assert weight_of(held, max_drift=0.1) == held.multiplier * held.kl / (AIM * 0.1)
    for _ in range(100):
        before, held = held, held_after(held, 0.01, max_drift=0.1)
    assert held.multiplier < before.multiplier
    steady_ = Held(multiplier=3.0, kl=AIM * 0.1)
    assert held_after(steady_, AIM * 0.1, max_drift=0.1).multiplier == pytest.approx(3.0)
    for kl, bound in ((50.0, MOST), (0.0, LEAST)):
        for _ in range(10_000):
            held = held_after(held, kl, max_drift=0.1)
        assert held.multiplier == bound


@pytest.mark.parametrize(
    ("method", "max_drift", "peak"), [("lora", 0.1, 1e-2), ("full", 0.02, 3e-3)]
)
def test_a_run_that_is_held_ends_below_its_limit_and_one_that_is_not_far_above(
    method: str, max_drift: float, peak: float
) -> None:
    """Rows of random ids, which the base holds unlikely, are learned by heart. It takes some
    updates until the weight is found."""
    steps = replace(plan(4096, steps=90, peak=peak), batch_size=4)

    def trained(*, is_held: bool) -> tuple[float, float]:
        training = Training(method, max_drift=max_drift)
        made = train_steps(
            training.sft, training.optimizer, ROWS[:4], steps,
            hold=training.hold if is_held else None,
        )  # fmt: skip
        losses = [metrics.loss for metrics, _ in made]
        with torch.no_grad():
            drift = float(plain_kl(training.model.eval(), "llama", TEXTS))
        return losses[-1] / losses[0], drift

    learned, drift = trained(is_held=True)
    _, free = trained(is_held=False)
    assert drift <= 1.1 * max_drift
    assert free > 5 * max_drift
    assert learned < 0.8  # it is not held by learning nothing
