"""One update against plain transformers, and the loop that makes them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import DuitiError
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.optim import (
    CoolDown,
    RatePlan,
    cooled_down,
    learning_rate_at,
    make_optimizer,
)
from duiti.training.step import (
    StepMetrics,
    StepPlan,
    is_done,
    train_step,
    train_steps,
)
from duiti.types import Example, Origin, Progress

LENGTHS = (4, 90, 13, 2)  # of very different lengths, and differently much of each is trained


def row(length: int, given: int, number: int) -> Example:
    ids = np.random.default_rng(number).integers(4, 440, length).astype(np.int32)
    labels = ids.copy()
    labels[:given] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("rows.jsonl", number + 1))


def rows(lengths: Sequence[int] = LENGTHS) -> list[Example]:
    return [row(length, length // 2, number) for number, length in enumerate(lengths)]


def weighted(examples: Sequence[Example], *values: Sequence[float] | None) -> list[Example]:
    """Examples with these weights of their trained tokens, repeated over them; None: none given."""
    found = []
    for example, own in zip(examples, values, strict=True):
        weights = None if own is None else np.resize(np.array(own, np.float32), len(example))
        found.append(replace(example, weights=weights))
    return found


def mixed() -> list[Example]:
    return weighted(rows(), [3.0, 0.5], [0.1, 2.0, 7.0], None, [5.0])


def plan(**more: float) -> StepPlan:
    values = {"batch_size": 4, "micro_batch_tokens": 4096, "max_grad_norm": 0.0, "seed": 0, **more}
    rate = RatePlan(peak=1e-3, schedule="constant", warmup_steps=0, total_steps=5)
    return StepPlan(rate=rate, **values)


def trained(
    folder: Path, config: Config | None = None
) -> tuple[PreTrainedModel, SFTModel, torch.optim.AdamW]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = choose_trained(model, config or Config(method="full"))
    return model, SFTModel(model), make_optimizer(found.parameters.values(), weight_decay=0.0)


def plain_mean_loss(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[Tensor, int]:
    """What one writes without a library: every row alone, logits[:-1] against ids[1:]."""
    total, weight_sum, count = torch.zeros(()), 0.0, 0
    for example in examples:
        ids = torch.tensor(example.input_ids.astype(np.int64))
        labels = torch.tensor(example.labels.astype(np.int64))[1:]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        is_trained = labels != -100
        weights = torch.ones(len(ids))
        if example.weights is not None:
            weights = torch.tensor(example.weights)
        weights = weights[1:][is_trained]
        losses = cross_entropy(logits[is_trained], labels[is_trained], reduction="none")
        total = total + (weights * losses).sum()
        weight_sum += weights.double().sum().item()
        count += int(is_trained.sum())
    return total / weight_sum, count


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["full", "last-n", "lora"])
@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_the_first_loss_is_that_of_plain_transformers(
    request: pytest.FixtureRequest, which: str, method: str
) -> None:
    folder = request.getfixturevalue(which)
    _model, sft, optimizer = trained(folder, Config(method=method))
    with torch.no_grad():
        expected, count = plain_mean_loss(AutoModelForCausalLM.from_pretrained(folder), rows())
    metrics = train_step(sft, optimizer, rows(), plan(), step=1, epoch=1.0)
    # Hidden states agree to about 1e-6, and cross-entropy is 2-Lipschitz in logits of order 10.
    assert metrics.loss == pytest.approx(expected.item(), abs=1e-5)
    assert metrics.supervised_tokens == count == 2 + 45 + 7 + 1
    assert metrics.num_tokens == sum(LENGTHS)


@pytest.mark.parametrize("budget", [1, 20, 95, 4096])
@pytest.mark.parametrize("given_rows", [rows(), mixed()], ids=["plain", "weighted"])
def test_the_gradient_of_an_update_is_that_of_its_mean_loss_however_it_is_cut(
    llama_dir: Path, given_rows: list[Example], budget: int
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(llama_dir)
    loss, count = plain_mean_loss(plain, given_rows)
    loss.backward()
    expected = gradients(plain)
    model, sft, optimizer = trained(llama_dir)
    steps = plan(micro_batch_tokens=budget)
    metrics = train_step(sft, optimizer, given_rows, steps, step=1, epoch=1.0)
    found = gradients(model)
    assert metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert metrics.supervised_tokens == count
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-7, name
    norm = torch.stack([g.double().norm() for g in expected.values()]).norm()
    assert metrics.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("given_rows", [rows(), mixed()], ids=["plain", "weighted"])
def test_four_parts_two_parts_and_one_part_give_the_same_gradient(
    qwen3_dir: Path, given_rows: list[Example], method: str
) -> None:
    found = []
    for budget in (2, 95, 4096):
        model, sft, optimizer = trained(qwen3_dir, Config(method=method))
        metrics = train_step(
            sft, optimizer, given_rows, plan(micro_batch_tokens=budget), step=1, epoch=1.0
        )
        found.append((metrics, gradients(model)))
    one = found[-1]
    largest = max(g.abs().max() for g in one[1].values())
    for metrics, grads in found[:-1]:
        assert metrics.loss == pytest.approx(one[0].loss, rel=1e-6)
        assert (metrics.supervised_tokens, metrics.num_tokens) == (
            one[0].supervised_tokens,
            one[0].num_tokens,
        )
        for name, grad in one[1].items():
            assert (grads[name] - grad).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("given_rows", [rows(), mixed()], ids=["plain", "weighted"])
def test_an_update_tells_the_loss_of_each_row_in_its_order_however_it_is_cut(
    qwen3_dir: Path, given_rows: list[Example], method: str
) -> None:
    """The plain mean over a row's tokens, from plain transformers, every row alone."""
    plain = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    with torch.no_grad():
        expected = [plain_mean_loss(plain, [own])[0].item() for own in rows()]
    assert max(expected) - min(expected) > 0.1  # a wrong order shows
    found = []
    for budget in (1, 20, 95, 4096):
        _, sft, optimizer = trained(qwen3_dir, Config(method=method))
        steps = plan(micro_batch_tokens=budget)
        metrics = train_step(sft, optimizer, given_rows, steps, step=1, epoch=1.0)
        assert metrics.row_losses == pytest.approx(expected, abs=1e-5)
        found.append(metrics.row_losses)
    # Packed or alone, hidden states differ by their rounding, some 1e-7 of logits of order 10.
    for own in found[1:]:
        assert own == pytest.approx(found[0], abs=1e-6 * 10)


