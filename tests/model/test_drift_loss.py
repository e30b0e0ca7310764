"""KL between base and tuned model against torch.nn.functional.kl_div of dense logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from duiti.model import head as head_module
from duiti.model import trained_head as trained_module
from duiti.model.drift_loss import bucket_kl, drift_loss
from duiti.model.exact_drift import Moved, exact_drift
from duiti.model.head import Head, LogitShape
from duiti.model.top_words import BaseWords, base_words

N, D, V = 37, 16, 53
SHAPES = [
    LogitShape(),
    LogitShape(scale=0.25),
    LogitShape(scale=-0.5),
    LogitShape(cap=3.0),
    LogitShape(scale=0.5, cap=2.0),
]
# As in test_loss.py: a result sums at most N + D + V float32 terms.
TOLERANCE = 6.3e-6


class Case:
    """Two models that share an output layer, in float32, and the same in float64."""

    def __init__(self, shape: LogitShape, *, has_bias: bool, distance: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        self.base = torch.randn(N, D, generator=generator)
        self.tuned = self.base + distance * torch.randn(N, D, generator=generator)
        self.head = torch.randn(V, D, generator=generator)
        self.bias = torch.randn(V, generator=generator) if has_bias else None
        self.targets = torch.randint(V, (N,), generator=generator)

    def dense(self, hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
        """[N, V] log-probabilities."""
        logits = hidden @ head.T
        if bias is not None:
            logits = logits + bias
        logits = logits * self.shape.scale
        if self.shape.cap is not None:
            logits = self.shape.cap * torch.tanh(logits / self.shape.cap)
        return logits.log_softmax(dim=-1)

    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leaves in float64: the tuned hidden states, head and bias."""
        bias = None if self.bias is None else self.bias.double().requires_grad_()
        return self.tuned.double().requires_grad_(), self.head.double().requires_grad_(), bias

    def base_log_probs(self) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return self.dense(self.base.double(), self.head.double(), bias)

    def words(self, num_words: int) -> BaseWords:
        return base_words(
            self.base, self.head, num_words=num_words, bias=self.bias, shape=self.shape
        )


