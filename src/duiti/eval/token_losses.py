"""Loss of every supervised token, and whether the model would have chosen it, without all logits.

    losses_N, hits_N = token_losses(sft, batch)
    for before, after in zip(answer_token_losses(base, asked), answer_token_losses(tuned, asked)): …

The output layer runs a tile of tokens by a tile of the vocabulary at a time, as in training
(`duiti.model.loss`), so that [N, V] logits never exist whole.

Legend: N supervised tokens of a batch, E examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from duiti.data.batch import collate, lengths_of, micro_batches
from duiti.eval.bootstrap import Floats
from duiti.eval.questions import Asked
from duiti.infer.model import Model
from duiti.model.head import Head, RunningSums, tile_sizes
from duiti.model.sft_model import SFTModel
from duiti.types import IGNORE_INDEX, Batch, Example, Origin

MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSums:
    """Of each example: what loss and token accuracy are made of."""

    losses: Floats
    """[E] weighted sum of the losses of its supervised tokens, in nats."""
    weights: Floats
    """[E] sum of their weights."""
    tokens: Floats
    """[E] their number."""
    hits: Floats
    """[E] those that no other token was more likely than."""


@torch.no_grad()
def token_losses(sft: SFTModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """[N] float32 losses in nats, not weighted, and [N] whether no other token is more likely."""
    hidden = sft.hidden_states(batch)[batch.supervised].to(sft.compute_dtype)
    layer = sft.model.get_output_embeddings()
    # nn.Linear(bias=False) has None, others no attribute
    head = Head(layer.weight, getattr(layer, "bias", None), sft.logit_shape)
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    hits = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    step = tile_sizes(hidden.device.type)[0]
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        sums = RunningSums(batch.targets[part, None])
        for first, behind in head.tiles():
            sums.add(head.shaped(head.logits(hidden[part], first, behind)[0])[0], first)
        losses[part] = sums.losses()[0][:, 0]
        hits[part] = (sums.own >= sums.maximum)[:, 0]
    return losses, hits


def example_sums(
    sft: SFTModel,
    examples: Sequence[Example],
    *,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> ExampleSums:
    """Of all examples, each read once. Leaves the model's mode as it was."""
    device = next(sft.parameters()).device
    found = np.zeros((4, len(examples)))
    was_training = sft.training
    sft.eval()
    try:
        lengths = lengths_of(examples)
        for part in micro_batches(range(len(examples)), lengths, budget=micro_batch_tokens):
            batch = collate([examples[i] for i in part], device)
            losses, hits = token_losses(sft, batch)
            weights = torch.ones_like(losses) if batch.weights is None else batch.weights
            rows = torch.stack([losses * weights, weights, torch.ones_like(losses), hits.float()])
            flat = rows.cpu().numpy().astype(np.float64)
            for row, own in enumerate(_owners(batch)):
                found[:, part[row]] = flat[:, own].sum(axis=1)
    finally:
        sft.train(was_training)
    return ExampleSums(losses=found[0], weights=found[1], tokens=found[2], hits=found[3])


def answer_token_losses(
    model: Model,
    asked: Sequence[Asked],
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[list[float]]:
    """Losses in nats of the tokens of each expected answer (`Asked.answer`, its stop token
    included), given its prompt. Each is computed alone.

    Args:
        compute_dtype: of the matrix products; None: the dtype of the parameters.
    """
    parameter = next(model.hf.parameters())
    sft = SFTModel(model.hf, compute_dtype=compute_dtype or parameter.dtype, is_packed=False)
    was_training = sft.training
    sft.eval()
    try:
        batches = (collate([_as_example(item)], parameter.device) for item in asked)
        return [token_losses(sft, batch)[0].tolist() for batch in batches]
    finally:
        sft.train(was_training)


def token_texts(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text of all. A character of several tokens comes
    with the last of them."""
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = model.prompt_text(ids[:end])
        is_whole = end == len(ids) or not text.endswith("\ufffd")
        is_whole = is_whole and text.startswith(shown)
        texts.append(text[len(shown) :] if is_whole else "")
        shown = text if is_whole else shown
    return texts


def _as_example(asked: Asked) -> Example:
    ids = np.array([*asked.prompt, *asked.answer], np.int32)
    labels = ids.copy()
    labels[: len(asked.prompt)] = IGNORE_INDEX
    return Example(input_ids=ids, labels=labels, origin=Origin("<asked>", 1))


def _owners(batch: Batch) -> list[slice]:
    """Which of the supervised tokens belong to each document; they are in order."""
    borders = np.searchsorted(_on_host(batch.supervised), batch.cu_seqlens)
    return [slice(start, end) for start, end in pairwise(borders.tolist())]


def _on_host(tensor: Tensor) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = tensor.cpu().numpy()
    return found