def test_the_losses_of_rows_add_up_to_the_loss_of_the_update(llama_dir: Path) -> None:
    _, sft, optimizer = trained(llama_dir)
    metrics = train_step(sft, optimizer, rows(), plan(), step=1, epoch=1.0)
    counts = [own.num_supervised for own in rows()]
    total = sum(loss * count for loss, count in zip(metrics.row_losses, counts, strict=True))
    assert total / sum(counts) == pytest.approx(metrics.loss, rel=1e-6)


def test_a_row_without_a_trained_token_has_no_loss(llama_dir: Path) -> None:
    nothing = row(7, 7, 9)
    _, sft, optimizer = trained(llama_dir)
    steps = plan(micro_batch_tokens=20)
    metrics = train_step(sft, optimizer, [rows()[0], nothing, rows()[2]], steps, step=1, epoch=1.0)
    assert [np.isfinite(loss) for loss in metrics.row_losses] == [True, False, True]
    assert metrics.row_losses[::2] == pytest.approx(
        [
            train_step(*trained(llama_dir)[1:], [own], steps, step=1, epoch=1.0).loss
            for own in (rows()[0], rows()[2])
        ],
        abs=1e-5,
    )


@pytest.mark.parametrize("budget", [2, 95, 4096])
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.25])
def test_a_common_weight_changes_no_bit(qwen3_dir: Path, factor: float, budget: int) -> None:
    """Powers of two, so that no product is rounded: then not even Adam sees a difference."""
    steps = plan(micro_batch_tokens=budget, max_grad_norm=0.5)
    plain, sft, optimizer = trained(qwen3_dir)
    expected = train_step(sft, optimizer, rows(), steps, step=1, epoch=1.0)
    model, sft, optimizer = trained(qwen3_dir)
    same = weighted(rows(), *[[factor]] * len(LENGTHS))
    found = train_step(sft, optimizer, same, steps, step=1, epoch=1.0)
    assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)
    assert found.supervised_tokens == expected.supervised_tokens
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_weights_the_divisor_is_the_number_of_terms_to_the_bit(llama_dir: Path) -> None:
    """The update spelt out: sums over the parts, one product with 1 / number of terms."""
    reference, sft, _ = trained(llama_dir)
    loss_sum, number = torch.zeros(()), 0
    for part in ([1], [2, 0, 3]):
        loss, _ = sft(collate([rows()[index] for index in part]))
        loss.backward()
        loss_sum += loss.detach()
        number += sum(rows()[index].num_supervised for index in part)
    expected = {name: grad * (1.0 / number) for name, grad in gradients(reference).items()}
    model, sft, optimizer = trained(llama_dir)
    steps = plan(micro_batch_tokens=90)
    metrics = train_step(sft, optimizer, rows(), steps, step=1, epoch=1.0)
    assert metrics.loss == (loss_sum / number).item()
    for name, grad in gradients(model).items():
        assert torch.equal(grad, expected[name]), name


