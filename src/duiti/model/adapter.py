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

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiti.config import LoraConfig, explain
from duiti.errors import DuitiError, UsageError, shown_name
from duiti.model.json_files import Value, read_json
from duiti.model.linear import LINEAR_KINDS, is_transposed
from duiti.model.lora import LoRALinear, add_lora, find_targets, lora_layers

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WHY = "duiti loads plain LoRA adapters: W x + s B A x, and nothing else"

READABLE = (torch.float32, torch.bfloat16, torch.float16)
"""What tensors of an adapter may be: widening these to float32 changes no number."""

_READ = {
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "fan_in_fan_out", "bias", "init_lora_weights", "revision"),
}
"""Settings of PEFT's that are read here, and refused where they say what is not supported."""

_NO_MATTER = {
    # Who wrote it, for what, and names that PEFT would import: nothing here imports them.
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "megatron_core"),
    # Means something beside use_qalora only, which is refused.
    *("qalora_group_size",),
}
"""Settings that change nothing of what is computed. All others, known today or not, are refused
unless they are unset: whatever asks for more than W x + s B A x has a key there."""


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
    values = _read_values(folder)
    problem = _unsupported(values)
    if problem:
        raise UsageError(f"{path}: {problem}", why=_WHY)
    targets = values["target_modules"]
    try:
        config = LoraConfig.model_validate(
            {
                "rank": values.get("r"),
                "alpha": values.get("lora_alpha"),
                "dropout": values.get("lora_dropout", 0.0),
                "rslora": values.get("use_rslora", False),
                "target_modules": tuple(targets) if isinstance(targets, list) else targets,
            }
        )
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error).what}") from None
    named = values.get("base_model_name_or_path")
    return config, named if isinstance(named, str) else ""


def load_adapter(model: PreTrainedModel, folder: Path, config: LoraConfig) -> None:
    """Add the adapters that are stored in `folder`, strictly.

    Raises:
        DuitiError: missing or surplus tensors, other shapes or kinds of number, numbers that are
        not finite, a setting that contradicts the model's layers.
    """
    path = folder / WEIGHTS_FILE
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DuitiError(f"{path}: cannot be read ({error})") from None
    layers = add_lora(model, find_targets(model, config.target_modules), config, seed=0)
    _check_orientation(folder, layers)
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
        if tensor.dtype not in READABLE:
            raise DuitiError(
                f"{path}: {key} holds {str(tensor.dtype).removeprefix('torch.')}",
                why="an adapter's numbers are float32, bfloat16 or float16",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise DuitiError(f"{path}: {key} holds numbers that are not finite")


def _check_orientation(folder: Path, layers: dict[str, LoRALinear]) -> None:
    """PEFT writes which way round the layers store their weights: as ours do, or it is not true."""
    stated = _read_values(folder).get("fan_in_fan_out", False)
    found = {is_transposed(layer.base) for layer in layers.values()}
    if stated not in found:
        raise DuitiError(
            f"{folder / CONFIG_FILE}: fan_in_fan_out is {json.dumps(stated)[:20]}",
            why="it tells how the layers store their weights, and this model's do it the other way",
        )


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


def _read_values(folder: Path) -> dict[str, Value]:
    values = read_json(folder, CONFIG_FILE, str(folder))
    if values is None or values.get("peft_type") != "LORA":
        found = "is not there" if values is None else "is not the configuration of a LoRA adapter"
        raise UsageError(f"{folder / CONFIG_FILE}: {found}", why=_WHY)
    return values


def _unsupported(values: dict[str, Value]) -> str:
    """The first setting that makes it something else than W x + s B A x."""
    if values.get("bias", "none") != "none":
        return f"bias: {str(values['bias'])[:20]} is not supported"
    for key, value in values.items():
        if key not in _READ | _NO_MATTER and not _is_unset(value):
            return f"{shown_name(key)} is not supported"
    # Other ways to start change the base's weights too, which the file does not hold.
    start = values.get("init_lora_weights", True)
    if start not in (True, False, "gaussian", "orthogonal"):
        return f"init_lora_weights: {str(start)[:20]} is not supported"
    if values.get("revision") not in (None, "main"):
        return "revision is not supported: name a folder that holds the base as it was then"
    targets = values.get("target_modules")
    if targets == "all-linear":
        return ""
    if isinstance(targets, str):
        return "target_modules is a pattern, and must be a list of names"
    if not (isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)):
        return "target_modules is no list of names"
    return ""


def _is_unset(value: object) -> bool:
    """As PEFT writes what is not used. 0 is a value: the first layer, for one."""
    return value is None or value is False or value in ("", [], {})
