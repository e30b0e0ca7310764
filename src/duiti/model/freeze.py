"""What is trained. Everything else is frozen, and a table says so.

trained = choose_trained(model, config)         # lora | last-n | full
trained.num_parameters, trained.names
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.errors import UsageError
from duiti.model.lora import add_lora, find_targets
from duiti.model.quantize import num_weights


@dataclass(frozen=True, slots=True)
class Trained:
    """The parameters that training moves."""

    parameters: dict[str, nn.Parameter]
    """By full name, in the model's order; each float32."""
    total: int
    """Number of parameters of the whole model, trained or not; each weight is one, in however few
    bits it is kept."""
    frozen_bytes: int
    """Memory of all that is not trained."""
    frozen_experts: int
    """Of a mixture of experts: parameters that adapters do not reach, for its experts are stacked
    in tensors of three dimensions and no linear layers."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    def describe(self) -> str:
        """`0.22 M of 2.43 M parameters (9.1 %)`."""
        share = self.num_parameters / self.total
        return f"{_million(self.num_parameters)} of {_million(self.total)} parameters ({share:.1%})"


def choose_trained(model: PreTrainedModel, config: Config) -> Trained:
    """Freeze the model and open what the method trains, in float32.

    Raises:
        UsageError: the method does not fit the model.
    """
    model.requires_grad_(False)
    if config.method == "lora":
        names = find_targets(model, config.lora.target_modules)
        if config.lora.layers != "all":
            names = _in_last_layers(model, names, config.lora.layers)
        add_lora(model, names, config.lora, seed=config.seed)
    else:
        modules = [model] if config.method == "full" else _last_modules(model, config)
        for module in modules:
            for parameter in module.parameters():
                parameter.requires_grad_(True)
                parameter.data = parameter.data.to(torch.float32)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    frozen_bytes = sum(tensor.nbytes for tensor in (*frozen, *model.buffers()))
    return Trained(parameters, num_weights(model), frozen_bytes, _frozen_experts(model, config))


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers: the only list of modules as long as the config says the model is deep.

    Raises:
        UsageError: there is none, or more than one.
    """
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UsageError(
            f"cannot tell the layers of {type(model).__name__} apart",
            fix="--method lora or --method full",
        )
    return stacks[0]


def _frozen_experts(model: PreTrainedModel, config: Config) -> int:
    if config.method != "lora":
        return 0
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if ".experts." in name and p.ndim == 3)


def _last_modules(model: PreTrainedModel, config: Config) -> list[nn.Module]:
    layers = transformer_layers(model)
    wanted = config.last_n.layers
    if wanted > len(layers):
        raise UsageError(
            f"last_n.layers is {wanted}, and the model has {len(layers)}",
            fix="--method full trains them all",
        )
    modules: list[nn.Module] = list(layers)[-wanted:]
    if config.last_n.train_norm:
        modules.append(final_norm(model, layers))
    if config.last_n.train_head:
        head = model.get_output_embeddings()
        if model.config.tie_word_embeddings:
            raise UsageError(
                "last_n.train_head: this model's head is tied to its embedding",
                why="training one would move the other, at the far end of the network",
                fix="leave it out, or --method full",
            )
        modules.append(head)
    return modules


def _in_last_layers(model: PreTrainedModel, names: list[str], wanted: int) -> list[str]:
    """Those of the named modules that lie in the last layers."""
    layers = transformer_layers(model)
    if wanted > len(layers):
        raise UsageError(
            f"lora.layers is {wanted}, and the model has {len(layers)}",
            fix="leave it out: all of them get adapters",
        )
    inside = {module for layer in list(layers)[-wanted:] for module in layer.modules()}
    found = [name for name in names if model.get_submodule(name) in inside]
    if not found:
        raise UsageError(
            f"lora.target_modules names nothing in the last {wanted} of {len(layers)} layers",
            fix="leave lora.layers out",
        )
    return found


def final_norm(model: PreTrainedModel, layers: nn.ModuleList) -> nn.Module:
    """The norm behind the last layer: a sibling of the stack that holds vectors only."""
    decoder = next(m for m in model.modules() if layers in m.children())
    siblings = list(decoder.children())
    after = siblings[siblings.index(layers) + 1 :]
    norms = [m for m in after if "norm" in type(m).__name__.lower()]
    if len(norms) != 1:
        raise UsageError(
            f"cannot tell the final norm of {type(model).__name__} apart",
            fix="--last-n.no-train-norm",
        )
    return norms[0]


def _million(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
