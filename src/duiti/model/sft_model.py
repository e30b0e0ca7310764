"""The module that is trained: a batch in, the sum of its losses out.

    sft = SFTModel(model)
    loss_sum, weight_sum = sft(batch)
    (loss_sum / weight_sum).backward()

The backbone runs on all tokens; the vocabulary projection on the supervised ones only. Documents do
not see each other: `why_alone` proves it on this very model before training, and where an
architecture cannot (state-space and convolution layers, biases on attention's scores) each document
runs alone: slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from duiti.errors import DuitiError
from duiti.model.attention import packed_attention
from duiti.model.few_shapes import TOKENS, filled, missing
from duiti.model.head import LogitShape
from duiti.model.loss import supervised_losses
from duiti.model.trunk import Trunk
from duiti.types import Batch, Example


class SFTModel(nn.Module):
    """A causal language model with the supervised loss on top.

    Args:
        model: any transformers causal language model.
        compute_dtype: of the matrix products; parameters keep their own.
        is_packed: run the documents of a batch together; otherwise one by one.

    `trunk` may be set to what `choose_trunk` returns: then the frozen layers below the first
    trained one run once for each document that it knows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        compute_dtype: torch.dtype = torch.float32,
        is_packed: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.is_packed = is_packed
        self.trunk: Trunk | None = None
        self.logit_shape = logit_shape(model)
        # transformers finds the one or the other, by name, depending on the architecture.
        decoder = model.get_decoder() if model.get_decoder() is not model else model.base_model
        if not isinstance(decoder, PreTrainedModel) or decoder is model:
            raise DuitiError(f"cannot tell the backbone of {type(model).__name__} from its head")
        # Not a submodule of its own: its parameters are the model's already.
        self._decoder = decoder

    def forward(
        self, batch: Batch, *, each: list[Tensor] | None = None
    ) -> tuple[Tensor, int | float]:
        """The weighted sum of the supervised losses in nats (float32 scalar), and what to divide
        it by (`Batch.weight_sum`).

        Args:
            each: gets one more tensor: [N] float32, the loss of each supervised position in nats,
                without its weight and without a gradient.
        """
        hidden = self.supervised_states(batch)
        head, bias = self.output_layer()
        loss, losses = supervised_losses(
            hidden, head, batch.targets, weights=batch.weights, bias=bias, shape=self.logit_shape
        )
        if each is not None:
            each.append(losses)
        return loss, batch.weight_sum

    def supervised_states(self, batch: Batch) -> Tensor:
        """[N, D] output of the backbone at the supervised positions, in the compute dtype: the
        projection is the largest product of all."""
        return self.hidden_states(batch)[batch.supervised].to(self.compute_dtype)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """Its weight [V, D], and its bias [V] if it has one."""
        head = self.model.get_output_embeddings()
        # nn.Linear(bias=False) has None, others no attribute.
        return head.weight, getattr(head, "bias", None)

    def hidden_states(self, batch: Batch) -> Tensor:
        """[T, D] output of the backbone, final norm included."""
        below = None if self.trunk is None else self.trunk.states(batch, self._run)
        return self._run(batch.input_ids, batch.position_ids, batch.cu_seqlens, below)

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        cu_seqlens: tuple[int, ...],
        below: Tensor | None = None,
    ) -> Tensor:
        """`below`: [T, D] output of the trunk; None: the trunk runs too."""
        is_low = self.compute_dtype != torch.float32
        with torch.autocast(ids.device.type, self.compute_dtype) if is_low else nullcontext():
            if self.is_packed:
                more = missing(len(ids), TOKENS, ids.device, self.compute_dtype)
                if more:  # one more document, which nothing sees
                    cu_seqlens = (*cu_seqlens, len(ids) + more)
                    below = None if below is None else filled(below, more)
                with packed_attention(self.model):
                    found = self._backbone(
                        filled(ids, more), filled(positions, more), cu_seqlens, below
                    )
                return found[: len(ids)]
            parts = []
            for start, end in pairwise(cu_seqlens):
                own = None if below is None else below[start:end]
                parts.append(self._backbone(ids[start:end], positions[start:end], None, own))
            return torch.cat(parts)

    def _backbone(
        self,
        ids: Tensor,
        positions: Tensor,
        cu_seqlens: tuple[int, ...] | None,
        below: Tensor | None,
    ) -> Tensor:
        extra = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        with nullcontext() if self.trunk is None or below is None else self.trunk.cut.above(below):
            output = self._decoder(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, **extra
            )
        return cast(Tensor, output.last_hidden_state[0])


