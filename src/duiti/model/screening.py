"""A model's small files, looked at before a library reads them.

    screen_model(folder, "Qwen/Qwen3-0.6B", trusts_code=False)

They came with the model and may have been written by anybody. transformers follows what they say:
keys of `config.json` can import modules, fetch kernels and whole models, and open files elsewhere
(CVE-2026-4372, CVE-2026-5241). So such keys are refused by name, as are numbers that no model has,
files that are too long and links that lead out of the folder. What is looked at is what is read:
JSON only, and nothing in it is followed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from duiti.errors import UsageError, shown_name
from duiti.model.json_files import Value, check_file, read_json, unloadable

MAX_LAYERS = 2000
MAX_EXPERTS = 10_000
MAX_MODULES = 200_000
"""Layers times experts: what is built one by one, before a number is read."""
MAX_SIZE = 2**24
"""Of a dimension or a vocabulary."""
MAX_INT = 2**63

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What transformers reads of a model, besides its weights and the tokenizer itself."""
OTHER_FILES = ("tokenizer.json", "model.safetensors.index.json", "chat_template.jinja")

_CODE = "such code can do anything that you can"
_OTHERS = "it would run, fetch or open what did not come with the model"

_REFUSED_KEYS = {
    "_attn_implementation_internal": _OTHERS,
    "_experts_implementation_internal": _OTHERS,
    "allow_all_kernels": _OTHERS,
    "backbone": _OTHERS,
    "configuration_files": _OTHERS,
    "custom_generate": _CODE,
    "custom_pipelines": _CODE,
    "fast_tokenizer_files": _OTHERS,
    "fusion_config": "it would change the model's program while that is loaded",
    "gguf_file": _OTHERS,
    "init_inputs": "it would call a program with arguments of the file's choice",
    "kernel_config": _OTHERS,
    "transformers_weights": "the weights are read from model.safetensors, or as its index says",
    "trust_remote_code": "whether code may run is for you to say, and not for the file",
    "use_kernels": _OTHERS,
    "use_pretrained_backbone": _OTHERS,
    "use_timm_backbone": _OTHERS,
}
"""Keys that make a library execute, import or fetch something, at whatever depth; unset, they are
no matter."""

_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_DTYPE = re.compile(r"(torch\.)?(auto|half|double|bfloat16|float(8_\w+|16|32|64)?)")
_TOKENIZER = re.compile(r"[A-Za-z0-9]*Tokenizer(Fast)?|(Tokenizers|Python|MistralCommon)Backend")
_LAYERS = re.compile(r"(^|_)(n|num|\w*(en|de)coder)?_?(hidden_)?(layers?|blocks|stages)$")
_EXPERTS = re.compile(r"(^|_)experts$|num_labels$")
_SIZES = re.compile(r"(_size|_dim|_rank|_inner|_embd|_width|_channels|_heads|_states?|^d_\w+)$")
_HARMLESS_PATHS = {"tokenizer_file", "special_tokens_map_file", "added_tokens_file"}
"""Paths on the maker's machine, often written and never opened: transformers puts its own there."""


def screen_model(folder: Path, name: str, *, trusts_code: bool) -> bool:
    """Look at everything small in a model's folder; `name` is what errors call the model.

    Args:
        trusts_code: the user's `--trust-remote-code`: Python files of the model may then run, but
            still none of other places.

    Returns:
        Whether Python code of the model will run.

    Raises:
        UsageError: a file that must not be handed to a library, by its key and with the reason.
    """
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise UsageError(
            f"{name} holds an adapter beside a model",
            why="transformers would add it to the model unasked",
            fix="name a folder that holds one of them: move adapter_config.json away",
        )
    runs_code = screen_tokenizer(folder, name, trusts_code=trusts_code)
    config = read_json(folder, "config.json", name)
    if config is None:
        raise unloadable(name, "there is no config.json")
    _screen_kind(config, name, trusts_code=trusts_code)
    _screen_numbers(config, f"{name}: config.json")
    return runs_code


def screen_tokenizer(folder: Path, name: str, *, trusts_code: bool) -> bool:
    """The same for a folder that holds a tokenizer, and perhaps no model."""
    for file in OTHER_FILES:
        check_file(folder, file, name)
    has_code = False
    for file in JSON_FILES:
        values = read_json(folder, file, name)
        if values is not None and file != "added_tokens.json":  # whose keys are tokens
            _screen_keys(values, f"{name}: {file}", trusts_code=trusts_code)
            has_code = has_code or bool(values.get("auto_map"))
            if file == "tokenizer_config.json":
                _screen_paths(values, f"{name}: {file}")
    return has_code and trusts_code


