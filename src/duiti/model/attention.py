"""Attention over a flat run of documents that never see each other.

    with packed_attention(model):
        model(input_ids=ids[None], position_ids=positions[None], cu_seqlens=borders)

Plugged in by name through transformers' `AttentionInterface`; outside the context the model keeps
the implementation it was loaded with, so generation is untouched. Each document is one call of
PyTorch's `scaled_dot_product_attention`: no T x T mask is ever built, on the CPU or on CUDA.

Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "duiti_packed"


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
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    Args:
        query: [1, H, T, E]; key, value: [1, K, T, E].
        cu_seqlens: [D+1] document borders.
        sliding_window: a token sees itself and the `sliding_window - 1` before it.

    Returns:
        [1, T, H, E], None (the interface's place for attention weights).

    Raises:
        NotImplementedError: a variant that this kernel does not compute (never a silent
        approximation).
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with soft-capping or sinks")
    if attention_mask is not None:
        raise NotImplementedError("attention with a mask of its own")
    parts = []
    for start, end in pairwise(cu_seqlens):
        band = None
        if sliding_window is not None and end - start > sliding_window:
            position = torch.arange(end - start, device=query.device)
            distance = position[:, None] - position[None, :]
            band = (distance >= 0) & (distance < sliding_window)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=band,
                is_causal=band is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Switch a model to packed attention for as long as the context lasts."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, packed_attention_forward)
