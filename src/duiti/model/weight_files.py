"""The files that hold a model's weights: which they are, and how much is in them.

    files = weight_files(folder, "Qwen/Qwen3-0.6B")
    held = contents(files, name)                # tensors and their elements, from the headers alone
    check_described(config, held, name)         # before memory is asked for

safetensors only. A pickle is a program, and loading it runs it, so `.bin` files are refused with
what to do. Names in an index are names of files beside it, never paths. What `config.json`
describes must not be far more than the files hold: a few digits could ask for all memory.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from duiti.errors import DuitiError, UsageError, shown_name
from duiti.model.json_files import check_file, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
"""A plain name, without folders, spaces or dots in front."""
MAX_SHARDS = 10_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SPARE_ELEMENTS = 2**26
"""By which a description may exceed twice what the files hold. What is missing is told by name when
it is loaded; this only keeps that from taking memory without bound."""
SPARE_BYTES = 2**30
"""Of buffers (masks, positions) that no file holds."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the headers of files say."""

    num_tensors: int
    num_elements: int


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of a model's weights, each of them there.

    Raises:
        UsageError: there is none, or one must not be opened.
    """
    if check_file(folder, WEIGHTS, name) is not None:
        return [folder / WEIGHTS]
    shards = shard_names(folder, name)
    if not shards:
        raise _no_weights(folder, name)
    for shard in shards:
        if check_file(folder, shard, name) is None:
            raise UsageError(
                f"{name}: cannot be loaded",
                why=f"{INDEX} names {shard}, which is not there",
                fix="fetch the model's files again",
            )
    return [folder / shard for shard in shards]


def shard_names(folder: Path, name: str) -> list[str]:
    """The names of files in the index; none where there is no index.

    Raises:
        UsageError: one of them is no plain name.
    """
    index = read_json(folder, INDEX, name)
    if index is None:
        return []
    found = index.get("weight_map")
    names = list(found.values()) if isinstance(found, dict) else [None]
    shards: set[str] = set()
    for shard in names:
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            shown = shown_name(shard) if isinstance(shard, str) else "what is no name"
            raise UsageError(
                f"{name}: {INDEX} names {shown} as a file of weights",
                why="they are .safetensors files that lie beside it",
            )
        shards.add(shard)
    if len(shards) > MAX_SHARDS:
        raise UsageError(f"{name}: {INDEX} names more than {MAX_SHARDS:,} files")
    return sorted(shards)


def contents(files: Sequence[Path], name: str) -> Contents:
    """Tensors and elements of files, by their headers, which the library checks against the length.

    Raises:
        UsageError: a header is damaged.
    """
    num_tensors = num_elements = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (it is no mapping)
                    num_tensors += 1
                    num_elements += _product(opened.get_slice(key).get_shape())
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"{name}: cannot be loaded",
                why=f"{file.name}: {reason}",
                fix="fetch the model's files again",
            ) from None
    return Contents(num_tensors, num_elements)


def check_described(config: PreTrainedConfig, held: Contents, name: str, *, trust: bool) -> None:
    """The model of `config.json`, built without memory, beside what the files hold.

    Raises:
        DuitiError: it is much larger, so that a part of it would be made up.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust
        )
    described = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if described > 2 * held.num_elements + SPARE_ELEMENTS:
        raise DuitiError(
            f"{name}: config.json describes {described:,} numbers, and the files of weights hold"
            f" {held.num_elements:,}",
            why="config.json and weights do not belong together",
            fix="fetch the model's files again",
        )
    if buffers > 2 * held.num_elements + SPARE_BYTES:
        raise DuitiError(
            f"{name}: config.json asks for {buffers:,} bytes beside the weights",
            why="no model of this size needs that",
        )


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _no_weights(folder: Path, name: str) -> UsageError:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return UsageError(
            f"{name}: cannot be loaded", why=f"there is neither {WEIGHTS} nor {INDEX} in it"
        )
    return UsageError(
        f"{name} holds its weights as a pickle ({shown_name(pickles[0])})",
        why="a pickle is a program that runs when it is opened; weights are read from .safetensors",
        fix="look for a revision with .safetensors files, or convert it on a machine that you can"
        " lose: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
    )
