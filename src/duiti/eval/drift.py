"""What a model has forgotten: how far its predictions on anchor texts are from those of its base.

    watch = Watch(sft, anchor, is_adapter=True)     # before training
    drift = watch.measure()                         # as often as wanted, between two updates
    drift.kl, drift.nll_change                      # nats per token

The base is never a second model. With adapters it is the same weights with adapters off: its hidden
states on the anchor are kept, a number for each token and width, and the KL is exact, over the
whole vocabulary. Where the base's own weights are trained, its likeliest words at each position are
kept (`duiti.model.top_words`), and the KL is a lower bound of the exact one: small by as much as
words that the base hardly ever says have traded places.

Nothing here moves a parameter, a gradient, a mode or a random stream of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duiti.data.batch import collate, lengths_of, micro_batches
from duiti.errors import DataError, DuitiError
from duiti.eval.anchor import Anchor
from duiti.model.drift_loss import drift_loss
from duiti.model.exact_drift import exact_drift
from duiti.model.head import Head
from duiti.model.load import num_embeddings
from duiti.model.lora import adapters_off, lora_layers
from duiti.model.loss import supervised_loss
from duiti.model.sft_model import SFTModel
from duiti.model.top_words import NUM_WORDS, BaseWords, base_words
from duiti.training.no_trace import without_trace
from duiti.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Means over the predicted tokens of the anchor, in nats per token."""

    kl: float
    """KL(base ‖ tuned) of the next token's distribution: 0 where nothing changed."""
    nll_base: float
    """-log p of the anchor's tokens under the base; e to it is the perplexity."""
    nll_tuned: float
    """The same under the tuned model."""
    num_tokens: int

    @property
    def nll_change(self) -> float:
        """How much less likely the anchor has become. On text that the base wrote it is the KL
        again, from a sample; on other text it may be negative: the model has become better."""
        return self.nll_tuned - self.nll_base


class Watch:
    """An anchor, and what the base says on it."""

    def __init__(
        self,
        sft: SFTModel,
        anchor: Anchor,
        is_adapter: bool,
        *,
        num_words: int = NUM_WORDS,
        micro_batch_tokens: int = 4096,
    ) -> None:
        """
        Args:
            sft: as it is trained. With adapters at any time; without, it has to be the base still,
                before the first update and before a checkpoint is loaded.
            is_adapter: whether adapters, and nothing else, are trained.
            num_words: kept of each position where the base's own weights are trained.

        Raises:
            DataError: the anchor has ids that the model does not have.
            DuitiError: there are no adapters.
        """
        if is_adapter and not lora_layers(sft):
            raise DuitiError("the model has no adapters that could be turned off")
        self._sft, self.anchor, self._is_adapter = sft, anchor, is_adapter
        self._device = next(sft.parameters()).device
        self._batches = self._laid_out(micro_batch_tokens)
        self._base_hidden: list[Tensor] = []
        self._base_words: list[BaseWords] = []
        self._nll_base = torch.zeros((), dtype=torch.float64)
        with without_trace(sft, []), torch.no_grad(), adapters_off(sft):
            sft.eval()
            head = _head(sft)
            for batch in self._batches:
                hidden = self._hidden(batch)
                if is_adapter:
                    self._base_hidden.append(hidden)
                    continue
                words = base_words(
                    hidden.float(), head.weight, num_words=num_words, bias=head.bias,
                    shape=head.shape,
                )  # fmt: skip
                self._base_words.append(words)
                self._nll_base += _nll(hidden, head, batch)

    def measure(self) -> Drift:
        """The model as it is now against its base."""
        kl = nll_base = nll_tuned = 0.0
        with without_trace(self._sft, []), torch.no_grad():
            self._sft.eval()
            head = _head(self._sft)
            for place, batch in enumerate(self._batches):
                hidden = self._hidden(batch)
                if self._is_adapter:
                    moved = exact_drift(self._base_hidden[place], hidden, head, batch.targets)
                    kl, nll_base = kl + moved.kl, nll_base + moved.nll_base
                    nll_tuned += moved.nll_tuned
                else:
                    words = self._base_words[place]
                    kl += drift_loss(
                        hidden.float(), head.weight, words, bias=head.bias, shape=head.shape
                    ).item()
                    nll_tuned += _nll(hidden, head, batch)
        if not self._is_adapter:
            nll_base = self._nll_base.item()
        count = self.anchor.num_tokens
        return Drift(
            kl=kl / count, nll_base=nll_base / count, nll_tuned=nll_tuned / count, num_tokens=count
        )

    def _laid_out(self, micro_batch_tokens: int) -> list[Batch]:
        examples = self.anchor.examples
        largest = max(int(example.input_ids.max()) for example in examples)
        if largest >= num_embeddings(self._sft.model):
            raise DataError(
                f"{self.anchor.source}: the model has no embedding for token {largest}",
                why="its tokenizer knows more tokens than it does",
            )
        lengths = lengths_of(examples)
        parts = micro_batches(range(len(examples)), lengths, budget=micro_batch_tokens)
        return [collate([examples[i] for i in part], self._device) for part in parts]

    def _hidden(self, batch: Batch) -> Tensor:
        """[N, D] at the positions whose next token is predicted."""
        return self._sft.hidden_states(batch)[batch.supervised]


def anchor_dict(anchor: Anchor, drift: Drift) -> dict[str, str | int | float]:
    """What `anchor.json` says of a run."""
    return {
        "source": anchor.source,
        "num_texts": len(anchor.examples),
        "num_tokens": drift.num_tokens,
        "kl": drift.kl,
        "nll_base": drift.nll_base,
        "nll_tuned": drift.nll_tuned,
        "nll_change": drift.nll_change,
    }


def _head(sft: SFTModel) -> Head:
    layer = sft.model.get_output_embeddings()
    # nn.Linear(bias=False) has None, others no attribute
    return Head(layer.weight, getattr(layer, "bias", None), sft.logit_shape)


def _nll(hidden: Tensor, head: Head, batch: Batch) -> float:
    """-log p of the targets, summed; in float32 as in `duiti.model.exact_drift`."""
    loss = supervised_loss(
        hidden.float(), head.weight, batch.targets, bias=head.bias, shape=head.shape
    )
    return loss.item()
