"""Causal attention of one short document on the CPU, in plain products.

    short_attention(query, key, value, scale)       # [1, H, L, E] and [1, K, L, E] → [1, H, L, E]

For documents of a few hundred tokens PyTorch's kernel for the CPU spends most of its time beside
the products; these are products, and as large as can be: heads that share a key are more rows of
one. The weights are kept for the backward pass (L numbers per token and head), which is why long
documents do not come here (`benchmarks/attention.py` measures where the border lies).

Shapes: L tokens, H query heads, K key/value heads (H a multiple of K), E head width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LONGEST = 512
"""Tokens; from about there on the kernel, which leaves out what lies ahead, is faster."""


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale * query keyᵀ) value, each token seeing itself and what is before it."""
    output: Tensor = _ShortAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return output


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num_heads, length, width = query.shape[1:]
        grouped, key, value = query.reshape(key.shape[1], -1, width), key[0], value[0]
        scores = torch.bmm(grouped, key.transpose(1, 2)).view(num_heads, length, length)
        # One step of arithmetic: the mask is float32, and so becomes the sum.
        scores = torch.add(_ahead()[:length, :length], scores, alpha=scale)
        weights = torch.softmax(scores, -1).to(query.dtype).view(key.shape[0], -1, length)
        ctx.save_for_backward(grouped, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value).view(1, num_heads, length, -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grouped, key, value, weights = ctx.saved_tensors
        (grad,) = grad_outputs
        shape = (1, *grad.shape[1:3], grouped.shape[-1])
        grad = grad.reshape(key.shape[0], -1, grad.shape[-1])
        grad_value = torch.bmm(weights.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, value.transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad_weights, weights, -1, grad_weights.dtype
        )
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale).view(shape)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), grouped).mul_(ctx.scale)
        return grad_query, grad_key[None], grad_value[None], None


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def _ahead() -> Tensor:
    """[LONGEST, LONGEST] what is added to the scores: -inf for keys after the query."""
    return torch.full((LONGEST, LONGEST), -torch.inf).triu_(1)
