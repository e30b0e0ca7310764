"""What the model that was trained says, kept as a few numbers while the model itself goes.

    expected = expectations(model, held_out_rows(val, train), chats, dtype=dtype, stops=stops)

A handful of short rows, held out where there are any: the log-probability of each token of their
answers, the same with the adapters off, and what rounding alone does to it. Of an adapter also the
hash of every tensor and its scale. Nothing is moved: mode and random streams are what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from duiti.data.storage.store import ExampleStore
from duiti.model.lora import LoRALinear, adapters_off, lora_layers
from duiti.model.quantize import NF4Linear
from duiti.proof.chats import Chat
from duiti.proof.plain_reader import PREFIX, embeddings_moved, tensor_hash, token_logprobs
from duiti.types import IGNORE_INDEX, Example

NUM_ROWS, MAX_LOOKED_AT = 8, 64
MAX_TOKENS = 512
"""Of all rows together, prompts included: a second or two of a small model on a CPU."""
ENOUGH = 16
"""Trained tokens that a row should have; shorter ones only where there are not enough."""
SEEDS = (0, 1)
"""Of the roundings that are tried, here and in the fresh process."""
EPSILONS = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-9}
"""By how much of itself a number is rounded at most."""
Logprobs = list[list[float]]
"""Of each row, of each scored token, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Ids, and the places in them whose token is predicted by what stands before."""

    ids: list[int]
    scored: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the fresh process has to find."""

    rows: list[Scored]
    logprobs: Logprobs
    """Of the trained model."""
    base: Logprobs | None
    """The same with the adapters off; None where there are none."""
    rounded: list[Logprobs]
    """The trained model's, when its embeddings are rounded otherwise."""
    chats: list[Chat]
    stops: frozenset[int]
    """Tokens that end trained answers."""
    hashes: dict[str, str]
    """Of the adapter's tensors, by their names in the file."""
    scale: float | None
    """Of the adapter: alpha / rank, or alpha / sqrt(rank)."""
    dtype: torch.dtype
    """In which products are computed."""
    device: str
    is_quantized: bool
    """Whether the base is in four bits."""
    epsilon: float
    """By how much of itself a number is rounded; that is what embeddings were moved by."""

    @property
    def is_adapter(self) -> bool:
        return self.scale is not None

    @property
    def is_exact(self) -> bool:
        """Whether products are float32, all of them."""
        return self.epsilon == EPSILONS[torch.float32]

    @property
    def num_tokens(self) -> int:
        """Tokens whose log-probability is compared."""
        return sum(len(row.scored) for row in self.rows)


def held_out_rows(*stores: ExampleStore) -> list[Scored]:
    """A few short rows, of each store those with enough to score first; of the next one (the rows
    that were trained on) only as many as the ones before it leave free."""
    rows: list[Scored] = []
    left = MAX_TOKENS
    for store in stores:
        # Of equal length in the order of the file: the same run is measured on the same rows.
        order = np.lexsort((store.lengths, store.num_supervised < ENOUGH))
        for index in order[:MAX_LOOKED_AT].tolist():
            if len(rows) < NUM_ROWS and (not rows or store.lengths[index] <= left):
                row = scored_part(store[index], left)
                left -= len(row.ids)
                rows.append(row)
    return rows


def scored_part(example: Example, limit: int) -> Scored:
    """The row, or the part of it around its first answer that fits.

    A prompt is cut at its beginning: both models are given the same ids, whatever they mean."""
    trained = np.flatnonzero(example.labels[1:] != IGNORE_INDEX) + 1
    begin, end = 0, len(example)
    if end > limit:
        end = min(end, int(trained[0]) + limit // 2)
        begin = max(0, end - limit)
    inside = trained[(trained > begin) & (trained < end)]
    return Scored(ids=example.input_ids[begin:end].tolist(), scored=(inside - begin).tolist())


def scored_answer(prompt: list[int], answer: list[int]) -> Scored:
    """An answer behind its prompt, where there is no row: that of a sample, for one."""
    return Scored(ids=prompt + answer, scored=list(range(len(prompt), len(prompt + answer))))


def expectations(
    model: PreTrainedModel,
    rows: Sequence[Scored],
    chats: Sequence[Chat],
    *,
    dtype: torch.dtype,
    stops: Collection[int],
) -> Expected:
    """What the model says of the rows, now.

    Args:
        model: as it was trained, its adapters on.
        dtype: of its products in training.
        stops: tokens that end trained answers.
    """
    plain = [{"ids": row.ids, "scored": row.scored} for row in rows]
    layers = lora_layers(model)
    is_quantized = any(isinstance(module, NF4Linear) for module in model.modules())
    # bitsandbytes' kernels for four bits round within, in float32 too.
    epsilon = EPSILONS[torch.bfloat16 if is_quantized else dtype]
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    rounded = []
    model.eval()
    try:
        with _computing_in(dtype, device):
            logprobs = token_logprobs(model, plain)
            for seed in SEEDS:
                with embeddings_moved(model, epsilon, seed):
                    rounded.append(token_logprobs(model, plain))
            with adapters_off(model):
                base = token_logprobs(model, plain) if layers else None
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    return Expected(
        rows=list(rows),
        logprobs=logprobs,
        base=base,
        rounded=rounded,
        chats=list(chats),
        stops=frozenset(stops),
        hashes=_hashes(layers),
        scale=next((layer.scale for layer in layers.values()), None),
        dtype=dtype,
        device=str(device),
        is_quantized=is_quantized,
        epsilon=epsilon,
    )


def _computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """As in training: what is trained is float32 among layers that may not be."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _hashes(layers: Mapping[str, LoRALinear]) -> dict[str, str]:
    """Of every tensor of the adapters, by the name that it has in PEFT's file."""
    found = {}
    for name, layer in layers.items():
        for part, tensor in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            found[f"{PREFIX}{name}.{part}.weight"] = tensor_hash(tensor)
    return found
