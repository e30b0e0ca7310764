"""Activation checkpointing: layers keep their input only, and run again in the backward pass.

    checkpoint_activations(sft)              # a third more time, a fraction of the memory

transformers' own mechanism, with one addition: when a layer runs again, the documents of its batch
must be kept apart again. The numbers are the same, bit for bit.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

from transformers.modeling_layers import GradientCheckpointingLayer

from duiti.errors import UsageError
from duiti.model.attention import packed_attention
from duiti.model.sft_model import SFTModel


def can_checkpoint(sft: SFTModel) -> bool:
    """Whether transformers can do it for this architecture."""
    return bool(sft.model.supports_gradient_checkpointing)


def is_checkpointed(sft: SFTModel) -> bool:
    """Whether it is switched on."""
    layers = (m for m in sft.model.modules() if isinstance(m, GradientCheckpointingLayer))
    return any(layer.gradient_checkpointing for layer in layers)


def checkpoint_activations(sft: SFTModel) -> None:
    """Switch it on for training; evaluation and generation stay as they are.

    Raises:
        UsageError: transformers cannot do it for this architecture.
    """
    if not can_checkpoint(sft):
        raise UsageError(
            f"activation_checkpointing: {type(sft.model).__name__} does not support it",
            fix="--no-activation-checkpointing, and shorter micro-batches: --micro-batch-tokens",
        )

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the first run of a layer, and around the second."""
        # The first is within the model's forward pass, where attention is packed already.
        return nullcontext(), packed_attention(sft.model) if sft.is_packed else nullcontext()

    with warnings.catch_warnings():
        # It has a new name, which the oldest release that will do does not know.
        warnings.simplefilter("ignore", FutureWarning)
        sft.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
