"""What is counted without numbers is what real tensors take."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from made_models import CONFIGS, make
from torch._subclasses.fake_tensor import FakeTensor

from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import UsageError
from duiti.model import short_attention
from duiti.model.checkpointing import checkpoint_activations
from duiti.model.freeze import choose_trained
from duiti.model.load import ModelSource
from duiti.model.sft_model import SFTModel
from duiti.training.shapes import CannotTell, LiveBytes, MicroBatch, ShapeModel
from duiti.types import IGNORE_INDEX, Example, Origin

SOURCE = ModelSource("made", "made", True)
BATCH = MicroBatch(lengths=(20, 40, 7), supervised=(9, 30, 3))
SETTINGS = {"device": "cpu", "dtype": "float32"}
METHODS = {
    "lora": Config(**SETTINGS, lora={"rank": 4}),
    "last-n": Config(**SETTINGS, method="last-n", last_n={"layers": 1}),
    "full": Config(**SETTINGS, method="full"),
    "lora, half": Config(device="cpu", dtype="bfloat16", lora={"rank": 4}),
}
NAMES = ["llama", "qwen2-biased", "qwen3-tied", "mistral-sliding", "gemma2-capped", "phi3-fused",
         "gpt2"]  # fmt: skip
# Masks that attention makes from numbers alone, and keeps from one call to the next, are made by
# whoever calls first: some kilobytes here.
SHARED_BYTES = 16_000


@pytest.fixture(autouse=True)
def _shared_mask() -> None:
    """A megabyte that attention makes once for all calls is there before anything is counted."""
    short_attention._ahead()


def counted(
    name: str, config: Config, *, is_checkpointed: bool = False, is_first: bool = True
) -> int:
    shapes = ShapeModel(SOURCE, CONFIGS[name](), config, is_checkpointed=is_checkpointed)
    need = shapes.need(BATCH, is_first=is_first)
    return need.activations_bytes + need.trained_bytes // 3


def real(name: str, config: Config, *, is_checkpointed: bool = False, is_first: bool = True) -> int:
    """The same, of real tensors: the most that is alive beside the weights."""
    dtype = getattr(torch, config.dtype)
    model = copy.deepcopy(make(name)).to(dtype)
    trained = choose_trained(model, config).parameters.values()
    sft = SFTModel(model, compute_dtype=dtype).train()
    if is_checkpointed:
        checkpoint_activations(sft)
    batch = collate([example(*pair) for pair in zip(BATCH.lengths, BATCH.supervised, strict=True)])
    with torch.no_grad():
        sft(batch)  # masks that are kept from one call to the next are there afterwards
    live = LiveBytes()
    live.leave_out([*sft.parameters(), *sft.buffers()])
    with live:
        for parameter in trained:
            parameter.grad = None if is_first else torch.zeros_like(parameter)
        sft(batch)[0].backward()
    return live.peak_bytes


def example(length: int, supervised: int) -> Example:
    labels = np.full(length, IGNORE_INDEX, np.int32)
    labels[length - supervised :] = 5
    return Example(input_ids=np.full(length, 5, np.int32), labels=labels, origin=Origin("", 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_is_counted_as_it_is(name: str) -> None:
    expected = real(name, METHODS["lora"])
    assert counted(name, METHODS["lora"]) == pytest.approx(expected, abs=SHARED_BYTES)
    assert expected > 10 * SHARED_BYTES


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_every_method_is_counted_as_it_is(
    method: str, is_first: bool, is_checkpointed: bool
) -> None:
    how = {"is_first": is_first, "is_checkpointed": is_checkpointed}
    expected = real("llama", METHODS[method], **how)
    assert counted("llama", METHODS[method], **how) == pytest.approx(expected, abs=SHARED_BYTES)


def test_what_autograd_keeps_is_within_the_count() -> None:
    """By PyTorch's own hooks: a lower bound that knows nothing of how we count."""
    model = copy.deepcopy(make("llama"))
    choose_trained(model, METHODS["lora"])
    sft = SFTModel(model).train()
    own = {p.untyped_storage().data_ptr() for p in sft.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate([example(*pair) for pair in zip(BATCH.lengths, BATCH.supervised, strict=True)])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = sft(batch)
    del loss
    count = counted("llama", METHODS["lora"])
    assert 0.4 * count < sum(kept.values()) <= count


def test_weights_and_optimizer_are_counted_by_their_numbers() -> None:
    need = ShapeModel(SOURCE, CONFIGS["qwen3-tied"](), METHODS["full"]).need(BATCH, is_first=True)
    model = make("qwen3-tied")
    numbers = sum(p.numel() for p in model.parameters())  # a tied head is counted once
    others = sum(buffer.numel() for buffer in model.buffers())
    assert need.weights_bytes == pytest.approx(4 * (numbers + others), abs=1000)
    assert need.trained_bytes == 12 * numbers


def test_nothing_without_numbers_is_left_behind() -> None:
    ShapeModel(SOURCE, CONFIGS["mistral-sliding"](), METHODS["lora"]).need(BATCH, is_first=True)
    gc.collect()
    left = [kind for kind in map(type, gc.get_objects()) if issubclass(kind, FakeTensor)]
    assert left == []
    sft = SFTModel(make("mistral-sliding"))
    loss, _ = sft(collate([example(20, 9), example(40, 30)]))
    assert type(loss) is torch.Tensor
    assert torch.isfinite(loss)


def test_experts_that_are_chosen_by_numbers_cannot_be_told_and_that_is_said() -> None:
    shapes = ShapeModel(SOURCE, CONFIGS["mixtral"](), METHODS["full"])
    with pytest.raises(CannotTell):
        shapes.need(BATCH, is_first=True)


def test_a_method_that_does_not_fit_the_model_is_the_users_error() -> None:
    config = Config(**SETTINGS, method="last-n", last_n={"layers": 9})
    with pytest.raises(UsageError, match=r"last_n\.layers is 9"):
        ShapeModel(SOURCE, CONFIGS["llama"](), config)
