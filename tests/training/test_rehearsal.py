"""A rehearsal leaves no trace, and answers memory that runs out."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_models import document, make

from duiti.config import Config
from duiti.data.batch import epoch_updates, micro_batches
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.model.checkpointing import is_checkpointed
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.heaviest import heaviest
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.rehearsal import rehearse
from duiti.training.step import StepPlan, train_steps
from duiti.types import Batch

LENGTHS = (4, 30, 13, 2, 22, 9, 40, 6, 17, 25, 11, 3, 8)
STORE = ExampleStore.from_examples([document(length, n) for n, length in enumerate(LENGTHS, 1)])
DROPOUT = Config(lora={"rank": 4, "dropout": 0.3})


def plan(budget: int = 60, batch_size: int = 5) -> StepPlan:
    rate = RatePlan(peak=1e-2, schedule="cosine", warmup_steps=1, total_steps=4)
    return StepPlan(
        rate=rate, batch_size=batch_size, micro_batch_tokens=budget, max_grad_norm=1.0, seed=0
    )


class Small(SFTModel):
    """A model for which memory runs out beyond so many tokens, unless it is checkpointed."""

    most_tokens = 10**9
    most_when_checkpointed = 10**9

    def forward(self, batch: Batch, **more):
        most = self.most_when_checkpointed if is_checkpointed(self) else self.most_tokens
        loss, weight_sum = super().forward(batch, **more)
        if batch.num_tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss, weight_sum


def made(config: Config = DROPOUT) -> tuple[Small, list[torch.nn.Parameter]]:
    model = copy.deepcopy(make("llama"))
    trained = choose_trained(model, config)
    return Small(model), list(trained.parameters.values())


def test_nothing_is_changed() -> None:
    sft, parameters = made()
    sft.eval()
    before = {name: tensor.clone() for name, tensor in sft.state_dict().items()}
    buffers = {name: buffer.clone() for name, buffer in sft.named_buffers()}
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    done = rehearse(sft, parameters, STORE, plan(), may_checkpoint=True)
    assert done.changes == {}
    assert done.peak_bytes > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in sft.state_dict().items())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in sft.named_buffers())
    assert all(parameter.grad is None for parameter in sft.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert not sft.training


def test_a_run_with_dropout_is_the_same_with_and_without() -> None:
    found = []
    for is_rehearsed in (False, True):
        sft, parameters = made()
        optimizer = make_optimizer(parameters, weight_decay=0.0)
        torch.manual_seed(0)
        if is_rehearsed:
            rehearse(sft, parameters, STORE, plan(), may_checkpoint=True)
        losses = [metrics.loss for metrics, _ in train_steps(sft, optimizer, STORE, plan())]
        found.append((losses, [parameter.detach().clone() for parameter in parameters]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_micro_batches_are_halved_until_they_fit() -> None:
    sft, parameters = made()
    sft.most_tokens = 45  # the longest row has 40
    done = rehearse(sft, parameters, STORE, plan(), may_checkpoint=True)
    assert set(done.changes) == {"micro_batch_tokens"}
    assert 20 < done.changes["micro_batch_tokens"] <= 45  # a longer row goes alone
    assert not is_checkpointed(sft)


def test_then_activations_are_checkpointed() -> None:
    sft, parameters = made()
    sft.most_tokens = 20
    done = rehearse(sft, parameters, STORE, plan(), may_checkpoint=True)
    assert done.changes["activation_checkpointing"] is True
    assert is_checkpointed(sft)


@pytest.mark.parametrize("may_checkpoint", [True, False])
def test_where_nothing_helps_the_longest_row_is_named(may_checkpoint: bool) -> None:
    sft, parameters = made()
    sft.most_tokens = sft.most_when_checkpointed = 20
    with pytest.raises(DuitiError, match="out of memory") as caught:
        rehearse(sft, parameters, STORE, plan(), may_checkpoint=may_checkpoint)
    assert "40 tokens" in caught.value.why
    assert all(parameter.grad is None for parameter in parameters)


def test_another_error_is_not_taken_for_want_of_memory() -> None:
    sft, parameters = made()
    sft.logit_shape = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        rehearse(sft, parameters, STORE, plan(), may_checkpoint=True)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    budget=st.integers(50, 120),
)
def test_no_micro_batch_of_the_run_has_many_more_tokens(
    lengths: list[int], batch_size: int, budget: int
) -> None:
    """Trained tokens and squares of lengths count a quarter each beside tokens, so what is chosen
    has at least half of the tokens of any other of its kind."""
    sizes = np.array(lengths, np.int32)
    own = plan(budget, batch_size)
    chosen = heaviest(sizes, sizes // 2, own)
    firsts, others = [], []
    for epoch in range(4 * len(lengths)):
        updates = epoch_updates(len(lengths), batch_size, seed=0, epoch=epoch)
        for rows in updates:
            if len(firsts) < own.total_steps:
                first, *rest = micro_batches(rows, sizes, budget=budget)
                firsts.append(sizes[first].sum())
                others += [sizes[part].sum() for part in rest]
    assert chosen[0].is_first
    assert 2 * sizes[list(chosen[0].rows)].sum() >= max(firsts)
    assert len(chosen) == min(2, len(firsts) + len(others))
    if others:
        assert not chosen[1].is_first
        assert 2 * sizes[list(chosen[1].rows)].sum() >= max(others)
