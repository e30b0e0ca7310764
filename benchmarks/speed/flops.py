"""Necessary FLOPs of an update: what no correct implementation can leave out. Pure arithmetic.

    necessary_flops(shape, method="lora", rank=16, lengths=[180, 95], num_supervised=140)

Matrix products only, two FLOPs per multiply and add; norms, rotations, activations and the
optimizer are not counted. T tokens, S of them supervised, no padding.

| part | forward | backward |
|---|---|---|
| a linear layer W [out, in], frozen | 2 T in out | 2 T in out (to its input) |
| the same, trained | 2 T in out | 4 T in out (to its input, and its weights) |
| LoRA's A [r, in] and B [out, r] | 2 T r (in + out) | 4 T r (in + out) |
| attention, document of L tokens | 4 H E L (L+1)/2 | 8 H E L (L+1)/2 |
| head [V, D], frozen | 2 S V D | 2 S V D |
| head, trained | 2 S V D | 4 S V D |

With LoRA the input of the first layer needs no gradient: nothing below it is trained. So the first
layer's q, k and v lack the product to their input, through W and through A. Attention is causal:
L (L+1)/2 pairs of positions in two products forward and four backward. Scores that are computed
again in the backward pass are work, not necessary work; so is everything that checkpointing
repeats, padding, and the head on tokens that are not trained.

The roofline of a run is (necessary FLOPs / seconds) / (FLOPs per second of one large product).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a Llama-like decoder: grouped-query attention and a gated MLP, no biases."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer, by name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, query),
            "k": (self.hidden, key),
            "v": (self.hidden, key),
            "o": (query, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }


READS_INPUT = ("q", "k", "v")
"""Linear layers that read the input of their decoder layer."""


def necessary_flops(
    shape: Shape, *, method: Method, rank: int, lengths: Sequence[int], num_supervised: int
) -> int:
    """FLOPs of one update on documents of these lengths, `num_supervised` of their tokens trained.

    Args:
        rank: of LoRA's adapters; it does not matter for full fine-tuning.
    """
    layers = sum(
        _linear_flops(place, method=method, rank=rank, is_lowest=layer == 0 and name in READS_INPUT)
        for layer in range(shape.layers)
        for name, place in shape.linear().items()
    )
    head = (6 if method == "full" else 4) * shape.vocab * shape.hidden
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    attention = 12 * shape.layers * shape.heads * shape.head_dim * pairs
    return layers * sum(lengths) + attention + head * num_supervised


def _linear_flops(place: tuple[int, int], *, method: Method, rank: int, is_lowest: bool) -> int:
    """Per token, forward and backward. `is_lowest`: only frozen layers are below it."""
    inside, outside = place
    product = 2 * inside * outside
    if method == "full":
        return 3 * product
    down, up = 2 * rank * inside, 2 * rank * outside
    forward = product + down + up
    # To B and A themselves; through B, W and A to the input.
    return forward + up + down + up + (0 if is_lowest else product + down)
