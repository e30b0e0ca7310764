"""The ways to compute attention give the numbers of one dense formula.

The reference forms all scores of a document at once, in float64, from the definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from duiti.model import document_attention
from duiti.model.attention import is_short, packed_attention_forward, uses_varlen
from duiti.model.document_attention import Variant, all_documents, by_kernel, by_products
from duiti.model.short_attention import LONGEST, short_attention

HEADS, SHARED, WIDTH = 4, 2, 8
SCALE = 0.3
# Outputs are averages of values of order 1, each of some 30 products in float32: 30 roundings of
# 2^-24 = 2e-6. Gradients are sums of as many terms of order 1 to 10.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_shared_tensors() -> Iterator[None]:
    """What one test leaves in the caches (tensors of another block size) is not the next one's."""
    yield
    document_attention._band.cache_clear()
    document_attention._borders_on.cache_clear()


def dense(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """softmax(cap(scale q·k)) v over the visible keys and the sink, one document, float64."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = variant.scale * torch.einsum("bhqe,bhke->bhqk", query, key)
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    back = torch.tensor([[q - k for k in range(key.shape[2])] for q in range(query.shape[2])])
    window = key.shape[2] if variant.window is None else variant.window
    weights = scores.exp() * ((back >= 0) & (back < window))
    total = weights.sum(-1, keepdim=True)
    if variant.sinks is not None:
        total = total + variant.sinks.double().exp().view(1, -1, 1, 1)
    return torch.einsum("bhqk,bhke->bhqe", weights / total, value)


def random_qkv(length: int, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(
        torch.randn(1, heads, length, width, generator=generator).requires_grad_()
        for heads in (HEADS, SHARED, SHARED)
    )


def assert_same(found: Tensor, expected: Tensor, given: tuple[Tensor, ...]) -> None:
    """The same output, and the same gradient of everything given for a random direction."""
    assert (found - expected).abs().max() <= TOLERANCE
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * direction).sum(), given)
    theirs = torch.autograd.grad((expected * direction).sum(), given)
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).abs().max() <= 10 * TOLERANCE


@pytest.mark.parametrize("window", [None, 40, 200])
def test_half_precision_is_filled_up_to_few_lengths_and_nothing_sees_it(window: int | None) -> None:
    variant = Variant(scale=SCALE, window=window)
    shapes = set()
    for length in (241, 250, 256):
        given = tuple(t.detach().bfloat16().requires_grad_() for t in random_qkv(length))
        with _Shapes() as seen:
            found = packed_attention_forward(
                nn.Module(), *given, None, cu_seqlens=(0, length), scaling=SCALE,
                sliding_window=window,
            )[0].transpose(1, 2)  # fmt: skip
        shapes.add(tuple(seen.shapes))
        expected = dense(*given, variant)
        # Scores of order 1 are rounded to 2^-9 = 2e-3 relative, weights and sums once more.
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 3e-2
        ours = torch.autograd.grad(found.double().square().sum(), given)
        theirs = torch.autograd.grad(expected.square().sum(), given)
        for mine, reference in zip(ours, theirs, strict=True):
            assert (mine - reference).abs().max() <= 3e-2 * reference.abs().max()
    assert len(shapes) == 1


class _Shapes(TorchDispatchMode):
    """Sizes of what goes into the products of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func) or "bmm" in str(func):
            self.shapes += [tensor.shape for tensor in args[:2]]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [None, 1, 4, 16, 23, 40])
