"""Causal attention of documents, in three ways that give the same numbers.

    all_documents(query, key, value, cu_seqlens, variant)   # one CUDA kernel, [1, T, H, E]
    by_kernel(query, key, value, variant)                   # one document, [1, H, L, E]
    by_products(query, key, value, variant)                 # one document, every variant

No L x L matrix is ever kept. Which way is taken is decided in `attention.py`.

Shapes: T tokens of all documents, L of one, H query heads, K key/value heads (H a multiple of K),
E head width. Queries are [1, H, L, E], keys and values [1, K, L, E].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

WINDOW_ROWS = 1024
"""Queries of a long document that are computed together under a sliding window."""

SCORE_BYTES = 64 * 2**20
"""Of float32 scores held at once where they are computed in plain products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a layer computes, besides being causal."""

    scale: float
    """Of the products of queries and keys."""
    dropout: float = 0.0
    """Of the attention weights."""
    window: int | None = None
    """A token sees itself and the `window - 1` before it; None: all before it."""
    softcap: float | None = None
    """Scores become cap * tanh(score / cap) (Gemma 2)."""
    sinks: Tensor | None = None
    """[H] a score of each head that takes part in the softmax and has no value (gpt-oss)."""

    @property
    def is_plain(self) -> bool:
        """Whether kernels know it."""
        return self.softcap is None and self.sinks is None


def all_documents(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: tuple[int, ...], variant: Variant
) -> Tensor:
    """[1, T, H, E]. The kernel counts a window in tokens to the left of a token, and none right."""
    borders = _borders_on(query.device, cu_seqlens)
    longest = max(end - start for start, end in pairwise(cu_seqlens))
    window = variant.window
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        borders,
        borders,
        longest,
        longest,
        scale=variant.scale,
        window_size=(-1 if window is None or window >= longest else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # a pair only where the log-sum-exp is asked for
    return output[None]


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _borders_on(device: torch.device, cu_seqlens: tuple[int, ...]) -> Tensor:
    """Once per micro-batch, not once per layer; from pinned memory, so that nothing waits. (What is
    shared is no inference tensor, whoever asks first: a later backward pass may keep it.)"""
    borders = torch.tensor(cu_seqlens, dtype=torch.int32)
    if device.type == "cuda":
        borders = borders.pin_memory()
    return borders.to(device, non_blocking=True)


def by_kernel(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """[1, H, L, E] of one document."""
    length, window = query.shape[2], variant.window
    if window is None or length <= window:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            dropout_p=variant.dropout,
            scale=variant.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    rows = WINDOW_ROWS
    band = _band(rows, window, query.dtype, query.device)
    parts = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        first = max(0, start - window + 1)
        before = start - first  # keys that lie before the first query
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=band[: end - start, window - 1 - before : window - 1 + end - start],
                dropout_p=variant.dropout,
                scale=variant.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _band(rows: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows, window - 1 + rows] to add to the scores of queries whose keys begin `window - 1`
    before the first of them. All blocks of all layers share it, for the backward pass keeps what a
    call was given, and would keep a float copy of every mask of booleans."""
    visible = _visible(rows, window - 1, window, device)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, -torch.inf)


def by_products(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """[1, H, L, E] of one document, queries block by block.

    Where there is more than one block, the backward pass computes its scores again: they are all
    that grows with the square of the length."""
    num_heads, length = query.shape[1:3]
    rows = max(1, SCORE_BYTES // (4 * num_heads * length))
    parts = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        first = 0 if variant.window is None else max(0, start - variant.window + 1)
        block = (query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], variant)
        if rows < length:
            part = checkpoint(
                _products, *block, use_reentrant=False, preserve_rng_state=variant.dropout > 0
            )
        else:
            part = _products(*block)
        parts.append(part)
    return torch.cat(parts, dim=2)


def _products(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """[1, H, L, E] of a block of queries that ends where its keys end: what transformers' eager
    functions compute, the softmax in float32."""
    num_heads, rows, width = query.shape[1:]
    num_shared, num_keys = key.shape[1:3]
    # Heads that share a key lie next to each other, so they are more rows of one product.
    grouped = query.reshape(1, num_shared, -1, width)
    scores = (grouped @ key.transpose(2, 3)).view(1, num_heads, rows, num_keys)
    scores = scores.float() * variant.scale
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    visible = _visible(rows, num_keys - rows, variant.window, query.device)
    scores = scores.masked_fill(~visible, -torch.inf)
    if variant.sinks is not None:
        sinks = variant.sinks.float().view(1, num_heads, 1, 1).expand(1, num_heads, rows, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :num_keys].to(value.dtype)
    weights = F.dropout(weights, variant.dropout)
    output = weights.reshape(1, num_shared, -1, num_keys) @ value
    return output.view(1, num_heads, rows, -1)


def _visible(rows: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """[rows, before + rows] whether a query sees a key, the keys beginning `before` the queries."""
    position = torch.arange(before + rows, device=device)
    distance = position[before:, None] - position[None, :]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)