def logit_shape(model: PreTrainedModel) -> LogitShape:
    """How this architecture shapes its logits, read from its configuration."""
    config = model.config.get_text_config()
    scale = 1.0
    if (factor := getattr(config, "logit_scale", None)) is not None:
        scale = float(factor)
    elif (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale = 1 / float(divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    return LogitShape(scale=scale, cap=None if cap is None else float(cap))


def probe_rows(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    lengths: npt.NDArray[np.int32] | None = None,
) -> list[Example]:
    """What `why_alone` needs: the shortest rows, and one that is longer than the model's window.

    A window only shows in a row that it does not cover.

    Args:
        lengths: tokens of each example, where that is known without reading them all.
    """
    if lengths is None:
        lengths = np.fromiter((len(example) for example in examples), np.int32, len(examples))
    by_length = np.argsort(lengths, kind="stable")
    chosen = by_length[:2].tolist() if len(by_length) > 1 else by_length.tolist() * 2
    config = model.config.get_text_config()
    windows = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    narrowest = min((window for window in windows if window), default=None)
    if narrowest is not None:
        chosen += by_length[lengths[by_length] > narrowest][:1].tolist()
    return [examples[index] for index in chosen]


@torch.no_grad()
def why_alone(model: PreTrainedModel, batch: Batch) -> str | None:
    """Why documents have to run one by one; None: run together, they get the hidden states that
    they get alone.

    First the sum of our losses, one document at a time, is compared with dense cross-entropy on the
    logits of the model's own forward pass; then hidden states, packed, with those one by one.

    Args:
        batch: `probe_rows`, collated. Its weights do not matter.

    Raises:
        DuitiError: even one by one, the loss is not that of the model's own logits (the
            architecture changes its logits in a way that is not known here).
    """
    was_training = model.training
    batch = replace(batch, weights=None)  # a small weight would hide a large error
    model.eval()
    try:
        # Half precision sums in another order: its noise, not an error in the layout.
        is_low = next(model.parameters()).dtype != torch.float32
        tolerance = 3e-2 if is_low else 1e-4
        alone = SFTModel(model, is_packed=False)
        ours, own = float(alone(batch)[0]), float(sum(_plain_losses(model, batch)))
        if abs(ours - own) > tolerance * max(1.0, own):
            raise DuitiError(
                f"the loss of {type(model).__name__} cannot be reproduced"
                f" ({ours:.5f} against its own {own:.5f})",
                why="the architecture changes its hidden states or logits in an unknown way",
            )
        expected = alone.hidden_states(batch)
        try:
            packed = SFTModel(model, is_packed=True).hidden_states(batch)
        except (NotImplementedError, TypeError, ValueError) as error:
            # The attention variant is not ours to compute, or the layers take no borders. Whatever
            # it is, it is said: a mistake of ours must not pass for a property of the model.
            return f"the layers of this model refuse them ({error})"
        if (packed - expected).abs().max() <= tolerance * expected.abs().max():
            return None
        return "the layers of this model would let them see each other"
    finally:
        model.train(was_training)


def _plain_losses(model: PreTrainedModel, batch: Batch) -> Iterator[Tensor]:
    for start, end in _documents(batch):
        logits = model(input_ids=batch.input_ids[None, start:end], use_cache=False).logits[0]
        inside = (batch.supervised >= start) & (batch.supervised < end)
        rows = logits[batch.supervised[inside] - start].float()
        yield cross_entropy(rows, batch.targets[inside], reduction="sum").cpu()


def _documents(batch: Batch) -> Iterator[tuple[int, int]]:
    return zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