@pytest.mark.parametrize("rows", [3, 8, 1024])
def test_a_window_computed_block_by_block_is_the_dense_formula(
    window: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "WINDOW_ROWS", rows)
    given = random_qkv(23)
    variant = Variant(scale=SCALE, window=window)
    assert_same(by_kernel(*given, variant), dense(*given, variant), given)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("rows", [1, 5, 23])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_plain_products_are_the_dense_formula(
    window: int | None, rows: int, softcap: float | None, has_sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(document_attention, "SCORE_BYTES", 4 * HEADS * 23 * rows)
    given = random_qkv(23)
    sinks = torch.linspace(-1, 2, HEADS).requires_grad_() if has_sinks else None
    variant = Variant(scale=SCALE, window=window, softcap=softcap, sinks=sinks)
    everything = given if sinks is None else (*given, sinks)
    assert_same(by_products(*given, variant), dense(*given, variant), everything)


def test_dropout_of_plain_products_is_drawn_once_for_both_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The backward pass computes a block again: with other weights dropped, it would be another
    function's gradient. As the output is linear in the values, <values, gradient> = output."""
    monkeypatch.setattr(document_attention, "SCORE_BYTES", 4 * HEADS * 23 * 5)
    query, key, value = random_qkv(23)
    output = by_products(query, key, value, Variant(scale=SCALE, dropout=0.5, softcap=1.0)).sum()
    (gradient,) = torch.autograd.grad(output, value)
    assert (gradient * value).sum().item() == pytest.approx(output.item(), rel=1e-4)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                # An expanded view holds no more than its storage.
                held = one.untyped_storage().nbytes() // one.element_size()
                self.num_elements = max(self.num_elements, held)
        return out


@pytest.mark.parametrize(
    "variant",
    [
        Variant(scale=SCALE),
        Variant(scale=SCALE, window=16),
        Variant(scale=SCALE, window=16, softcap=1.0),
        Variant(scale=SCALE, sinks=torch.zeros(HEADS)),
    ],
    ids=["full", "window", "window-capped", "sinks"],
)
def test_nothing_as_large_as_the_square_of_a_document_is_made(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 1024
    monkeypatch.setattr(document_attention, "WINDOW_ROWS", 64)
    monkeypatch.setattr(document_attention, "SCORE_BYTES", 4 * HEADS * length * 16)
    given = random_qkv(length)
    with LargestTensor() as seen:
        (by_kernel if variant.is_plain else by_products)(*given, variant).sum().backward()
    assert 0 < seen.num_elements < length * length / 4


def test_the_backward_pass_keeps_one_band_for_all_blocks_of_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    length, window, rows = 512, 48, 16
    monkeypatch.setattr(document_attention, "WINDOW_ROWS", rows)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    given = random_qkv(length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = by_kernel(*given, Variant(scale=SCALE, window=window))
    # Queries, keys, values, their output, a log-sum-exp a query and head, and the band.
    floats = length * (2 * HEADS + 2 * SHARED) * WIDTH + length * HEADS + rows * (rows + window - 1)
    assert output.shape == given[0].shape
    assert 0 < sum(kept.values()) <= 4 * floats


# The kernel for CUDA. What it computes is stated in PyTorch's documentation; here is that statement
# as a program, in its place.


def stated_varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
    max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Queries [T, H, E], keys and values [T, K, E], borders int32 on their device. A token sees
    `window_size[0]` keys to its left and `window_size[1]` to its right, -1 being all of them."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.device == query.device
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    lengths = cu_seq_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    parts = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = query[start:end], key[start:end], value[start:end]
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(group, 1)) * (scale or 0.0)
        place = torch.arange(end - start)
        ahead = place[None, :] - place[:, None]
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if left >= 0:
            hidden |= ahead < -left
        if right >= 0:
            hidden |= ahead > right
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khe->qhe", weights, v.repeat_interleave(group, 1)))
    return torch.cat(parts)


def test_the_statement_takes_what_the_kernel_takes() -> None:
    kernel = inspect.signature(varlen_attn).parameters
    stated = inspect.signature(stated_varlen).parameters
    assert list(stated)[:7] == list(kernel)[:7]
    for name, parameter in stated.items():
        assert kernel[name].kind == parameter.kind
        assert kernel[name].default == parameter.default


@pytest.mark.parametrize("window", [None, 1, 4, 12, 13])
def test_one_call_for_all_documents_is_the_dense_formula_of_each(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "varlen_attn", stated_varlen)
    given = random_qkv(22)
    variant = Variant(scale=SCALE, window=window)
    borders = (0, 5, 6, 18, 22)
    found = all_documents(*given, borders, variant)
    expected = torch.cat(
        [dense(*(x[:, :, a:b] for x in given), variant) for a, b in pairwise(borders)], dim=2
    )
    assert_same(found, expected.transpose(1, 2), given)


@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_itself_takes_our_arguments_forward_and_backward(window: int | None) -> None:
    """On PyTorch's meta device, where operations check what they are given and compute nothing."""
    query, key, value = (
        torch.empty(1, 22, heads, WIDTH, device="meta", dtype=torch.bfloat16)
        .requires_grad_()
        .transpose(1, 2)
        for heads in (HEADS, SHARED, SHARED)
    )
    for tensor in (query, key, value):
        tensor.retain_grad()
    output = all_documents(query, key, value, (0, 9, 22), Variant(scale=SCALE, window=window))
    assert output.shape == (1, 22, HEADS, WIDTH)
    output.backward(torch.empty_like(output))
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape


def test_the_borders_go_to_the_device_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args: Tensor, **kwargs: object) -> Tensor:
        seen.append(args[3])
        return stated_varlen(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(document_attention, "varlen_attn", watched)
    given = random_qkv(22)
    for _ in range(3):
        all_documents(*given, (0, 9, 22), Variant(scale=SCALE))
    assert seen[0] is seen[1] is seen[2]


def test_what_a_reader_in_inference_mode_leaves_behind_can_be_trained_with() -> None:
    given = random_qkv(23)
    variant = Variant(scale=SCALE, window=4)
    with torch.inference_mode():
        by_kernel(*given, variant)
    by_kernel(*given, variant).sum().backward()


@pytest.mark.parametrize("length", [1, 2, 23])
def test_short_documents_are_the_dense_formula(length: int) -> None:
    given = random_qkv(length)
    assert_same(short_attention(*given, SCALE), dense(*given, Variant(scale=SCALE)), given)


@pytest.mark.parametrize(
    ("variant", "length", "device", "expected"),
    [
        (Variant(scale=SCALE), LONGEST, "cpu", True),
        (Variant(scale=SCALE, window=LONGEST), LONGEST, "cpu", True),
        (Variant(scale=SCALE), LONGEST + 1, "cpu", False),
        (Variant(scale=SCALE), 5, "cuda", False),
        (Variant(scale=SCALE, window=4), 5, "cpu", False),
        (Variant(scale=SCALE, dropout=0.1), 5, "cpu", False),
        (Variant(scale=SCALE, softcap=50.0), 5, "cpu", False),
    ],
)
def test_only_short_plain_documents_on_the_cpu_keep_their_weights(
    variant: Variant, length: int, device: str, expected: bool
) -> None:
    assert is_short(variant, length, device) is expected


PLAIN = Variant(scale=SCALE)
BF16, H100 = torch.bfloat16, (9, 0)


@pytest.mark.parametrize(
    ("variant", "dtype", "widths", "capability", "expected"),
    [
        (PLAIN, BF16, (128, 128), H100, True),
        (PLAIN, torch.float16, (128, 128), H100, True),
        (PLAIN, BF16, (256, 256), (8, 6), True),
        (Variant(scale=SCALE, window=4), BF16, (64, 64), (8, 0), True),
        (PLAIN, torch.float32, (128, 128), H100, False),
        (PLAIN, BF16, (128, 128), None, False),
        (PLAIN, BF16, (128, 128), (7, 5), False),
        (PLAIN, BF16, (192, 128), H100, False),
        (PLAIN, BF16, (100, 100), H100, False),
        (PLAIN, BF16, (208, 208), H100, False),
        (PLAIN, BF16, (264, 264), H100, False),
        (Variant(scale=SCALE, dropout=0.1), BF16, (128, 128), H100, False),
        (Variant(scale=SCALE, softcap=50.0), BF16, (128, 128), H100, False),
        (Variant(scale=SCALE, sinks=torch.zeros(4)), BF16, (64, 64), H100, False),
    ],
)
def test_the_kernel_is_used_within_its_limits_only(
    variant: Variant,
    dtype: torch.dtype,
    widths: tuple[int, int],
    capability: tuple[int, int] | None,
    expected: bool,
) -> None:
    assert uses_varlen(variant, dtype, widths, capability) is expected


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"position_bias": torch.zeros(1, HEADS, 9, 9)}, "position_bias"),
        ({"indices": torch.zeros(1, 9, 4)}, "indices"),
        ({"block_indices": torch.zeros(1, 9, 4)}, "block_indices"),
        ({"sinks": torch.zeros(1, HEADS, 9, 1)}, "sinks"),
        ({"is_causal": False}, "ahead"),
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, "mask"),
        ({"something_of_next_year": 3}, "something_of_next_year"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(more: dict[str, object], named: str) -> None:
    given = random_qkv(9)
    mask = more.pop("attention_mask", None)
    with pytest.raises(NotImplementedError, match=named):
        packed_attention_forward(torch.nn.Module(), *given, mask, cu_seqlens=(0, 9), **more)


def test_what_models_hand_down_to_every_attention_is_let_through() -> None:
    given = random_qkv(9)
    expected, _ = packed_attention_forward(torch.nn.Module(), *given, None, cu_seqlens=(0, 4, 9))
    found, _ = packed_attention_forward(
        torch.nn.Module(), *given, None, cu_seqlens=(0, 4, 9), scaling=WIDTH**-0.5, is_causal=True,
        position_ids=torch.arange(9), use_cache=False, output_attentions=False, position_bias=None,
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert found.is_contiguous()
