"""Sizes of half precision on the CPU are filled up to few, and nothing sees what was added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from made_models import VOCAB, make
from torch.utils._python_dispatch import TorchDispatchMode

from duiti.data.batch import collate
from duiti.model.few_shapes import SUPERVISED, TOKENS, filled, missing
from duiti.model.sft_model import SFTModel
from duiti.types import Batch, Example, Origin

CPU = torch.device("cpu")


def batch_of(lengths: Sequence[int]) -> Batch:
    rng = np.random.default_rng(sum(lengths))
    rows = []
    for line, length in enumerate(lengths, start=1):
        ids = rng.integers(4, VOCAB, length).astype(np.int32)
        labels = np.where(np.arange(length) < 3, -100, ids).astype(np.int32)
        rows.append(Example(input_ids=ids, labels=labels, origin=Origin("rows.jsonl", line)))
    return collate(rows)


class Products(TorchDispatchMode):
    """Collects the sizes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.add((args[-2].shape, args[-1].shape))
        return func(*args, **(kwargs or {}))


def result(sft: SFTModel, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    sft.zero_grad()
    loss, _ = sft(batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in sft.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["llama", "gemma2-capped", "mistral-sliding", "mixtral"])
def test_what_is_added_changes_neither_loss_nor_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of more rows may sum in another order, hence bfloat16's rounding (2^-8 relative),
    through two layers; where an added token were seen, a loss of another size would come out."""
    sft = SFTModel(make(name), compute_dtype=torch.bfloat16)
    batch = batch_of((9, 17, 5))
    loss, gradients = result(sft, batch)
    for module in ("sft_model", "attention", "loss"):
        monkeypatch.setattr(f"duiti.model.{module}.missing", lambda *_: 0)
    plain_loss, plain = result(sft, batch)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=2e-3)
    for found, expected in zip(gradients, plain, strict=True):
        # of the largest, for small ones are sums of what cancels
        assert (found - expected).abs().max() <= 2**-5 * expected.abs().max()


def test_batches_of_many_lengths_are_products_of_few_sizes() -> None:
    sft = SFTModel(make("llama"), compute_dtype=torch.bfloat16)
    lengths = [(n, 40 - n // 2) for n in range(6, 30)]
    assert len({sum(pair) for pair in lengths}) > 10
    with Products() as one:
        result(sft, batch_of(lengths[0]))
    with Products() as all_of_them:
        for pair in lengths:
            result(sft, batch_of(pair))
    # Documents of at most 16, 32 or 48 tokens, one or two dozens of trained positions.
    assert len(all_of_them.shapes) <= 3 * len(one.shapes)


@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_only_half_precision_on_the_cpu_is_filled_up(count: int) -> None:
    assert (count + missing(count, TOKENS, CPU, torch.bfloat16)) % TOKENS == 0
    assert missing(count, TOKENS, CPU, torch.bfloat16) < TOKENS
    assert missing(count, SUPERVISED, CPU, torch.float32) == 0
    assert missing(count, SUPERVISED, torch.device("cuda"), torch.bfloat16) == 0


def test_zeros_are_put_behind_the_named_dimension() -> None:
    rows = torch.arange(6).reshape(1, 2, 3) + 1
    assert filled(rows, 0) is rows
    assert filled(rows, 2, dim=1).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]]
    assert filled(rows[0, 0], 1).tolist() == [1, 2, 3, 0]
