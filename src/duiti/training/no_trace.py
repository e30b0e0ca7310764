"""A model changed for a measurement, and afterwards what it was, bit for bit.

with without_trace(sft, parameters), adapters_moved(sft, seed=0):
    loss.backward()                                # gradients, dropout, random numbers
with embeddings_rounded(sft, 2**-24, seed=0): ...  # as if the input had been rounded otherwise
with layers_checkpointed(sft): ...                 # as in training, where dropout must be off
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from duiti.model.lora import lora_layers
from duiti.model.sft_model import SFTModel
from duiti.training.random_state import RandomState


@contextmanager
def without_trace(sft: SFTModel, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Afterwards gradients are dropped, and every module's mode, the buffers and all random streams
    are what they were.

    Args:
        parameters: what is trained.
    """
    streams = RandomState.now(next(sft.parameters()).device)
    others = random.getstate(), np.random.get_state()
    modes = {module: module.training for module in sft.modules()}
    put_back = kept_buffers(sft)
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
        drop_gradients(parameters)
        put_back()
        streams.restore()
        random.setstate(others[0])
        np.random.set_state(others[1])


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Their memory, too."""
    for parameter in parameters:
        parameter.grad = None


def kept_buffers(sft: SFTModel) -> Callable[[], None]:
    """What puts the buffers back to what they hold now."""
    # Weights in four bits are buffers, too, and large: whole numbers, which nothing writes.
    kept = {
        name: (buffer, buffer.clone())
        for name, buffer in sft.named_buffers()
        if buffer.is_floating_point()
    }

    def put_back() -> None:
        for name, (buffer, before) in kept.items():
            buffer.copy_(before)
            # Some models put a new tensor in the place of a buffer: the old one goes back there.
            owner, _, own = name.rpartition(".")
            sft.get_submodule(owner)._buffers[own] = buffer

    return put_back


@contextmanager
def adapters_moved(sft: SFTModel, seed: int) -> Iterator[None]:
    """Give every adapter a B that adds about a tenth to what its layer computes."""
    kept = {layer: layer.lora_B.detach().clone() for layer in lora_layers(sft).values()}
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for layer in kept:
                # A x has a variance of 1/3 where x has one of 1; so s B A x gets one of 0.01.
                std = 0.1 * math.sqrt(3 / layer.lora_A.shape[0]) / layer.scale
                drawn = torch.empty(layer.lora_B.shape).normal_(std=std, generator=generator)
                layer.lora_B.copy_(drawn)
        yield
    finally:
        with torch.no_grad():
            for layer, before in kept.items():
                layer.lora_B.copy_(before)


@contextmanager
def embeddings_rounded(sft: SFTModel, epsilon: float, seed: int) -> Iterator[None]:
    """Move every embedding by at most one unit in the last place."""
    generator = torch.Generator().manual_seed(seed)

    def move(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
        drawn = torch.empty(embedded.shape).uniform_(-1, 1, generator=generator)
        factors = 1 + 2 * epsilon * drawn.to(embedded.device)
        return (embedded.float() * factors).to(embedded.dtype)

    hook = sft.model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def layers_checkpointed(sft: SFTModel) -> Iterator[None]:
    """Layers of which training will keep the input alone do so now; otherwise they would only when
    dropout is on as well."""
    layers = [
        module
        for module in sft.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
