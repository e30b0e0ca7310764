"""Cross-entropy of the supervised positions, without ever holding their logits whole.

    loss_sum = supervised_loss(hidden_ND, head_VD, targets_N, weights=weights_N)
    loss_sum, losses_N = supervised_losses(hidden_ND, head_VD, targets_N, weights=weights_N)

Legend: N supervised positions, D hidden width, V vocabulary.

Only supervised positions are projected onto the vocabulary (prompts are most of a batch, and V is
most of the work). Logits exist as tiles of a few megabytes, which stay in the processor's cache;
the gradient with respect to hidden states and head is formed in the same pass, so the backward pass
is a multiplication by a scalar.

With logits z, target t, maximum m, and e_v = exp(z_v - m):

    others = sum of e_v over v ≠ t           loss = softplus(log others + m - z_t)
    d loss / d z_v = e_v / (others + e_t)    for v ≠ t,    and for t: -others / (others + e_t)

Written like this nothing cancels: a token that is almost certain keeps the digits of its small
loss and gradient, in half precision too.

Where the head is frozen, the gradient is a running sum as well, of e_v times the words of the head,
as attention's output is in FlashAttention (Dao et al. 2022): each tile of the head is read once,
for two products. A head that is trained takes two passes (`duiti.model.trained_head`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from duiti.model.few_shapes import SUPERVISED, filled, missing
from duiti.model.head import Head, LogitShape, RunningSums, add_product, tile_sizes, times
from duiti.model.trained_head import TrainedHead, rows_kept

PLAIN = LogitShape()


def supervised_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    shape: LogitShape = PLAIN,
) -> Tensor:
    """Sum over positions of -weight * log softmax(head @ hidden)[target], in nats, as a float32
    scalar. Arguments as for `supervised_losses`."""
    return supervised_losses(hidden, head, targets, weights=weights, bias=bias, shape=shape)[0]


def supervised_losses(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    shape: LogitShape = PLAIN,
) -> tuple[Tensor, Tensor]:
    """The same sum, and what it is made of: [N] float32, the loss of each position in nats, without
    its weight. They are there anyway; no gradient flows through them.

    Args:
        hidden: [N, D] hidden states at the supervised positions.
        head: [V, D] output embedding, of the same dtype or wider.
        targets: [N] int64, the token that follows each position.
        weights: [N] float32 of each position; None: all are 1. No gradient flows to them.
        bias: [V] of the output layer, if it has one.
    """
    num_rows = len(hidden)
    more = missing(num_rows, SUPERVISED, hidden.device, hidden.dtype)
    if more:  # of no weight
        weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights
        weights, targets = filled(weights, more), filled(targets, more)
        hidden = filled(hidden, more)
    is_head_trained = torch.is_grad_enabled() and (
        head.requires_grad or (bias is not None and bias.requires_grad)
    )
    kind = TrainedHead if is_head_trained else _FrozenHead
    loss: Tensor
    losses: Tensor
    loss, losses = kind.apply(hidden, head, bias, targets, weights, shape)  # type: ignore[no-untyped-call]
    return loss, losses[:num_rows]


def working_bytes(
    num_rows: int,
    head: tuple[int, int],
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    is_head_trained: bool = False,
) -> int:
    """The most that `supervised_loss` holds beside its arguments, with the gradients it returns.

    Args:
        num_rows: supervised positions.
        head: [V, D] of the output embedding.
        dtype: of the hidden states.
        device: its kind, `cpu` or `cuda`.
    """
    num_words, width = head
    most_rows, most_words = tile_sizes(device)
    rows, words = min(num_rows, most_rows), min(num_words, most_words)
    grad_hidden = dtype.itemsize * num_rows * width
    losses = 4 * num_rows
    if not is_head_trained:
        return grad_hidden + losses + 4 * rows * (3 * words + width)
    rows = min(num_rows, rows_kept(num_words, dtype))
    kept = dtype.itemsize * rows * num_words + 4 * num_words * width
    return grad_hidden + losses + kept + 4 * rows * (3 * words + width)


class _FrozenHead(torch.autograd.Function):
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
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        step = tile_sizes(hidden.device.type)[0]
        for start in range(0, hidden.shape[0], step):
            part = slice(start, start + step)
            counted = None if weights is None else weights[part, None].float()
            own_grad = None if grad is None else grad[part]
            losses = _one_pass(hidden[part], head, targets[part, None], counted, own_grad)
            total += (losses if counted is None else losses * counted).sum()
            each[part] = losses[:, 0]
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(each)
        ctx.set_materialize_grads(False)
        return total, each

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (times(grad, grad_outputs[0]), None, None, None, None, None)


def _one_pass(
    hidden: Tensor, head: Head, target: Tensor, counted: Tensor | None, grad: Tensor | None
) -> Tensor:
    """[C, 1] losses of [C, D] rows; the gradient of their weighted sum is written to `grad`."""
    sums = RunningSums(target)
    pull = None if grad is None else torch.zeros_like(hidden, dtype=torch.float32)
    own_slope: Tensor | float = torch.ones_like(sums.own)
    for start, end in head.tiles():
        logits, words = head.logits(hidden, start, end)
        logits, slope = head.shaped(logits)
        mass, shrink = sums.add(logits, start)
        if pull is None:
            continue
        if isinstance(slope, Tensor):
            is_here, place = sums.place(start, end - start)
            own_slope = torch.where(is_here, slope.gather(1, place), own_slope)
            mass *= slope
        add_product(pull.mul_(shrink), mass.to(words.dtype), words)
    losses, share = sums.losses()
    if grad is not None and pull is not None:
        pull /= sums.total()
        pull -= share * own_slope * head.weight[target[:, 0]].float()
        if head.shape.cap is None:  # else the scale is part of the slope
            pull *= head.shape.scale
        grad.copy_(pull if counted is None else pull.mul_(counted))
    return losses
