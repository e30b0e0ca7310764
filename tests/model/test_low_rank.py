"""adapted_linear against the same formula written plainly, and autograd's own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from duiti.model.linear import LinearLayer, weight_as
from duiti.model.low_rank import adapted_linear

IN, OUT, RANK, ROWS = 24, 40, 4, 30
SCALE = 1.7
# A number sums at most ROWS + IN + OUT + RANK = 98 products: 98 * 2^-24 = 5.9e-6 of their size.
TOLERANCE = 5.9e-6


def layer(kind: str) -> LinearLayer:
    torch.manual_seed(0)
    if kind == "conv1d":
        made = Conv1D(OUT, IN)
        nn.init.normal_(made.weight)
        return made.requires_grad_(False)
    return nn.Linear(IN, OUT, bias=kind == "bias").requires_grad_(False)


def leaves(*, x_needs_grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, a, b = (
        torch.randn(shape, generator=generator)
        for shape in ((2, ROWS // 2, IN), (RANK, IN), (OUT, RANK))
    )
    return [x.requires_grad_(x_needs_grad), a.requires_grad_(), b.requires_grad_()]


def plain(base: LinearLayer, x: Tensor, a: Tensor, b: Tensor, seen: Tensor | None = None) -> Tensor:
    y = x @ weight_as(base, x.dtype).T
    if base.bias is not None:
        y = y + base.bias.to(x.dtype)
    return y + SCALE * ((x if seen is None else seen) @ a.T @ b.T)


@pytest.mark.parametrize("kind", ["bias", "no bias", "conv1d"])
def test_output_and_gradients_are_those_of_the_formula(kind: str) -> None:
    base, ours = layer(kind), leaves()
    wide = [t.detach().double().requires_grad_() for t in ours]
    pull = torch.randn(2, ROWS // 2, OUT)
    found, expected = adapted_linear(base, *ours, scale=SCALE), plain(base, *wide)
    found.backward(pull)
    expected.backward(pull.double())
    assert_near(found, expected)
    for mine, reference in zip(ours, wide, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert mine.grad.dtype == torch.float32
        assert_near(mine.grad, reference.grad)


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    ours, all_needed = leaves(x_needs_grad=False), leaves()
    adapted_linear(layer("bias"), *ours, scale=SCALE).sum().backward()
    adapted_linear(layer("bias"), *all_needed, scale=SCALE).sum().backward()
    assert ours[0].grad is None
    for mine, reference in zip(ours[1:], all_needed[1:], strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert torch.equal(mine.grad, reference.grad)


def test_dropout_is_seen_by_the_update_alone() -> None:
    base, ours = layer("bias"), leaves()
    wide = [t.detach().double().requires_grad_() for t in ours]
    torch.manual_seed(7)
    found = adapted_linear(base, *ours, scale=SCALE, dropout=0.5)
    torch.manual_seed(7)
    mask = nn.functional.dropout(torch.ones_like(ours[0]), 0.5)
    assert 0 < mask.count_nonzero() < mask.numel()
    expected = plain(base, *wide, seen=wide[0] * mask)
    found.sum().backward()
    expected.sum().backward()
    assert_near(found, expected)
    for mine, reference in zip(ours, wide, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert_near(mine.grad, reference.grad)


def test_under_autocast_products_are_in_its_dtype_and_gradients_of_a_and_b_in_float32() -> None:
    """Every product is rounded to bfloat16 (2^-9 of itself), and so is what goes into it: a sum of
    terms is off by at most six such roundings of the sum of the terms' magnitudes."""
    base, ours = layer("bias"), leaves()
    low = [t.detach().bfloat16() for t in ours]
    wide = [t.double().requires_grad_() for t in low]
    with torch.autocast("cpu", torch.bfloat16):
        found = adapted_linear(base, *ours, scale=SCALE)
    assert found.dtype == torch.bfloat16
    found.backward(torch.ones_like(found))
    expected = plain(base, *wide)
    expected.backward(torch.ones_like(expected))
    size = plain(nn.Linear(IN, OUT), *[t.abs() for t in wide]).abs().max()
    assert (found - expected).abs().max() <= 6 * 2**-9 * size
    for mine, reference in zip(ours, wide, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - reference.grad).abs().max() <= 6 * 2**-9 * ROWS * size


def test_only_the_input_and_the_low_rank_product_wait_for_the_backward_pass() -> None:
    kept: list[int] = []
    ours = leaves()
    own = {t.data_ptr() for t in ours}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(layer("bias"), *ours, scale=SCALE)
    assert kept == [ROWS * RANK]


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    assert (found.double() - expected).abs().max() <= TOLERANCE * scale