def _screen_keys(values: dict[str, Value], where: str, *, trusts_code: bool) -> None:
    for key, value, depth in _walk(values):
        if key == "auto_map":
            _screen_code(value, where, is_nested=depth > 0, trusts_code=trusts_code)
        elif key in _REFUSED_KEYS and value not in (None, False, [], {}, ""):
            if key in ("custom_generate", "custom_pipelines") and trusts_code:
                continue
            raise UsageError(f'{where} sets "{key}"', why=_REFUSED_KEYS[key], fix=_REMOVE)
        elif key.lstrip("_") in _IMPLEMENTATIONS:
            names = value.values() if isinstance(value, dict) else [value]
            if any(name is not None and not re.fullmatch(r"\w+", str(name)) for name in names):
                raise UsageError(
                    f'{where} sets "{key}" to a kernel from elsewhere',
                    why="it would be fetched and run",
                    fix=_REMOVE,
                )
        elif key in ("dtype", "torch_dtype"):
            if isinstance(value, str) and not _DTYPE.fullmatch(value):
                raise UsageError(f'{where}: "{key}" is no type of number')
        elif (
            key == "tokenizer_class" and isinstance(value, str) and not _TOKENIZER.fullmatch(value)
        ):
            raise UsageError(
                f'{where}: "{key}" names no tokenizer',
                why="transformers would load whatever has that name",
            )


def _screen_code(value: Value, where: str, *, is_nested: bool, trusts_code: bool) -> None:
    """`auto_map` names Python code. Without the flag it is never followed (and a model that needs
    it is refused by `_screen_kind`); with it, only into the model's own folder."""
    if value is None or (not trusts_code and not is_nested):
        return
    names = value.values() if isinstance(value, dict) else [value]
    flat = [item for name in names for item in (name if isinstance(name, list) else [name])]
    is_own = all(item is None or (isinstance(item, str) and _OWN_CODE(item)) for item in flat)
    if is_nested or not is_own:
        raise UsageError(
            f'{where} sets "auto_map" to code of another place',
            why=_CODE + "; --trust-remote-code is about the code that came with the model",
            fix="fetch that code, put it beside the model, and name it there",
        )


_OWN_CODE = re.compile(r"\w+\.\w+").fullmatch
_REMOVE = "if you know why it is there: remove it from a copy of the file"


def _screen_kind(config: dict[str, Value], name: str, *, trusts_code: bool) -> None:
    """Only architectures that continue text: others' settings name models to be fetched."""
    kind = config.get("model_type")
    is_known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not is_known and config.get("auto_map"):
        if trusts_code:
            return
        raise UsageError(
            f"{name} wants to run Python code that comes with it",
            why=f'config.json: "auto_map"; {_CODE}',
            fix="if you have read it: --trust-remote-code",
        )
    if not is_known:
        shown = shown_name(kind) if isinstance(kind, str) else "there is none"
        raise unloadable(name, f'config.json: "model_type" is not known to transformers ({shown})')
    if CONFIG_MAPPING[str(kind)] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise unloadable(name, f"{shown_name(str(kind))} is no architecture that continues text")
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if quantised and method != "bitsandbytes":  # which is refused with advice of its own
        raise UsageError(
            f'{name}: config.json sets "quantization_config" ({shown_name(str(method))})',
            why="packed weights are no numbers to adapt, and their libraries fetch kernels",
            fix="name the model that it was made from",
        )


def _screen_numbers(config: dict[str, Value], where: str) -> None:
    """What would be built before the first weight is read, however many there are."""
    layers, experts = 1, 1
    for key, value, _ in _walk(config):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if _LAYERS.search(key):
            _bound(key, value, MAX_LAYERS, where)
            layers = max(layers, value)
        elif _EXPERTS.search(key):
            _bound(key, value, MAX_EXPERTS, where)
            experts = max(experts, value)
        else:
            _bound(key, value, MAX_SIZE if _SIZES.search(key) else MAX_INT, where)
    if layers * experts > MAX_MODULES:
        raise UsageError(f"{where}: {layers} layers of {experts} experts are more than is built")


def _bound(key: str, value: int, limit: int, where: str) -> None:
    if not -limit <= value <= limit:
        raise UsageError(
            f"{where}: {shown_name(key)} is {_shortened(value)}",
            why=f"no model has more than {limit:,}; building it would take all time and memory",
        )


def _screen_paths(values: dict[str, Value], where: str) -> None:
    for key, value, _ in _walk(values):
        if not key.endswith("_file") or key in _HARMLESS_PATHS or not isinstance(value, str):
            continue
        if not re.fullmatch(r"[\w-][\w.-]*", value):
            raise UsageError(
                f"{where}: {shown_name(key)} names a file of another place",
                why=_OTHERS,
                fix=_REMOVE,
            )
    decoder = values.get("added_tokens_decoder")
    for number in decoder if isinstance(decoder, dict) else ():
        if not re.fullmatch(r"\d{1,9}", number) or int(number) > MAX_SIZE:
            raise UsageError(f'{where}: "added_tokens_decoder" has the token {number[:20]!r}')


def _walk(value: Value) -> Iterator[tuple[str, Value, int]]:
    """Every key with its value and the number of objects around it, at whatever depth."""
    stack: list[tuple[Value, int]] = [(value, 0)]
    while stack:
        inner, depth = stack.pop()
        if isinstance(inner, dict):
            for key, item in inner.items():
                yield key, item, depth
                if key not in ("label2id", "id2label"):  # keys of the maker's own
                    stack.append((item, depth + 1))
        elif isinstance(inner, list):
            stack += [(item, depth) for item in inner if isinstance(item, dict | list)]


def _shortened(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**15 else f"a number of {value.bit_length()} bits"