def in_buckets(log_probs: Tensor, ids: Tensor) -> Tensor:
    """[N, K + 1]: these words, and all others together."""
    is_other = torch.ones_like(log_probs).scatter(1, ids, 0).bool()
    rest = log_probs.masked_fill(~is_other, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_probs.gather(1, ids), rest], dim=1)


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    assert (found.double() - expected).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("is_head_trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("tile", [(5, 7), (5, 1000), (1000, 20)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_words", [1, 9, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_those_of_dense_buckets(
    monkeypatch: pytest.MonkeyPatch,
    shape: LogitShape,
    num_words: int,
    has_bias: bool,
    tile: tuple[int, int],
    is_head_trained: bool,
) -> None:
    monkeypatch.setattr(head_module, "CPU_TILE", tile)
    monkeypatch.setattr(trained_module, "KEPT_BYTES", 4 * V * tile[0])
    case = Case(shape, has_bias=has_bias)
    words = case.words(num_words)
    hidden = case.tuned.clone().requires_grad_()
    head = case.head.clone().requires_grad_(is_head_trained)
    bias = None if case.bias is None else case.bias.clone().requires_grad_(is_head_trained)
    # A factor behind the loss: gradients must carry it.
    loss = drift_loss(hidden, head, words, bias=bias, shape=shape)
    (0.7 * loss).backward()

    wide_hidden, wide_head, wide_bias = case.wide()
    log_p, log_q = case.base_log_probs(), case.dense(wide_hidden, wide_head, wide_bias)
    ids = log_p.topk(min(num_words, V - 1)).indices
    assert torch.equal(words.ids.long(), ids)
    expected = kl_div(
        in_buckets(log_q, ids), in_buckets(log_p, ids), log_target=True, reduction="sum"
    )
    (0.7 * expected).backward()
    assert_near(loss.detach(), expected.detach())
    pairs = [(hidden, wide_hidden)]
    if is_head_trained:
        pairs += [(head, wide_head)]
        pairs += [(bias, wide_bias)] if bias is not None and wide_bias is not None else []
    for ours, wide in pairs:
        assert ours.grad is not None
        assert wide.grad is not None
        assert_near(ours.grad, wide.grad)
    assert is_head_trained or head.grad is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_buckets_are_a_lower_bound_of_the_whole_that_rises_to_it(shape: LogitShape) -> None:
    case = Case(shape, has_bias=True)
    whole = exact(case).kl
    found = [
        drift_loss(case.tuned, case.head, case.words(k), bias=case.bias, shape=shape).item()
        for k in (1, 4, 16, 40, 64)
    ]
    assert found == sorted(found)
    assert found[0] < 0.9 * whole  # else a bound would not be told from the whole
    # 64 words are all of the vocabulary but one.
    assert found[-1] == pytest.approx(whole, rel=1e-5)


def exact(case: Case) -> Moved:
    head = Head(case.head, case.bias, case.shape)
    return exact_drift(case.base, case.tuned, head, case.targets)


@pytest.mark.parametrize("tile", [(1, 7), (5, 1000), (1000, 20)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_drift_is_that_of_dense_logits(
    monkeypatch: pytest.MonkeyPatch, shape: LogitShape, has_bias: bool, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(head_module, "CPU_TILE", tile)
    monkeypatch.setattr(trained_module, "KEPT_BYTES", 2 * 4 * V * tile[0])
    case = Case(shape, has_bias=has_bias)
    head = Head(case.head.requires_grad_(), case.bias, shape)
    found = exact_drift(case.base, case.tuned, head, case.targets)
    log_p, log_q = case.base_log_probs(), case.dense(*case.wide()).detach()
    expected = kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    assert found.kl == pytest.approx(expected, rel=TOLERANCE)
    for nll, dense in ((found.nll_base, log_p), (found.nll_tuned, log_q)):
        plain = cross_entropy(dense, case.targets, reduction="sum").item()
        assert nll == pytest.approx(plain, rel=TOLERANCE)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_a_small_drift_keeps_its_digits(distance: float) -> None:
    case = Case(LogitShape(), has_bias=True, distance=distance)
    log_p, log_q = case.base_log_probs(), case.dense(*case.wide()).detach()
    expected = kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    found = exact(case).kl
    # Log-probabilities of order 10 are known to 1e-6; their differences are of the distance's
    # order, so to 1e-6 / distance of themselves. Subtracting two losses would lose the square.
    assert found == pytest.approx(expected, rel=1e-5 / distance)
    words = case.words(64)
    kept = drift_loss(case.tuned, case.head, words, bias=case.bias).item()
    assert kept == pytest.approx(expected, rel=1e-5 / distance)


def test_a_model_that_has_not_moved_has_no_drift_and_no_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(LogitShape(scale=0.5, cap=2.0), has_bias=True)
        hidden = case.base.to(dtype).requires_grad_()
        words = base_words(
            hidden, case.head, num_words=9, bias=case.bias, shape=LogitShape(scale=0.5, cap=2.0)
        )
        shape = LogitShape(scale=0.5, cap=2.0)
        loss = drift_loss(hidden, case.head, words, bias=case.bias, shape=shape)
        loss.backward()
        assert loss.item() == 0.0
        # What cancels is of order 1: float32 leaves 2^-24 of it in each of V products.
        assert hidden.grad is not None
        assert hidden.grad.abs().max() < V * 2**-22
        head = Head(case.head, case.bias, shape)
        assert exact_drift(hidden, hidden, head, case.targets).kl == 0.0


def test_half_precision_is_near_and_sizes_do_not_matter() -> None:
    # On the CPU bfloat16 is filled up to few sizes: 37 rows to 64.
    case = Case(LogitShape(), has_bias=True)
    base, tuned, head = (t.bfloat16() for t in (case.base, case.tuned, case.head))
    words = base_words(base.float(), head.float(), num_words=9, bias=case.bias)
    hidden = tuned.clone().requires_grad_()
    loss = drift_loss(hidden, head, words, bias=case.bias)
    loss.backward()
    case.base, case.tuned, case.head = base.float(), tuned.float(), head.float()
    wide_hidden, wide_head, wide_bias = case.wide()
    log_p, log_q = case.base_log_probs(), case.dense(wide_hidden, wide_head, wide_bias)
    ids = words.ids.long()
    expected = kl_div(
        in_buckets(log_q, ids), in_buckets(log_p, ids), log_target=True, reduction="sum"
    )
    expected.backward()
    # Logits of order 10 are rounded by 2^-9 of themselves: 0.02.
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert hidden.grad is not None
    assert wide_hidden.grad is not None
    assert hidden.grad.shape == wide_hidden.grad.shape
    assert (hidden.grad - wide_hidden.grad).abs().max() < 0.05 * wide_hidden.grad.abs().max()


def test_distributions_that_exclude_each_other_are_finite() -> None:
    # Logits hundreds apart: probabilities that float32 takes for 0.
    case = Case(LogitShape(scale=60.0), has_bias=False, distance=2.0)
    hidden = case.tuned.clone().requires_grad_()
    for num_words in (1, 9, 64):
        loss = drift_loss(hidden, case.head, case.words(num_words), shape=case.shape)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()
    log_p, log_q = case.base_log_probs(), case.dense(*case.wide()).detach()
    expected = kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    assert exact(case).kl == pytest.approx(expected, rel=1e-5)


def test_every_bucket_of_a_divergence_is_positive() -> None:
    log_p = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3 - 5
    for distance in (1e-4, 1e-2, 1.0, 30.0, 200.0):
        noise = torch.randn(1000, generator=torch.Generator().manual_seed(1))
        log_q = log_p + distance * noise.abs().neg()
        found, back = bucket_kl(log_p, log_q), bucket_kl(log_q, log_p)
        assert (found >= 0).all()
        assert (back >= 0).all()
        p, q = log_p.double().exp(), log_q.double().exp()
        expected = p * (log_p.double() - log_q.double()) - p + q
        assert found.double().sum() == pytest.approx(expected.sum().item(), rel=1e-3)


def test_words_of_some_positions_are_the_same_words() -> None:
    case = Case(LogitShape(), has_bias=False)
    words = case.words(9)
    place = torch.tensor([30, 2, 2])
    some = words.at(place)
    assert len(some) == 3
    one_by_one = [
        drift_loss(case.tuned[i : i + 1], case.head, words.at(slice(i, i + 1))) for i in (30, 2, 2)
    ]
    found = drift_loss(case.tuned[place], case.head, some)
    assert found.item() == pytest.approx(sum(one_by_one).item(), rel=1e-6)  # type: ignore[union-attr]


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CPU_TILE", (1024, 8))
    monkeypatch.setattr(trained_module, "KEPT_BYTES", 4 * V * 5)
    largest = 0
    original = torch.Tensor.new_empty

    def watched(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        nonlocal largest
        found = original(self, *args, **kwargs)  # type: ignore[arg-type]
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch.Tensor, "new_empty", watched)
    case = Case(LogitShape(), has_bias=False)
    drift_loss(case.tuned, case.head, case.words(9)).item()
    assert exact(case).kl > 0
    assert 0 < largest <= 5 * V < N * V
