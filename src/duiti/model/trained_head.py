"""The supervised loss where the output layer is trained: its gradient needs the final sums of every
row, so some rows' logits are kept between two passes. Called by `duiti.model.loss`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from duiti.model.head import Head, LogitShape, RunningSums, add_product, times

KEPT_BYTES = 256 * 2**20
"""Of logits, in the dtype of the hidden states: the more rows at once, the less often the head's
gradient, as large as the head, is gone over."""


class TrainedHead(torch.autograd.Function):
    """As `duiti.model.loss.supervised_losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        shape: LogitShape,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, shape)
        grads = _Grads(
            torch.empty_like(hidden),
            torch.zeros_like(weight, dtype=torch.float32),
            None if bias is None else torch.zeros_like(bias, dtype=torch.float32),
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        step = rows_kept(weight.shape[0], hidden.dtype)
        for start in range(0, hidden.shape[0], step):
            part = slice(start, start + step)
            counted = None if weights is None else weights[part, None].float()
            losses = _two_passes(hidden[part], head, targets[part, None], counted, grads, part)
            total += (losses if counted is None else losses * counted).sum()
            each[part] = losses[:, 0]
        ctx.save_for_backward(
            grads.hidden,
            grads.weight.to(weight.dtype),
            None if grads.bias is None or bias is None else grads.bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(each)
        ctx.set_materialize_grads(False)
        return total, each

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = (times(grad, grad_outputs[0]) for grad in ctx.saved_tensors)
        return (*grads, None, None, None)


def rows_kept(num_words: int, dtype: torch.dtype) -> int:
    """Rows whose logits are kept at once."""
    return max(1, KEPT_BYTES // (dtype.itemsize * num_words))


@dataclass(frozen=True, slots=True)
class _Grads:
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def _two_passes(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    counted: Tensor | None,
    grads: _Grads,
    part: slice,
) -> Tensor:
    """[C, 1] losses of [C, D] rows; the gradients of their weighted sum are written, or added, to
    `grads`."""
    kept = hidden.new_empty((hidden.shape[0], head.weight.shape[0]))
    sums = RunningSums(target)
    for start, end in head.tiles():
        kept[:, start:end] = head.logits(hidden, start, end)[0]
        sums.add(head.shaped(kept[:, start:end].clone())[0], start)  # as the second pass reads them
    losses, share = sums.losses()
    log_norm = sums.maximum + sums.total().log_()
    pull = torch.zeros_like(hidden, dtype=torch.float32)
    for start, end in head.tiles():
        logits, slope = head.shaped(kept[:, start:end])
        is_here, place = sums.place(start, end - start)
        delta = (logits - log_norm).exp_()
        delta.scatter_(1, place, torch.where(is_here, -share, delta.gather(1, place)))
        delta *= slope
        if counted is not None:
            delta *= counted
        if grads.bias is not None:
            grads.bias[start:end] += delta.sum(dim=0)
        low = delta.to(hidden.dtype)
        add_product(pull, low, head.weight[start:end].to(hidden.dtype))
        add_product(grads.weight[start:end], low.T, hidden)
    grads.hidden[part] = pull
    return losses
