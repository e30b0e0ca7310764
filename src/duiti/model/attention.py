"""Attention over a flat run of documents that never see each other.

    with packed_attention(model):
        model(input_ids=ids[None], position_ids=positions[None], cu_seqlens=borders)

Plugged in by name through transformers' `AttentionInterface`; outside the context the model keeps
the implementation it was loaded with, so generation is untouched. No T x T mask is ever built.
There are four ways to the same numbers (`document_attention.py`), and the tensors decide:

- half precision on CUDA: one call of PyTorch's variable-length kernel for all documents;
- otherwise one `scaled_dot_product_attention` per document;
- on the CPU, for short documents, plain products with a backward pass of their own
  (`short_attention.py`);
- soft-capping (Gemma 2) and sinks (gpt-oss), which neither of these knows: plain products.

Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from duiti.model.document_attention import Variant, all_documents, by_kernel, by_products
from duiti.model.few_shapes import LONG, SHORT, filled, missing
from duiti.model.short_attention import LONGEST, short_attention

NAME = "duiti_packed"

HARMLESS = frozenset(
    {
        "position_ids",  # queries and keys are rotated already
        "use_cache",
        "return_dict",
        "output_attentions",  # an implementation that has none to return is allowed to
        "output_hidden_states",
        "output_router_logits",
    }
)
"""Keyword arguments that models hand down to every attention and that do not change its result."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    Args:
        query: [1, H, T, E]; key, value: [1, K, T, E].
        cu_seqlens: [D+1] document borders.
        scaling: of the scores; None: 1 / sqrt(E).
        sliding_window: see `Variant.window`.
        s_aux: see `Variant.sinks`.

    Returns:
        [1, T, H, E], None (the interface's place for attention weights).

    Raises:
        NotImplementedError: a variant that is not computed here (never a silent approximation).
    """
    _refuse_the_unknown(attention_mask, is_causal, others)
    variant = Variant(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    if torch.is_autocast_enabled(query.device.type):
        # Norms of queries and keys may leave float32 behind; autocast does not reach every kernel.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    widths = (query.shape[-1], value.shape[-1])
    if uses_varlen(variant, query.dtype, widths, _capability(query.device)):
        return all_documents(query, key, value, tuple(cu_seqlens), variant), None
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    # `split`, for its backward pass joins gradients; that of a slice pads each to T tokens.
    documents = zip(
        query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
    )
    return torch.cat([_of_one(*qkv, variant).transpose(1, 2) for qkv in documents], dim=1), None


def _of_one(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """[1, H, L, E] of one document."""
    if not variant.is_plain:
        return by_products(query, key, value, variant)
    length = query.shape[2]
    short = is_short(variant, length, query.device.type)
    # What is added lies ahead of all that is asked for, so nothing sees it.
    more = missing(length, SHORT if short else LONG, query.device, query.dtype)
    query, key, value = (filled(tensor, more, dim=2) for tensor in (query, key, value))
    if short:
        return short_attention(query, key, value, variant.scale)[:, :, :length]
    return by_kernel(query, key, value, variant)[:, :, :length]


def is_short(variant: Variant, length: int, device: str) -> bool:
    """Whether plain products that keep their weights are the fastest way."""
    return (
        device == "cpu"
        and length <= LONGEST
        and variant.is_plain
        and variant.dropout == 0.0
        and (variant.window is None or length <= variant.window)
    )


def uses_varlen(
    variant: Variant,
    dtype: torch.dtype,
    widths: tuple[int, int],
    capability: tuple[int, int] | None,
) -> bool:
    """Whether PyTorch's variable-length kernel computes this.

    The limits are those of the FlashAttention 2 that PyTorch carries: Ampere or newer, half
    precision, no dropout, one width for keys and values, a multiple of 8 up to 256; and between 192
    and 224 its backward pass does not run on every card.

    Args:
        widths: of the heads of queries (and keys), and of values.
        capability: of the GPU; None where there is none, or none that has the kernel.
    """
    width, value_width = widths
    return (
        variant.is_plain
        and variant.dropout == 0.0
        and dtype in (torch.bfloat16, torch.float16)
        and capability is not None
        and capability >= (8, 0)
        and width == value_width
        and width % 8 == 0
        and (width <= 192 or 224 < width <= 256)
    )


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Switch a model to packed attention for as long as the context lasts."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _refuse_the_unknown(
    attention_mask: Tensor | None, is_causal: bool | None, others: Mapping[str, object]
) -> None:
    """Position biases, sparse indices and what the next architecture thinks of."""
    if attention_mask is not None:
        raise NotImplementedError("attention with a mask of its own")
    if is_causal is False:
        raise NotImplementedError("attention that looks ahead")
    unknown = [n for n, given in others.items() if given is not None and n not in HARMLESS]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(sorted(unknown))}")


def _capability(device: torch.device) -> tuple[int, int] | None:
    if device.type != "cuda" or torch.version.cuda is None:  # AMD's GPUs are "cuda" as well
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    return torch.cuda.get_device_capability(device)


AttentionInterface.register(NAME, packed_attention_forward)
