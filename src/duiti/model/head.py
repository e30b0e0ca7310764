"""The output layer, a tile of the vocabulary at a time, and the sums that a softmax needs of it.

    head = Head(weight_VD, bias_V, shape)
    sums = RunningSums(target_C1)
    for start, end in head.tiles():
        logits, words = head.logits(hidden_CD, start, end)
        mass, shrink = sums.add(logits, start)
    losses, share = sums.losses()

Legend: C rows of a tile, W words of it, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_TILE = (1024, 2048)
"""Rows and words of a tile: 8 MB of float32, which a processor's last cache holds."""
GPU_TILE = (8192, 8192)


@dataclass(frozen=True, slots=True)
class LogitShape:
    """What an architecture does to head outputs before the softmax: z → cap·tanh(scale·z / cap)."""

    scale: float = 1.0
    """Cohere's `logit_scale`, Granite's 1 / `logits_scaling`."""
    cap: float | None = None
    """Gemma 2's `final_logit_softcapping`."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer."""

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None
    """[V]."""
    shape: LogitShape

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First word of each tile, and the one after its last."""
        num_words = self.weight.shape[0]
        step = tile_sizes(self.weight.device.type)[1]
        for start in range(0, num_words, step):
            yield start, min(start + step, num_words)

    def logits(self, hidden: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """[C, W] logits before they are shaped, and the [W, D] words they are made with, in the
        dtype of the hidden states; with a bias float32."""
        words = self.weight[start:end].to(hidden.dtype)
        logits = hidden @ words.T
        if self.bias is not None:
            logits = logits.float() + self.bias[start:end].float()
        return logits, words

    def shaped(self, logits: Tensor) -> tuple[Tensor, Tensor | float]:
        """Shaped logits and d shaped / d logits."""
        scale, cap = self.shape.scale, self.shape.cap
        if scale != 1.0:
            logits = logits.float().mul_(scale)
        if cap is None:
            return logits, scale
        logits = logits.float()
        bounded = torch.tanh(logits / cap)
        return bounded * cap, (1 - bounded.square()) * scale


class RunningSums:
    """Sums of e_v = exp(z_v - maximum) over all words v but the target, while the maximum is still
    running (Milakov & Gimelshein 2018). Each is [C, 1] float32."""

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.maximum = torch.full_like(target, -torch.inf, dtype=torch.float32)
        self.others = torch.zeros_like(self.maximum)
        self.own = torch.zeros_like(self.maximum)
        """The target's logit."""

    def place(self, start: int, num_words: int) -> tuple[Tensor, Tensor]:
        """Whether the target is in this tile, and where (anywhere, if it is not)."""
        inside = self.target - start
        return (inside >= 0) & (inside < num_words), inside.clamp(0, num_words - 1)

    def add(self, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Take in a tile, whose memory is not the caller's any more. Returns e_v as float32, zero
        at the target, and the factor by which sums over earlier tiles shrink."""
        higher = torch.maximum(self.maximum, logits.amax(dim=1, keepdim=True).float())
        shrink = self.maximum.sub_(higher).exp_()
        self.maximum = higher
        is_here, place = self.place(start, logits.shape[1])
        self.own = torch.where(is_here, logits.gather(1, place).float(), self.own)
        # Half precision minus float32 is float32: widening the logits is no step of its own.
        mass = logits.sub_(higher) if logits.dtype == torch.float32 else logits - higher
        mass.exp_()
        mass.scatter_(1, place, mass.gather(1, place).masked_fill_(is_here, 0.0))
        self.others.mul_(shrink).add_(mass.sum(dim=1, keepdim=True))
        return mass, shrink

    def total(self) -> Tensor:
        """The sum with the target."""
        return self.others + (self.own - self.maximum).exp_()

    def losses(self) -> tuple[Tensor, Tensor]:
        """-log p of the target, and 1 - p: both from the mass beside it, so that nothing cancels
        where p is almost 1."""
        odds = self.others.log().add_(self.maximum).sub_(self.own)
        # softplus(x) = log(1 + e^x); beyond 20 it is x to float32's last digit.
        return F.softplus(odds), torch.sigmoid(odds)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where the total is float32 and they may be less."""
    if right.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right


def times(grad: Tensor | None, factor: Tensor) -> Tensor | None:
    """The factor behind the loss is 1 as a rule, and a trained head's gradient is large."""
    if grad is None or (is_known(factor) and factor.item() == 1.0):
        return grad
    return grad * factor.to(grad.dtype)


def is_known(number: Tensor) -> bool:
    """Whether reading a number waits for nothing: on a GPU it would wait for all work before it."""
    return number.device.type == "cpu"


def tile_sizes(device: str) -> tuple[int, int]:
    """Rows and words of a tile on this kind of device."""
    return CPU_TILE if device == "cpu" else GPU_TILE
