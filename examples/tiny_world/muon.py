"""Muon: momentum whose every update is made orthogonal (Jordan et al., 2024), here in fp32.

torch has Muon too, but multiplies in bf16 whatever the processor; where bf16 is emulated that
takes longer than the whole forward and backward pass of so small a model.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices; the step is scaled to AdamW's size (0.2 · sqrt(longer side)), so both share a
    learning rate.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, with Nesterov momentum."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.sub_(update, alpha=group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, nearly: five Newton-Schulz steps."""
    a, b, c = _QUINTIC
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.add(a * x, (b * gram + c * gram @ gram) @ x)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