def test_a_span_of_weight_three_is_that_span_three_times(llama_dir: Path) -> None:
    """A row of two answers, of which the second counts thrice; the reference repeats the row and
    trains in the repetitions that answer only. Plain transformers, no weight anywhere."""
    both = row(30, 10, 0)
    both.labels[15:20] = -100
    second = replace(both, labels=both.labels.copy())
    second.labels[:20] = -100
    weights = np.ones(30, np.float32)
    weights[20:] = 3.0
    other = row(13, 6, 1)

    plain = AutoModelForCausalLM.from_pretrained(llama_dir)
    loss, count = plain_mean_loss(plain, [both, second, second, other])
    loss.backward()
    assert count == 15 + 2 * 10 + 7
    model, sft, optimizer = trained(llama_dir)
    given_rows = [replace(both, weights=weights), other]
    metrics = train_step(sft, optimizer, given_rows, plan(), step=1, epoch=1.0)
    assert metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert metrics.supervised_tokens == 15 + 7  # terms, not repetitions
    for name, grad in gradients(plain).items():
        found = gradients(model)[name]
        assert (found - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-7, name


def test_weights_of_tokens_that_are_not_trained_do_not_count(llama_dir: Path) -> None:
    found = []
    for elsewhere in (0.0, 1e6):
        model, sft, optimizer = trained(llama_dir)
        given_rows = mixed()
        for example in given_rows:
            if example.weights is not None:
                example.weights[example.labels == -100] = elsewhere
        metrics = train_step(sft, optimizer, given_rows, plan(), step=1, epoch=1.0)
        found.append((metrics.loss, gradients(model)))
    assert found[0][0] == found[1][0]
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name])


def test_a_mean_of_means_would_be_told_apart(llama_dir: Path) -> None:
    """Guards the tests above: with these rows the wrong denominator shows."""
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with torch.no_grad():
        right = plain_mean_loss(model, rows())[0]
        wrong = torch.stack([plain_mean_loss(model, [r])[0] for r in rows()]).mean()
        of_parts = torch.stack([plain_mean_loss(model, [r])[0] for r in mixed()]).mean()
        assert abs(plain_mean_loss(model, mixed())[0] - right) > 1e-2
        assert abs(plain_mean_loss(model, mixed())[0] - of_parts) > 1e-2
    assert abs(right - wrong) > 1e-2


