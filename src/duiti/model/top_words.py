"""What a model says at each position, kept small: log-probabilities of its likeliest words, and of
all others together. So the base can be remembered after its weights have moved.

    words = base_words(hidden_ND, head_VD, num_words=64)       # K + 1 numbers for a position
    some = words.at(torch.tensor([3, 5]))

Legend: N positions, C rows of a chunk, W words of a tile, K words kept, D hidden width, V
vocabulary. All numbers are natural logarithms in float32. [N, V] never exists whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from duiti.model.head import Head, LogitShape
from duiti.model.trained_head import rows_kept

NUM_WORDS = 64
"""Words kept of each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWords:
    """The distributions of the base at N positions, as K words and a bucket for the rest."""

    ids: Tensor
    """[N, K] int32 of the likeliest words, the likeliest first."""
    log_probs: Tensor
    """[N, K] of these words."""
    rest: Tensor
    """[N] log of the probability of all other words together."""

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, place: Tensor | slice) -> BaseWords:
        """These positions alone."""
        return BaseWords(
            ids=self.ids[place], log_probs=self.log_probs[place], rest=self.rest[place]
        )

    def to(self, device: torch.device) -> BaseWords:
        """On another device."""
        return BaseWords(
            ids=self.ids.to(device),
            log_probs=self.log_probs.to(device),
            rest=self.rest.to(device),
        )


def joined(parts: list[BaseWords]) -> BaseWords:
    """One behind the other, along the positions."""
    return BaseWords(
        ids=torch.cat([part.ids for part in parts]),
        log_probs=torch.cat([part.log_probs for part in parts]),
        rest=torch.cat([part.rest for part in parts]),
    )


@torch.no_grad()
def base_words(
    hidden: Tensor,
    head: Tensor,
    *,
    num_words: int = NUM_WORDS,
    bias: Tensor | None = None,
    shape: LogitShape | None = None,
) -> BaseWords:
    """Of the model that these hidden states and this head belong to.

    Args:
        hidden: [N, D] hidden states, final norm included.
        head: [V, D] output embedding, of the same dtype or wider.
        num_words: K; fewer where the vocabulary is not larger than that.
        bias: [V] of the output layer, if it has one.
    """
    layer = Head(head, bias, shape or LogitShape())
    num_words = min(num_words, head.shape[0] - 1)  # a rest that is empty has no logarithm
    parts = []
    for part in row_chunks(hidden, layer):
        kept = kept_logits(hidden[part], layer)
        ids = _likeliest(kept, layer, num_words)
        buckets = Buckets(ids)
        for start, end in layer.tiles():
            buckets.add(layer.shaped(kept[:, start:end].clone())[0], start)
        log_norm = buckets.log_norm()
        parts.append(
            BaseWords(
                ids=ids.int(),
                log_probs=buckets.own - log_norm,
                rest=(buckets.log_others() - log_norm)[:, 0],
            )
        )
    return joined(parts)


class Buckets:
    """Logits of K words of each row, and the log of the sum of exp over all others, while tiles of
    the vocabulary come by."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids.long()
        """[C, K], in a row none twice."""
        self.own = torch.zeros_like(ids, dtype=torch.float32)
        """[C, K] logits of these words."""
        lowest = torch.finfo(torch.float32).min
        self._maximum = torch.full_like(self.own[:, :1], lowest)
        self._others = torch.zeros_like(self._maximum)

    def place(self, start: int, num_words: int) -> tuple[Tensor, Tensor]:
        """Whether a word is in this tile, and where; behind its last word, if it is not."""
        inside = self.ids - start
        is_here = (inside >= 0) & (inside < num_words)
        return is_here, inside.where(is_here, num_words)

    def add(self, logits: Tensor, start: int) -> None:
        """Take in a tile [C, W] of shaped logits."""
        is_here, place = self.place(start, logits.shape[1])
        wide = F.pad(logits.float(), (0, 1), value=-torch.inf)
        self.own = torch.where(is_here, wide.gather(1, place), self.own)
        wide.scatter_(1, place, -torch.inf)
        higher = torch.maximum(self._maximum, wide.amax(dim=1, keepdim=True))
        shrink = (self._maximum - higher).exp_()
        self._maximum = higher
        self._others.mul_(shrink).add_(wide.sub_(higher).exp_().sum(dim=1, keepdim=True))

    def log_others(self) -> Tensor:
        """[C, 1] of the words that are not among the K."""
        return self._maximum + self._others.log()

    def log_norm(self) -> Tensor:
        """[C, 1] of all words."""
        return torch.logaddexp(self.own.logsumexp(dim=1, keepdim=True), self.log_others())


def row_chunks(hidden: Tensor, head: Head) -> Iterator[slice]:
    """Rows whose logits may exist at once."""
    step = rows_kept(head.weight.shape[0], hidden.dtype)
    for start in range(0, len(hidden), step):
        yield slice(start, min(start + step, len(hidden)))


def kept_logits(hidden: Tensor, head: Head) -> Tensor:
    """[C, V] logits of a chunk before they are shaped, in the dtype of the hidden states."""
    kept = hidden.new_empty((len(hidden), head.weight.shape[0]))
    for start, end in head.tiles():
        kept[:, start:end] = head.logits(hidden, start, end)[0]
    return kept


def _likeliest(kept: Tensor, head: Head, num_words: int) -> Tensor:
    """[C, K] ids. Shaping keeps the order of words, or turns it where the scale is negative."""
    values = kept.new_empty((len(kept), 0), dtype=torch.float32)
    ids = kept.new_empty((len(kept), 0), dtype=torch.int64)
    for start, end in head.tiles():
        own = head.shaped(kept[:, start:end].clone())[0].float()
        values = torch.cat([values, own], dim=1)
        here = torch.arange(start, end, device=kept.device).expand(len(kept), -1)
        ids = torch.cat([ids, here], dim=1)
        values, best = values.topk(min(num_words, values.shape[1]), dim=1)
        ids = ids.gather(1, best)
    return ids
