"""How far a model has moved from its base: KL(base ‖ tuned), differentiable, with the base given by
a few words of each position.

    words = base_words(base_hidden_ND, head_VD)                # once; see `duiti.model.top_words`
    kl_sum = drift_loss(hidden_ND, head_VD, words)             # nats, over all N positions
    (factor * kl_sum / len(words)).backward()

Legend as in `duiti.model.top_words`. The words of each position are put into K + 1 buckets: the
base's K likeliest words, one each, and all others together. With P and Q the probabilities of
buckets under base and tuned model, the loss is the sum over positions of

    sum over buckets b of P_b log(P_b / Q_b)

Putting words together cannot raise a KL divergence (the data-processing inequality), so this is a
lower bound of the KL of whole distributions, and zero where they are equal. With logits z of the
tuned model, its probabilities q_v, and p_v, p_rest those of the base:

    d loss / d z_v = q_v - p_v                       for v among the K
                   = q_v - p_rest q_v / q_rest       for all others

Only what the base holds likely is held in place: inside the rest words may trade places freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from duiti.model.few_shapes import SUPERVISED, filled, missing
from duiti.model.head import Head, LogitShape, add_product, times
from duiti.model.top_words import BaseWords, Buckets, kept_logits, row_chunks

PLAIN = LogitShape()


def drift_loss(
    hidden: Tensor,
    head: Tensor,
    words: BaseWords,
    *,
    bias: Tensor | None = None,
    shape: LogitShape = PLAIN,
) -> Tensor:
    """Sum over positions of KL(base ‖ tuned) in nats, as a float32 scalar. Gradients flow to hidden
    states, and to head and bias where these are trained.

    Args:
        hidden: [N, D] hidden states of the tuned model.
        head: [V, D] output embedding, of the same dtype or wider.
        words: of the base at these N positions, on the device of the hidden states.
        bias: [V] of the output layer, if it has one.
    """
    assert len(hidden) == len(words)
    if not torch.is_grad_enabled():
        hidden, head = hidden.detach(), head.detach()
        bias = None if bias is None else bias.detach()
    more = missing(len(hidden), SUPERVISED, hidden.device, hidden.dtype)  # 0 but for CPU's bfloat16
    loss: Tensor = _Drift.apply(  # type: ignore[no-untyped-call]
        filled(hidden, more), head, bias, words, shape
    )
    return loss


def bucket_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q) + q - p, bucket by bucket; over all buckets of a distribution the last two add
    up to nothing, and with them no term is negative, so that a small KL keeps its digits."""
    apart = log_p - log_q
    near = log_p.exp() * (apart + torch.expm1(-apart.clamp(min=-1.0)))
    far = log_p.exp() * (apart - 1) + log_q.exp()
    return torch.where(apart > -1.0, near, far)


class _Drift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        words: BaseWords,
        shape: LogitShape,
    ) -> Tensor:
        head = Head(weight, bias, shape)
        grads = _Grads(
            torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None,
            torch.zeros_like(bias, dtype=torch.float32)
            if bias is not None and ctx.needs_input_grad[2]
            else None,
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in row_chunks(hidden, head):
            own = words.at(part)
            if len(own):  # rows that were only filled up have none
                total += _chunk(hidden[part], head, own, grads, part)
        ctx.save_for_backward(
            grads.hidden,
            None if grads.weight is None else grads.weight.to(weight.dtype),
            None if grads.bias is None or bias is None else grads.bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = (times(grad, grad_outputs[0]) for grad in ctx.saved_tensors)
        return (*grads, None, None)


@dataclass(frozen=True, slots=True)
class _Grads:
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def are_asked(self) -> bool:
        return self.hidden is not None or self.weight is not None or self.bias is not None


def _chunk(hidden: Tensor, head: Head, words: BaseWords, grads: _Grads, part: slice) -> Tensor:
    """The summed loss of [C, D] rows, the first of which have words; their gradients are written,
    or added, to `grads`."""
    kept = kept_logits(hidden, head)
    num_rows = len(words)
    buckets = Buckets(words.ids)
    for start, end in head.tiles():
        buckets.add(head.shaped(kept[:num_rows, start:end].clone())[0], start)
    log_norm, log_others = buckets.log_norm(), buckets.log_others()
    rest = words.rest[:, None]
    loss = bucket_kl(words.log_probs, buckets.own - log_norm).sum()
    loss += bucket_kl(rest, log_others - log_norm).sum()
    if not grads.are_asked:
        return loss
    pull = torch.zeros_like(hidden, dtype=torch.float32)
    own_delta = (buckets.own - log_norm).exp_() - words.log_probs.exp()
    for start, end in head.tiles():
        logits, slope = head.shaped(kept[:, start:end])
        logits, slope = logits[:num_rows].float(), _first(slope, num_rows)
        delta = (logits - log_norm).exp_()
        # Among the K a logit may be far above the others' sum; it is replaced just below.
        delta -= (rest + (logits - log_others).clamp_(max=0.0)).exp_()
        _, place = buckets.place(start, end - start)
        delta = F.pad(delta, (0, 1)).scatter_(1, place, own_delta)[:, :-1]
        delta *= slope
        low = filled(delta, len(hidden) - num_rows).to(hidden.dtype)
        if grads.bias is not None:
            grads.bias[start:end] += delta.sum(dim=0)
        if grads.hidden is not None:
            add_product(pull, low, head.weight[start:end].to(hidden.dtype))
        if grads.weight is not None:
            add_product(grads.weight[start:end], low.T, hidden)
    if grads.hidden is not None:
        grads.hidden[part] = pull
    return loss


def _first(slope: Tensor | float, num_rows: int) -> Tensor | float:
    return slope[:num_rows] if isinstance(slope, Tensor) else slope
