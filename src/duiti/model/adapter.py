"""Adapters on disk, in PEFT's format to the letter.

    save_adapter(model, folder, config, base="Qwen/Qwen3-0.6B")
    config = read_adapter_config(folder); load_adapter(model, folder)

`adapter_config.json` and `adapter_model.safetensors` with keys
`base_model.model.<module>.lora_A.weight` [r, in] and `….lora_B.weight` [out, r]. Loading is strict:
exactly the expected keys, shapes and finite numbers, or an error that names the first difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiti.config import LoraConfig, explain
from duiti.errors import DuitiError, UsageError
from duiti.model.linear import LINEAR_KINDS, is_transposed
from duiti.model.lora import LoRALinear, add_lora, find_targets, lora_layers

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
"""Settings of PEFT's that make an adapter something else than W x + s B A x."""


def save_adapter(model: nn.Module, folder: Path, config: LoraConfig, *, base: str) -> None:
    """Write a model's adapters; `base` is what PEFT will call `base_model_name_or_path`."""
    layers = lora_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": _short_names(model, layers),
        "bias": "none",
        # PEFT's word for GPT-2's Conv1D: its weights are stored the other way round.
        "fan_in_fan_out": any(is_transposed(layer.base) for layer in layers.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_adapter_config(folder: Path) -> tuple[LoraConfig, str]:
    """The settings of a saved adapter, and the base model that it names.

    Raises:
        UsageError: it is not a plain LoRA adapter.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    problem = _unsupported(values)
    if problem:
        raise UsageError(f"{path}: {problem}", why="duiti loads plain LoRA adapters")
    targets = values["target_modules"]
    try:
        config = LoraConfig(
            rank=values.get("r"),
            alpha=values.get("lora_alpha"),
            dropout=values.get("lora_dropout", 0.0),
            rslora=values.get("use_rslora", False),
            target_modules="all-linear" if targets == "all-linear" else tuple(targets),
        )
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error).what}") from None
    return config, str(values.get("base_model_name_or_path") or "")


def load_adapter(model: PreTrainedModel, folder: Path, config: LoraConfig) -> None:
    """Add the adapters that are stored in `folder`, strictly.

    Raises:
        DuitiError: missing or surplus tensors, other shapes, numbers that are not finite.
    """
    path = folder / WEIGHTS_FILE
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DuitiError(f"{path}: cannot be read ({error})") from None
    layers = add_lora(model, find_targets(model, config.target_modules), config, seed=0)
    expected: dict[str, Tensor] = {}
    for name, layer in layers.items():
        expected[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        expected[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B
    _check(path, stored, expected)
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(stored[key])


def _check(path: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    why = "the adapter belongs to another model, or the file is not whole"
    missing, surplus = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected)
    if missing or surplus:
        first = f"{missing[0]} is missing" if missing else f"{surplus[0]} belongs nowhere"
        count = len(missing) + len(surplus)
        raise DuitiError(f"{path}: {count} tensors do not fit, such as {first}", why=why)
    for key, tensor in stored.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{list(tensor.shape)}, where {list(expected[key].shape)} is due"
            raise DuitiError(f"{path}: {key} has shape {shapes}", why=why)
        if not bool(torch.isfinite(tensor).all()):
            raise DuitiError(f"{path}: {key} holds numbers that are not finite")


def _short_names(model: nn.Module, layers: dict[str, LoRALinear]) -> list[str]:
    """Suffixes where they name exactly these layers (`q_proj`), else full names."""
    short = {name.rpartition(".")[2] for name in layers}
    matched = {
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in short
        and isinstance(module, (*LINEAR_KINDS, LoRALinear))
        and not name.endswith(".base")
    }
    return sorted(short if matched == layers.keys() else layers)


def _unsupported(values: Any) -> str:
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        return "is not the configuration of a LoRA adapter"
    if values.get("bias", "none") != "none":
        return f"bias: {values['bias']} is not supported"
    for key in _NOT_PLAIN:
        if values.get(key):
            return f"{key} is not supported"
    # Other ways to start change the base's weights too, which the file does not hold.
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
        return f"init_lora_weights: {start[:20]} is not supported"
    targets = values.get("target_modules")
    if targets != "all-linear" and not isinstance(targets, list):
        return "target_modules is no list of names"
    return ""
