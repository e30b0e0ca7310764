"""What SFTModel returns, and the rows that prove whether documents may run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from duiti.data.batch import collate, lengths_of
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.types import Example, Origin


def row(length: int, weights: Sequence[float] | None = None) -> Example:
    ids = np.random.default_rng(length).integers(4, 440, length).astype(np.int32)
    labels = ids.copy()
    labels[: length // 2] = -100
    own = None if weights is None else np.resize(np.array(weights, np.float32), length)
    return Example(input_ids=ids, labels=labels, origin=Origin("f", length), weights=own)


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llama_dir).eval()


@torch.no_grad()
def test_without_weights_the_divisor_is_a_whole_number_of_terms(model: PreTrainedModel) -> None:
    loss_sum, weight_sum = SFTModel(model)(collate([row(9), row(4)]))
    assert (loss_sum.dtype, loss_sum.shape) == (torch.float32, ())
    assert weight_sum == 5 + 2
    assert isinstance(weight_sum, int)


@torch.no_grad()
def test_with_weights_the_divisor_is_their_sum_in_float64(model: PreTrainedModel) -> None:
    """In float32 the small ones would be lost beside the large one."""
    loss_sum, weight_sum = SFTModel(model)(collate([row(9, [1.0]), row(4, [2.0**25])]))
    assert weight_sum == 2 * 2.0**25 + 5
    assert isinstance(weight_sum, float)
    alone = [SFTModel(model)(collate([row(n)]))[0].item() for n in (9, 4)]
    assert loss_sum.item() == pytest.approx(alone[0] + 2.0**25 * alone[1], rel=1e-5)


@pytest.mark.parametrize("weight", [1e-9, 1e9])
def test_small_or_large_weights_do_not_change_what_can_be_packed(
    llama_dir: Path, weight: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    batch = collate([row(9, [weight]), row(12, [weight])])
    assert why_alone(model, batch) is None
    model.lm_head.register_forward_hook(lambda module, given, output: output * 1.5)
    with pytest.raises(DuitiError, match="cannot be reproduced"):
        why_alone(model, batch)


def windowed() -> PreTrainedModel:
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=440,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=16,
        )
    )


@pytest.mark.parametrize("lengths", [(), (7,), (7, 7, 7), (40, 9, 20, 5, 17, 16, 17, 9)])
def test_a_probe_is_the_two_shortest_rows_and_the_shortest_beyond_the_window(
    model: PreTrainedModel, lengths: tuple[int, ...]
) -> None:
    examples = [replace(row(n), origin=Origin("f", line)) for line, n in enumerate(lengths)]
    by_length = sorted(examples, key=len)
    shortest = by_length[:2] if len(by_length) > 1 else by_length * 2
    beyond = [example for example in by_length if len(example) > 16][:1]
    for found, expected in (
        (probe_rows(model, examples), shortest),
        (probe_rows(windowed(), examples), [*shortest, *beyond]),
    ):
        assert [example.origin for example in found] == [example.origin for example in expected]


class Unread(Sequence[Example]):
    """A store whose examples are dear: it gives three of them and no more."""

    lengths = np.arange(100_000, 0, -1, dtype=np.int32)
    given = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError("all of them are read")

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        self.given += 1
        return row(int(self.lengths[index]))


def test_with_lengths_at_hand_only_the_chosen_rows_are_read() -> None:
    store = Unread()
    found = probe_rows(windowed(), store, lengths=lengths_of(store))
    assert [len(example) for example in found] == [1, 2, 17]
    assert store.given == 3
