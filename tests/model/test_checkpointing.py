"""Activation checkpointing changes no bit of the result, and what it keeps is less."""

from __future__ import annotations

import copy

import pytest
import torch
from made_models import documents, make
from torch import Tensor

from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import UsageError
from duiti.model import short_attention
from duiti.model.checkpointing import can_checkpoint, checkpoint_activations, is_checkpointed
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.shapes import LiveBytes

LENGTHS = (5, 23, 1, 12)
LORA = Config(lora={"rank": 4})
METHODS = {
    "lora": LORA,
    "lora with dropout": Config(lora={"rank": 4, "dropout": 0.3}),
    "last-n": Config(method="last-n", last_n={"layers": 1}),
    "full": Config(method="full"),
}
NAMES = ["llama", "qwen2-biased", "qwen3-tied", "mistral-sliding", "gemma2-capped", "phi3-fused",
         "gpt2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _shared_mask() -> None:
    """A megabyte that attention makes once for all calls is there before anything is counted."""
    short_attention._ahead()


def made(name: str, config: Config, dtype: torch.dtype, *, is_packed: bool = True) -> SFTModel:
    model = copy.deepcopy(make(name))
    choose_trained(model, config)
    return SFTModel(model, compute_dtype=dtype, is_packed=is_packed).train()


def result(sft: SFTModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and all gradients."""
    sft.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss, _ = sft(collate(documents(LENGTHS)))
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in sft.named_parameters() if p.grad is not None}


def assert_same(sft: SFTModel) -> None:
    loss, gradients = result(sft)
    assert not is_checkpointed(sft)
    checkpoint_activations(sft)
    assert is_checkpointed(sft)
    again, others = result(sft)
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert any(gradient.any() for gradient in gradients.values())
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_the_same_bit_for_bit(name: str) -> None:
    assert_same(made(name, LORA, torch.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_they_are_for_every_method_and_in_half_precision(
    method: str, dtype: torch.dtype
) -> None:
    assert_same(made("llama", METHODS[method], dtype))


def test_so_they_are_where_documents_run_one_by_one() -> None:
    assert_same(made("llama", LORA, torch.float32, is_packed=False))


def test_less_is_kept() -> None:
    sft = made("llama", LORA, torch.float32)

    def kept_bytes() -> int:
        batch = collate(documents((60, 60)))
        with LiveBytes() as live:
            loss, _ = sft(batch)
            found = live.now_bytes
        del loss
        return found

    before = kept_bytes()
    checkpoint_activations(sft)
    assert kept_bytes() < 0.6 * before


def test_an_architecture_that_cannot_do_it_is_named() -> None:
    sft = made("llama", LORA, torch.float32)
    sft.model.supports_gradient_checkpointing = False
    assert not can_checkpoint(sft)
    with pytest.raises(UsageError, match="LlamaForCausalLM does not support it"):
        checkpoint_activations(sft)