def test_the_update_is_that_of_plain_transformers_and_torch(llama_dir: Path) -> None:
    """Three updates with clipping and decay: weights against a loop written by hand."""
    steps = replace(plan(max_grad_norm=0.5), rate=RatePlan(
        peak=2e-3, schedule="linear", warmup_steps=1, total_steps=3
    ))  # fmt: skip
    model, sft, _ = trained(llama_dir)
    optimizer = make_optimizer(model.parameters(), weight_decay=0.1)
    plain = AutoModelForCausalLM.from_pretrained(llama_dir).train()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, foreach=False)
    for step in (1, 2, 3):
        metrics = train_step(sft, optimizer, rows(), steps, step=step, epoch=1.0)
        for group in reference.param_groups:
            group["lr"] = {1: 2e-3, 2: 2e-3, 3: 1e-3}[step]
        reference.zero_grad()
        loss, _ = plain_mean_loss(plain, rows())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert norm > 0.5  # clipping is at work
        assert metrics.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
        reference.step()
    # Adam divides by the gradient's own size, so a gradient near eps = 1e-8 moves by noise: at most
    # 2 rates in a step, for few entries. In the mean the two agree to a thousandth of a rate.
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours - theirs).abs().mean() <= 2e-6, name


def test_clipped_gradients_are_those_of_torch(llama_dir: Path) -> None:
    model, sft, optimizer = trained(llama_dir)
    train_step(sft, optimizer, rows(), plan(max_grad_norm=0.0), step=1, epoch=1.0)
    raw = gradients(model)
    for limit in (0.01, 1e6):
        model, sft, optimizer = trained(llama_dir)
        metrics = train_step(sft, optimizer, rows(), plan(max_grad_norm=limit), step=1, epoch=1.0)
        parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in raw.values()]
        for parameter, grad in zip(parameters, raw.values(), strict=True):
            parameter.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        assert metrics.grad_norm == norm.item()  # before clipping
        for parameter, found in zip(parameters, gradients(model).values(), strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, found)


