"""supervised_loss against dense cross-entropy in float64 and autograd's own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from duiti.model import head as head_module
from duiti.model import trained_head as trained_module
from duiti.model.head import LogitShape
from duiti.model.loss import supervised_loss, supervised_losses

N, D, V = 37, 16, 53
SHAPES = [
    LogitShape(),
    LogitShape(scale=0.25),
    LogitShape(cap=3.0),
    LogitShape(scale=0.5, cap=2.0),
]
# A result sums at most N + D + V = 106 float32 terms: 106 * 2^-24 = 6.3e-6 of their magnitude.
TOLERANCE = 6.3e-6


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    head = torch.randn(V, D, generator=generator).to(dtype)
    bias = torch.randn(V, generator=generator).to(dtype)
    return hidden, head, bias, torch.randint(V, (N,), generator=generator)


def mixed_weights() -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(1)) * 3 + 0.1


def dense(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shape: LogitShape,
    weights: Tensor | None = None,
) -> Tensor:
    logits = hidden @ head.T
    if bias is not None:
        logits = logits + bias
    logits = logits * shape.scale
    if shape.cap is not None:
        logits = shape.cap * torch.tanh(logits / shape.cap)
    losses = cross_entropy(logits, targets, reduction="none")
    return losses.sum() if weights is None else (losses * weights).sum()


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    assert (found.double() - expected).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("is_head_trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("tile", [(1, 7), (5, 1000), (1000, 20)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("weights", [None, mixed_weights()], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_those_of_dense_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
    shape: LogitShape,
    weights: Tensor | None,
    has_bias: bool,
    tile: tuple[int, int],
    is_head_trained: bool,
) -> None:
    monkeypatch.setattr(head_module, "CPU_TILE", tile)
    monkeypatch.setattr(trained_module, "KEPT_BYTES", 4 * V * tile[0])
    hidden, head, bias, targets = inputs()
    ours = [t.clone().requires_grad_(is_head_trained) for t in (hidden, head, bias)]
    ours[0].requires_grad_()
    wide = [t.double().requires_grad_() for t in (hidden, head, bias)]
    # A factor behind the loss: gradients must carry it.
    found = supervised_loss(
        ours[0], ours[1], targets, weights=weights, bias=ours[2] if has_bias else None, shape=shape
    )
    (0.3 * found).backward()
    expected = dense(wide[0], wide[1], wide[2] if has_bias else None, targets, shape, weights)
    (0.3 * expected).backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    num_trained = 1 if not is_head_trained else 3 if has_bias else 2
    for mine, reference in list(zip(ours, wide, strict=True))[:num_trained]:
        assert mine.grad is not None
        assert reference.grad is not None
        assert_near(mine.grad, reference.grad)


@pytest.mark.parametrize("is_head_trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("tile", [(1, 7), (5, 1000), (1000, 20)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_of_each_position_comes_with_their_sum_and_is_that_of_dense_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, shape: LogitShape, tile: tuple[int, int], is_head_trained: bool
) -> None:
    monkeypatch.setattr(head_module, "CPU_TILE", tile)
    monkeypatch.setattr(trained_module, "KEPT_BYTES", 4 * V * tile[0])
    hidden, head, bias, targets = inputs()
    hidden.requires_grad_()
    head.requires_grad_(is_head_trained)
    for weights in (None, mixed_weights()):
        total, each = supervised_losses(
            hidden, head, targets, weights=weights, bias=bias, shape=shape
        )
        wide = (t.detach().double()[:, None] for t in (hidden, targets))
        expected = torch.stack(
            [
                dense(own, head.detach().double(), bias.double(), target.long(), shape)
                for own, target in zip(*wide, strict=True)
            ]
        )
        assert each.dtype == torch.float32
        assert not each.requires_grad
        assert_near(each, expected)
        counted = each if weights is None else each * weights
        assert total.item() == pytest.approx(counted.double().sum().item(), rel=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_are_only_filled_up_have_no_loss_of_their_own(dtype: torch.dtype) -> None:
    hidden, head, _, targets = inputs(dtype)
    total, each = supervised_losses(hidden, head, targets)
    assert each.shape == (N,)
    assert total.item() == pytest.approx(each.double().sum().item(), rel=TOLERANCE)


def loss_and_gradients(weights: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    hidden, head, bias, targets = inputs(dtype)
    leaves = [t.requires_grad_() for t in (hidden, head, bias)]
    loss = supervised_loss(hidden, head, targets, weights=weights, bias=bias)
    loss.backward()
    return [loss.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.25])
def test_a_common_weight_is_a_factor_of_loss_and_gradients_to_the_bit(
    factor: float, dtype: torch.dtype
) -> None:
    """Powers of two, so that no product is rounded."""
    plain = loss_and_gradients(None, dtype)
    weighted = loss_and_gradients(torch.full((N,), factor), dtype)
    assert len(plain) == 4
    for mine, reference in zip(weighted, plain, strict=True):
        assert torch.equal(mine, factor * reference)


@pytest.mark.parametrize("is_head_trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_almost_certain_token_keeps_the_digits_of_its_loss_and_gradient(
    dtype: torch.dtype, is_head_trained: bool
) -> None:
    """Logits are whole numbers, which bfloat16 holds exactly, so only roundings behind them count:
    of the mass and of its product with the head, each by half a unit in the last place."""
    head = torch.zeros(V, D)
    head[:, 0] = torch.arange(V) % 8
    head[3, 0] = 20.0  # the target: its odds are about e^13 against everything else together
    hidden = torch.zeros(1, D)
    hidden[:, 0] = 1.0
    ours = [t.to(dtype).detach().requires_grad_() for t in (hidden, head)]
    ours[1].requires_grad_(is_head_trained)
    wide = [t.detach().double().requires_grad_() for t in ours]
    target = torch.tensor([3])
    loss = supervised_loss(ours[0], ours[1], target)
    loss.backward()
    expected = dense(wide[0], wide[1], None, target, LogitShape())
    expected.backward()
    rounding = 3 * 2.0 ** (-24 if dtype == torch.float32 else -8) + TOLERANCE
    assert expected.item() < 1e-4
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    pairs = list(zip(ours, wide, strict=True))[: 2 if is_head_trained else 1]
    for mine, reference in pairs:
        assert mine.grad is not None
        assert reference.grad is not None
        wrong = (mine.grad.double() - reference.grad).abs()
        assert bool((wrong <= rounding * reference.grad.abs()).all())


def test_a_whole_weight_is_that_many_repetitions() -> None:
    hidden, head, _, targets = inputs()
    times = torch.arange(N) % 4 + 1
    ours = [t.clone().requires_grad_() for t in (hidden, head)]
    found = supervised_loss(ours[0], ours[1], targets, weights=times.float())
    found.backward()
    wide = [t.double().requires_grad_() for t in (hidden, head)]
    rows = torch.arange(N).repeat_interleave(times)
    expected = dense(wide[0][rows], wide[1], None, targets[rows], LogitShape())
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    for mine, reference in zip(ours, wide, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert_near(mine.grad, reference.grad)


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_needed_are_formed(needed: tuple[bool, bool]) -> None:
    hidden, head, _, targets = inputs()
    hidden.requires_grad_(needed[0])
    head.requires_grad_(needed[1])
    loss = supervised_loss(hidden, head, targets)
    assert loss.requires_grad == any(needed)
    if any(needed):
        loss.backward()
    assert (hidden.grad is not None, head.grad is not None) == needed
    wide = dense(hidden.double(), head.double(), None, targets, LogitShape())
    assert loss.item() == pytest.approx(wide.item(), rel=TOLERANCE)


def test_the_inputs_are_not_changed() -> None:
    hidden, head, bias, targets = inputs()
    weights = mixed_weights()
    before = [t.clone() for t in (hidden, head, bias, targets, weights)]
    hidden.requires_grad_()
    head.requires_grad_()
    supervised_loss(hidden, head, targets, weights=weights, bias=bias).backward()
    for now, then in zip((hidden, head, bias, targets, weights), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("weights", [None, torch.ones(0)], ids=["plain", "weighted"])
def test_zero_rows_cost_nothing_and_give_zero_gradients(weights: Tensor | None) -> None:
    hidden, head, bias, targets = inputs()
    leaves = [t.clone().requires_grad_() for t in (hidden[:0], head, bias)]
    loss = supervised_loss(leaves[0], leaves[1], targets[:0], weights=weights, bias=leaves[2])
    loss.backward()
    assert loss.item() == 0.0
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


def test_huge_logits_stay_finite() -> None:
    hidden, head, _, targets = inputs()
    hidden = (hidden * 1e4).requires_grad_()
    loss = supervised_loss(hidden, head, targets)
    loss.backward()
    wide = dense(hidden.double(), head.double(), None, targets, LogitShape())
    assert loss.item() == pytest.approx(wide.item(), rel=TOLERANCE)
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())


@pytest.mark.parametrize("weights", [torch.ones(N), mixed_weights()], ids=["ones", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_stays_within_its_rounding(shape: LogitShape, weights: Tensor) -> None:
    """The reference takes the same bfloat16 values in float64, so only our roundings count.

    A logit is rounded once, by at most e = 2^-8 max|z|. Cross-entropy moves by at most 2 e' in a
    row (log-sum-exp and the target's logit, each 1-Lipschitz), where e' = scale * e (tanh
    contracts). d loss / d logit = (p - onehot) * slope: p moves by a factor of exp(2 e') at most,
    slope by 2 e' / cap of its scale, and the product is rounded once (2^-8); what is multiplied
    then is rounded once more. A row's weight is a factor of its loss, gradient and their errors.
    """
    unit = 2.0**-8
    hidden, head, _, targets = inputs(torch.bfloat16)
    ours = [t.clone().requires_grad_() for t in (hidden, head)]
    wide = [t.double().requires_grad_() for t in (hidden, head)]
    loss = supervised_loss(ours[0], ours[1], targets, weights=weights, shape=shape)
    loss.backward()
    expected = dense(wide[0], wide[1], None, targets, shape, weights)
    expected.backward()

    with torch.no_grad():
        raw = wide[0] @ wide[1].T
        moved = shape.scale * unit * raw.abs().max()
        assert (loss - expected).abs() <= 2 * moved * weights.sum()

        shaped, slope_moved = raw * shape.scale, 0.0
        slope = torch.full_like(raw, shape.scale)
        if shape.cap is not None:
            bounded = torch.tanh(shaped / shape.cap)
            shaped, slope = bounded * shape.cap, (1 - bounded**2) * shape.scale
            slope_moved = shape.scale * 2 * moved / shape.cap
        p = shaped.softmax(-1)
        onehot = torch.nn.functional.one_hot(targets, V)
        grad = (p - onehot) * slope
        p_moved = p * ((2 * moved).exp() - 1)
        off = p_moved * slope + (p - onehot).abs() * slope_moved + p_moved * slope_moved
        off = (off + unit * (grad.abs() + off)) * weights[:, None]
        for mine, reference, bound in (
            (ours[0].grad, wide[0].grad, off @ wide[1].abs()),
            (ours[1].grad, wide[1].grad, off.T @ wide[0].abs()),
        ):
            assert mine is not None
            assert reference is not None
            assert mine.dtype == torch.bfloat16
            # The product is rounded, and so is grad_head when it returns to the head's dtype.
            bound = bound + 2 * unit * (reference.abs() + bound) + TOLERANCE
            assert bool(((mine.double() - reference).abs() <= bound).all())
