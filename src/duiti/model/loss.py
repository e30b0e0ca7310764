"""Cross-entropy of the supervised positions, without ever holding their logits whole.

    loss_sum = supervised_loss(hidden_ND, head_VD, targets_N, weights=weights_N)

Legend: N supervised positions, D hidden width, V vocabulary, C rows of a chunk.

Only supervised positions are projected onto the vocabulary (prompts are most of a batch, and V is
most of the work). Rows are projected C at a time, the loss is formed in float32, and the gradient
with respect to hidden states and head is formed in the same pass: softmax(z) - onehot(target),
times the position's weight, so the backward pass is a multiplication by a scalar and logits live
for one chunk only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Of float32 logits held at once."""


@dataclass(frozen=True, slots=True)
class LogitShape:
    """What an architecture does to head outputs before the softmax: z → cap·tanh(scale·z / cap)."""

    scale: float = 1.0
    """Cohere's `logit_scale`, Granite's 1 / `logits_scaling`."""
    cap: float | None = None
    """Gemma 2's `final_logit_softcapping`."""


def supervised_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    shape: LogitShape = LogitShape(),
) -> Tensor:
    """Sum over positions of -weight * log softmax(head @ hidden)[target], in nats, as a float32
    scalar.

    Args:
        hidden: [N, D] hidden states at the supervised positions.
        head: [V, D] output embedding, of the same dtype or wider.
        targets: [N] int64, the token that follows each position.
        weights: [N] float32 of each position; None: all are 1. No gradient flows to them.
        bias: [V] of the output layer, if it has one.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, bias, targets, weights, shape)  # type: ignore[no-untyped-call]
    return loss


class _SupervisedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        shape: LogitShape,
    ) -> Tensor:
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        weight = head.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        grad_bias = None
        if bias is not None and needs_bias:
            grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunk = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk]
            target = targets[start : start + chunk, None]
            logits = (rows @ weight.T).float()
            if bias is not None:
                logits += bias.float()
            logits, slope = _shape(logits, shape)
            log_norm = logits.logsumexp(dim=-1, keepdim=True)
            losses = log_norm - logits.gather(1, target)
            counted = None if weights is None else weights[start : start + chunk, None].float()
            total += (losses if counted is None else losses * counted).sum()
            if not (needs_hidden or needs_head or needs_bias):
                continue
            # d loss / d logits, in the memory of the logits
            grad = logits.sub_(log_norm).exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            if slope is not None:
                grad *= slope
            if counted is not None:
                grad *= counted
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            low = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(low, weight, out=grad_hidden[start : start + chunk])
            if grad_head is not None:
                grad_head += low.T @ rows
        ctx.save_for_backward(
            grad_hidden,
            None if grad_head is None else grad_head.to(head.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        scaled = tuple(
            None if grad is None else grad * grad_output.to(grad.dtype)
            for grad in ctx.saved_tensors
        )
        return (*scaled, None, None, None)


def _shape(logits: Tensor, shape: LogitShape) -> tuple[Tensor, Tensor | float | None]:
    """Shaped logits and d shaped / d logits (None: 1)."""
    if shape.scale != 1.0:
        logits *= shape.scale
    if shape.cap is None:
        return logits, None if shape.scale == 1.0 else shape.scale
    bounded = torch.tanh(logits / shape.cap)
    return bounded * shape.cap, (1 - bounded.square()) * shape.scale
