"""LoRA (Hu et al. 2021): y = W x + s · B A x with W frozen and s = α/r, or α/√r for rsLoRA.

    names = find_targets(model, "all-linear")
    layers = add_lora(model, names, LoraConfig(rank=16), seed=0)     # replaces the modules in place
    with adapters_off(model): ...                                    # the base model, same weights
    with adapters_scaled(model, 0.8): ...                            # weaker, for as long
    merge(model)                                                     # plain linear layers again

A [r, in] starts as U(-1/√in, 1/√in) and B [out, r] as zero, both float32: the adapter changes
nothing until it is trained. A's start is a function of (seed, module name) alone, so adding a
target does not change the others. The base layer is frozen whole, its bias too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from duiti.config import LoraConfig
from duiti.errors import DuitiError, UsageError, did_you_mean
from duiti.model.linear import (
    LINEAR_KINDS,
    LinearLayer,
    device_of,
    has_own_forward,
    is_transposed,
    widths,
)
from duiti.model.low_rank import adapted_linear
from duiti.model.quantize import NF4Linear

MAX_STRENGTH = 1.2
"""How far the dial goes (`adapters_scaled`): past what was trained, nothing was ever measured."""


class WeightReadError(UsageError, AttributeError):
    """A model multiplies by a layer's weight itself, so that an adapter would never be asked.
    (An AttributeError too: `hasattr` has to say that there is none.)"""

    def __init__(self, name: str) -> None:
        last = name.rpartition(".")[2]
        super().__init__(
            f"lora cannot adapt {name}",
            why="this model reads the layer's weight instead of calling the layer",
            fix=f"name the layers to adapt, without {last}: --lora.target_modules …",
        )


class LoRALinear(nn.Module):
    """A frozen linear layer and its low-rank update."""

    def __init__(self, base: LinearLayer, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.dropout = dropout
        self.is_on = True
        self.name = ""
        width_in, width_out = widths(base)
        device = device_of(base)
        self.lora_A = nn.Parameter(torch.zeros(rank, width_in, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(width_out, rank, device=device, dtype=torch.float32))

    @classmethod
    def from_base(
        cls, base: LinearLayer, config: LoraConfig, *, seed: int, name: str
    ) -> LoRALinear:
        """Wrap a layer; A's start depends on `seed` and `name` only.

        Raises:
            UsageError: the rank does not fit the layer, or it is not quite a linear layer.
        """
        if has_own_forward(base):
            raise UsageError(
                f"lora cannot adapt {name}",
                why=f"{type(base).__name__} is a linear layer that computes something else",
                fix="name the layers to adapt: --lora.target_modules q_proj,v_proj",
            )
        largest = min(widths(base))
        if config.rank > largest:
            raise UsageError(
                f"lora.rank {config.rank} is larger than {name} allows ({largest})",
                fix=f"--lora.rank {largest} or less",
            )
        layer = cls(base, rank=config.rank, scale=lora_scale(config), dropout=config.dropout)
        layer.name = name
        digest = hashlib.sha256(f"lora:{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        bound = 1 / math.sqrt(widths(base)[0])
        start = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            layer.lora_A.copy_(start)
        return layer

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise WeightReadError(self.name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            y: Tensor = self.base(x)
            return y
        dropout = self.dropout if self.training else 0.0
        return adapted_linear(
            self.base, x, self.lora_A, self.lora_B, scale=self.scale, dropout=dropout
        )

    def delta(self) -> Tensor:
        """s · B A as float32 [out, in]."""
        return self.scale * (self.lora_B.detach().float() @ self.lora_A.detach().float())

    @torch.no_grad()
    def merge(self) -> nn.Linear | Conv1D:
        """The plain layer with W + s · B A: summed in float32, rounded once to W's dtype.

        This object is spent afterwards: its base *is* the merged layer.

        Raises:
            DuitiError: W is in four bits, which the sum is not.
        """
        if isinstance(self.base, NF4Linear):
            what = "an adapter cannot be merged into a base in four bits"
            raise DuitiError(what, fix="load the run with quantize='none'")
        weight = self.base.weight
        delta = self.delta().T if is_transposed(self.base) else self.delta()
        weight.copy_((weight.float() + delta).to(weight.dtype))
        self.lora_B.zero_()
        return self.base


def lora_scale(config: LoraConfig) -> float:
    """α/r, or α/√r for rsLoRA (Kalajdzievski 2023)."""
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def find_targets(model: PreTrainedModel, wanted: tuple[str, ...] | str) -> list[str]:
    """Full names of the linear layers to adapt: `all-linear` or by name.

    `all-linear` leaves out the head, and gates that give one number for a token (of a shared
    expert): no low rank is lower than that. A name matches a module whose full name is it or ends
    in `.` + it.

    Raises:
        UsageError: a name that matches nothing, or the head of a model that ties it to its
        embedding.
    """
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, LINEAR_KINDS)}
    if wanted == "all-linear":
        found = [n for n, m in linear.items() if m is not head and widths(m)[1] > 1]
        if not found:
            raise UsageError(
                "lora finds no linear layers in this model",
                why="its projections are of another kind",
                fix="--method full or --method last-n",
            )
        return found
    names: list[str] = []
    for suffix in wanted:
        found = [name for name in linear if name == suffix or name.endswith(f".{suffix}")]
        if not found:
            last = sorted({name.rpartition(".")[2] for name in linear})
            hint = did_you_mean(suffix, last)
            raise UsageError(
                f'lora.target_modules: "{suffix}" matches no linear layer.{hint}',
                fix=f"the linear layers are called {', '.join(last)}",
            )
        names += found
    if any(linear[name] is head for name in names):
        raise UsageError(
            "lora.target_modules names the output head",
            why="where it is tied to the embedding, an adapter on one end would change the other;"
            " and only its rows for trained tokens are ever computed",
            fix="leave the head out: --lora.target_modules all-linear",
        )
    return list(dict.fromkeys(names))


def add_lora(
    model: PreTrainedModel, names: list[str], config: LoraConfig, *, seed: int
) -> dict[str, LoRALinear]:
    """Freeze the model, replace the named layers by adapted ones, return these by name."""
    model.requires_grad_(False)
    layers = {}
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, LINEAR_KINDS)  # find_targets returns nothing else
        layers[name] = LoRALinear.from_base(base, config, seed=seed, name=name)
        _replace(model, name, layers[name])
    return layers


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Adapted layers by the name of the layer they replaced."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def merge(model: nn.Module) -> None:
    """Fold every adapter into its base layer; the model is made of plain layers afterwards."""
    for name, layer in lora_layers(model).items():
        _replace(model, name, layer.merge())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model, from the same weights, for as long as the context lasts."""
    before = {layer: layer.is_on for layer in lora_layers(model).values()}
    for layer in before:
        layer.is_on = False
    try:
        yield
    finally:
        for layer, was_on in before.items():
            layer.is_on = was_on


@contextmanager
def adapters_scaled(model: nn.Module, strength: float) -> Iterator[None]:
    """Every adapter times `strength`, for as long as the context lasts: 0 is the base to rounding,
    1 the model as it was trained. Afterwards each has, to the bit, the scale that it had.

    `merge` inside of it makes the weaker adapter part of the weights.

    Raises:
        UsageError: the dial does not go there.
    """
    check_strength(strength)
    before = {layer: layer.scale for layer in lora_layers(model).values()}
    for layer, scale in before.items():
        layer.scale = scale * strength
    try:
        yield
    finally:
        for layer, scale in before.items():
            layer.scale = scale


def check_strength(strength: float) -> None:
    """Whether the dial goes there.

    Raises:
        UsageError: it does not.
    """
    if not 0 <= strength <= MAX_STRENGTH:  # false for what is not a number, too
        raise UsageError(
            f"no strength {strength:g}",
            why=f"0 is the base, 1 what was trained, and the dial ends at {MAX_STRENGTH:g}",
            fix="--strength 0.8",
        )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
