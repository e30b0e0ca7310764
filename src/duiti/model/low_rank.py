"""y = W x + b + s · B A x as one step of autograd, W frozen.

    y = adapted_linear(layer, x, lora_A, lora_B, scale=2.0)

The low-rank product is added into the memory of W x, forward and backward; besides x, which the
layer before or its neighbours keep anyway, only A x ([T, r]) waits for the backward pass. A weight
in four bits is made anew there instead of being kept.

Legend: T tokens, r rank. Products are in the dtype of the context (autocast) or of x; A and B are
float32, and so are their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from duiti.model.linear import LinearLayer, weight_as


def adapted_linear(
    layer: LinearLayer, x: Tensor, a: Tensor, b: Tensor, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """The output of a frozen linear layer with its update.

    Args:
        x: [..., in].
        a, b: [r, in] and [out, r].
        dropout: probability with which what A sees is zeroed; the layer itself sees all.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    seen = F.dropout(x, dropout) if dropout else x
    y: Tensor = _AdaptedLinear.apply(x, seen, a, b, layer, scale)  # type: ignore[no-untyped-call]
    return y


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, seen: Tensor, a: Tensor, b: Tensor, layer: LinearLayer, scale: float
    ) -> Tensor:
        dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            flat_seen = flat if seen is x else seen.reshape(flat.shape)
            bias = None if layer.bias is None else layer.bias.to(dtype)
            y = F.linear(flat, weight_as(layer, dtype), bias)
            low = flat_seen @ a.to(dtype).T
            y.addmm_(low, b.to(dtype).T, alpha=scale)
        ctx.layer, ctx.scale, ctx.is_dropped, ctx.shape = layer, scale, seen is not x, x.shape
        ctx.save_for_backward(flat_seen, low, a, b)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        seen, low, a, b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        dtype = grad.dtype
        a, b = a.to(dtype), b.to(dtype)
        grad_x = grad_seen = None
        with torch.autocast(grad.device.type, enabled=False):
            grad_b = (grad.T @ low).float().mul_(ctx.scale)
            grad_low = (grad @ b).mul_(ctx.scale)
            grad_a = (grad_low.T @ seen).float()
            if ctx.needs_input_grad[0]:
                grad_x = grad @ weight_as(ctx.layer, dtype)
                if not ctx.is_dropped:
                    grad_x.addmm_(grad_low, a)
                grad_x = grad_x.view(ctx.shape)
            if ctx.is_dropped and ctx.needs_input_grad[1]:
                grad_seen = (grad_low @ a).view(ctx.shape)
        return grad_x, grad_seen, grad_a, grad_b, None, None