def test_every_row_is_used_in_every_epoch_and_the_last_update_is_short(llama_dir: Path) -> None:
    examples = rows([7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    _, sft, optimizer = trained(llama_dir, Config(method="lora", lora={"rank": 2}))
    seen: list[list[int]] = []
    sft.register_forward_pre_hook(lambda _, given: seen.append(lengths_of(given[0].cu_seqlens)))
    steps = StepPlan(
        rate=RatePlan(peak=1e-3, schedule="cosine", warmup_steps=1, total_steps=6),
        batch_size=4, micro_batch_tokens=4096, max_grad_norm=1.0, seed=3,
    )  # fmt: skip
    found = list(train_steps(sft, optimizer, examples, steps))
    assert [len(lengths) for lengths in seen] == [4, 4, 2, 4, 4, 2]
    for epoch in (seen[:3], seen[3:]):
        assert Counter(n for part in epoch for n in part) == Counter(range(7, 17))
    assert seen[:3] != seen[3:]  # another order in another epoch
    for (metrics, _), lengths in zip(found, seen, strict=True):
        assert metrics.num_tokens == sum(lengths)
        assert metrics.supervised_tokens == sum(n - n // 2 for n in lengths)
    assert [metrics.step for metrics, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [metrics.epoch for metrics, _ in found] == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    assert [metrics.lr for metrics, _ in found] == [
        learning_rate_at(step, steps.rate) for step in range(1, 7)
    ]
    last = found[-1][1]
    assert (last.step, last.cursor) == (6, 20)
    assert last.num_tokens == 2 * sum(range(7, 17))
    assert last.supervised_tokens == 2 * sum(n - n // 2 for n in range(7, 17))


def lengths_of(borders: Sequence[int]) -> list[int]:
    return [end - start for start, end in itertools.pairwise(borders)]


def test_fewer_updates_than_an_epoch_stop_there(llama_dir: Path) -> None:
    _, sft, optimizer = trained(llama_dir)
    steps = StepPlan(
        rate=RatePlan(peak=1e-3, schedule="linear", warmup_steps=0, total_steps=2),
        batch_size=1, micro_batch_tokens=64, max_grad_norm=1.0, seed=0,
    )  # fmt: skip
    assert len(list(train_steps(sft, optimizer, rows(), steps))) == 2


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_not_finite_stops_with_the_rows_and_changes_nothing(
    llama_dir: Path, method: str
) -> None:
    model, sft, optimizer = trained(llama_dir, Config(method=method))
    train_step(sft, optimizer, rows(), plan(), step=1, epoch=1.0)
    with torch.no_grad():  # one bad number, in what nobody trains or somebody does
        model.get_input_embeddings().weight[int(rows()[2].input_ids[0])] = float("inf")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {k: v.clone() for s in optimizer.state.values() for k, v in s.items()}
    with pytest.raises(DuitiError) as caught:
        train_step(sft, optimizer, rows(), plan(), step=2, epoch=1.0)
    assert "step 2" in caught.value.what
    for number in (1, 2, 3, 4):
        assert f"rows.jsonl:{number}" in caught.value.why
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    after = {k: v for s in optimizer.state.values() for k, v in s.items()}
    assert all(torch.equal(after[k], value) for k, value in state.items())


def test_a_gradient_that_is_not_finite_stops_too(llama_dir: Path) -> None:
    """The loss is fine, its gradient overflows on the way back."""
    model, sft, optimizer = trained(llama_dir)
    model.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(DuitiError, match="gradient's norm"):
        train_step(sft, optimizer, rows(), plan(), step=1, epoch=1.0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_small_rates_move_what_is_trained_on_a_bfloat16_base(llama_dir: Path) -> None:
    """At 1e-5 a bfloat16 weight of 0.1 would not move by a bit; float32 does."""
    model = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16)
    found = choose_trained(model, Config(method="last-n", last_n={"layers": 1}))
    optimizer = make_optimizer(found.parameters.values(), weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sft = SFTModel(model, compute_dtype=torch.bfloat16)
    steps = replace(plan(), rate=RatePlan(
        peak=1e-5, schedule="constant", warmup_steps=0, total_steps=1
    ))  # fmt: skip
    train_step(sft, optimizer, rows(), steps, step=1, epoch=1.0)
    for name, parameter in model.named_parameters():
        moved = (parameter != before[name]).float().mean()
        assert (moved > 0.9) == (name in found.parameters), name


# A budget of time, on a clock that only updates (and the caller) move.


class Clock:
    def __init__(self, sft: SFTModel, update_s: float = 10.0) -> None:
        self.now_s, self.update_s, self.calls = 12345.0, update_s, 0
        sft.register_forward_pre_hook(self._pass)

    def _pass(self, *_: object) -> None:
        self.calls += 1
        self.now_s += self.update_s

    def __call__(self) -> float:
        return self.now_s


def timed(*, budget_s: float | None, total: int = 1000) -> StepPlan:
    rate = RatePlan(peak=1.0, schedule="linear", warmup_steps=0, total_steps=total,
                    budget_s=budget_s)  # fmt: skip
    return replace(plan(), rate=replace(rate, peak=1e-4))


def clocked(folder: Path, update_s: float = 10.0) -> tuple[SFTModel, torch.optim.AdamW, Clock]:
    _, sft, optimizer = trained(folder, Config(lora={"rank": 2}))
    return sft, optimizer, Clock(sft, update_s)


Found = list[tuple[StepMetrics, Progress]]


@pytest.mark.parametrize(
    ("budget_s", "expected"), [(100.0, 10), (109.0, 10), (99.0, 9), (5.0, 1), (1e9, 12)]
)
def test_the_last_update_is_the_one_behind_which_another_would_not_fit(
    llama_dir: Path, budget_s: float, expected: int
) -> None:
    sft, optimizer, clock = clocked(llama_dir)
    steps = timed(budget_s=budget_s, total=12)
    found: Found = list(train_steps(sft, optimizer, rows(), steps, clock=clock))
    assert len(found) == expected
    assert [is_done(progress, steps) for _, progress in found] == [False] * (expected - 1) + [True]
    assert [progress.spent_s for _, progress in found] == [10.0 * n for n in range(1, expected + 1)]
    # Annealed: the rate of the last update is that of one that has one more to go, or less.
    total = min(12, budget_s / 10)
    assert found[-1][0].lr <= 1e-4 * max(1.0, 1.999) / max(1.0, total)
    lrs = [metrics.lr for metrics, _ in found]
    assert lrs == sorted(lrs, reverse=True)
    assert lrs == [
        learning_rate_at(n, steps.rate, spent_s=10.0 * (n - 1)) for n in range(1, expected + 1)
    ]


def test_time_of_the_caller_and_of_earlier_sessions_counts(llama_dir: Path) -> None:
    sft, optimizer, clock = clocked(llama_dir)
    steps = timed(budget_s=200.0)
    found: Found = []
    progress = Progress()
    for metrics, progress in train_steps(sft, optimizer, rows(), steps, clock=clock):
        found.append((metrics, progress))
        if progress.step == 3:
            clock.now_s += 50.0  # validation
        if progress.step == 6:
            break  # a signal
    assert progress.spent_s == 6 * 10 + 50
    assert progress.typical_s == 10.0  # one long break is not typical
    clock.now_s += 1e6  # until somebody goes on
    going = train_steps(sft, optimizer, rows(), steps, start=progress, clock=clock)
    found += list(going)
    assert [metrics.step for metrics, _ in found] == list(range(1, 16))
    assert found[-1][1].spent_s == 200.0
    assert found[6][0].lr == 1e-4 * (1 - 110 / 200)
    assert found[-1][0].lr == pytest.approx(1e-4 * 10 / 200)
    assert list(train_steps(sft, optimizer, rows(), steps, start=found[-1][1], clock=clock)) == []


def test_an_update_that_is_promised_is_made_even_if_the_caller_takes_all_the_time(
    llama_dir: Path,
) -> None:
    sft, optimizer, clock = clocked(llama_dir)
    steps = timed(budget_s=100.0)
    found: Found = []
    for item in train_steps(sft, optimizer, rows(), steps, clock=clock):
        found.append(item)
        clock.now_s += 500.0 if len(found) == 4 else 0.0
    assert [is_done(progress, steps) for _, progress in found] == [False] * 4 + [True]
    assert found[-1][0].lr == 0.0


def test_a_clock_that_goes_back_gives_no_time_back(llama_dir: Path) -> None:
    sft, optimizer, clock = clocked(llama_dir)
    spent = []
    for _, progress in train_steps(sft, optimizer, rows(), timed(budget_s=60.0), clock=clock):
        spent.append(progress.spent_s)
        clock.now_s -= 1000.0 if len(spent) == 2 else 0.0
        assert len(spent) < 200
        if len(spent) == 5:
            break
    assert spent == sorted(spent)


def test_without_a_budget_no_clock_changes_anything(llama_dir: Path) -> None:
    found = []
    for update_s in (0.0, 1e6):
        sft, optimizer, clock = clocked(llama_dir, update_s)
        steps = timed(budget_s=None, total=3)
        made = list(train_steps(sft, optimizer, rows(), steps, clock=clock))
        found.append([(m.loss, m.grad_norm, m.lr, p) for m, p in made])
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_run_that_its_budget_ended_can_still_be_cooled_down(llama_dir: Path) -> None:
    """Whether it was the time or a signal: the cool-down is so many updates, and then it ends."""
    sft, optimizer, clock = clocked(llama_dir)
    steps = timed(budget_s=100.0)
    going = train_steps(sft, optimizer, rows(), steps, clock=clock)
    metrics, progress = [next(going) for _ in range(4)][-1]
    cool_down = CoolDown(start_step=4, num_steps=3, rate=metrics.lr)
    steps = replace(steps, rate=cooled_down(steps.rate, cool_down))
    clock.now_s += 1e6
    found = list(train_steps(sft, optimizer, rows(), steps, start=progress, clock=clock))
    assert [metrics.step for metrics, _ in found] == [5, 6, 7]
    expected = [metrics.lr * share for share in (0.75, 0.5, 0.25)]
    assert [metrics.lr for metrics, _ in found] == pytest.approx(expected)
    assert is_done(found[-1][1], steps)
