"""How far a model has moved from its base, over whole vocabularies. A measurement: no gradients.

    moved = exact_drift(base_hidden_ND, hidden_ND, head, targets_N)
    moved.kl / len(targets)                       # KL(base ‖ tuned), nats per token

Legend as in `duiti.model.top_words`. Base and tuned model share the output layer, as they do with
adapters; where it is trained, see `duiti.model.drift_loss`. [N, V] never exists whole. Products are
float32 whatever the hidden states are in: bfloat16 moves a logit by up to 2^-9 of it, and two
models that are rounded apart look as if they had drifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duiti.model.drift_loss import bucket_kl
from duiti.model.head import Head, RunningSums
from duiti.model.top_words import kept_logits
from duiti.model.trained_head import rows_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Sums over N positions, in nats."""

    kl: float
    """KL(base ‖ tuned) of the next word."""
    nll_base: float
    """-log p of the targets under the base."""
    nll_tuned: float
    """The same under the tuned model."""


@torch.no_grad()
def exact_drift(base_hidden: Tensor, hidden: Tensor, head: Head, targets: Tensor) -> Moved:
    """Of two models at the same positions.

    Args:
        base_hidden: [N, D] hidden states of the base, final norm included.
        hidden: [N, D] those of the tuned model.
        targets: [N] the token that follows each position.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    step = rows_kept(2 * head.weight.shape[0], torch.float32)  # of each of the two
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        base, tuned = (
            kept_logits(rows[part].float(), head).detach() for rows in (base_hidden, hidden)
        )
        base_norm, base_losses = _norm(base, head, targets[part])
        tuned_norm, tuned_losses = _norm(tuned, head, targets[part])
        kl = torch.zeros_like(base_losses)
        for first, end in head.tiles():
            log_p = head.shaped(base[:, first:end])[0] - base_norm
            log_q = head.shaped(tuned[:, first:end])[0] - tuned_norm
            kl += bucket_kl(log_p, log_q).sum(dim=1, keepdim=True)
        found = torch.cat([kl, base_losses, tuned_losses], dim=1).cpu()
        sums += found.double().sum(dim=0)
    kl_sum, base_sum, tuned_sum = sums.tolist()
    return Moved(kl=kl_sum, nll_base=base_sum, nll_tuned=tuned_sum)


def _norm(kept: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[C, 1] log of the sum over all words of exp of their logits, and -log p of the targets."""
    sums = RunningSums(targets[:, None])
    for start, end in head.tiles():
        sums.add(head.shaped(kept[:, start:end].clone())[0], start)
    losses, _ = sums.losses()
    return sums.maximum + sums.total().log_(), losses
