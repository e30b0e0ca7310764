"""Names to models: a folder, the embedded `tiny`, or a hub id. Weights in the dtype that is asked
for.

source = resolve("tiny")                       # where it is; a path that exists is a path
tokenizer = load_tokenizer(source)
model = load_model(source, dtype=torch.float32, device="cpu")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from duiti import tiny
from duiti.errors import DuitiError, UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """As the user gave it."""
    location: str
    """A folder, or a hub id."""
    is_local: bool
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. The user's flag, nothing else."""

    @property
    def short_name(self) -> str:
        """`Qwen/Qwen3-0.6B` → `qwen3-0.6b`."""
        where = self.location if self.is_local and self.name != "tiny" else self.name
        return Path(where).name.lower() or "model"

    @property
    def lasting_name(self) -> str:
        """A name that finds the same model from any working folder."""
        return self.location if self.is_local and self.name != "tiny" else self.name


def resolve(name: str, *, trust_remote_code: bool = False) -> ModelSource:
    """Find a model by name. Touches no network.

    Raises:
        UsageError: the name can be neither a folder nor a hub id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{name} holds no model: there is no config.json in it")
        return ModelSource(name, str(path.resolve()), True, trust_remote_code)
    if name == "tiny":
        return ModelSource(name, str(tiny.model_path()), True)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if not name or looks_like_path or path.exists():
        what = f"{name} is not a folder" if path.exists() else f"no such model folder: {name}"
        raise UsageError(what, fix="a folder, a hub id such as Qwen/Qwen3-0.6B, or tiny")
    if "/" not in name:
        hint = did_you_mean(name, ["tiny"])
        raise UsageError(
            f'no model "{name}": there is no such folder, and a hub id reads owner/name.{hint}'
        )
    return ModelSource(name, name, False, trust_remote_code)


def load_config(source: ModelSource) -> PreTrainedConfig:
    """The model's `config.json`."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.location,
            trust_remote_code=source.trust_remote_code,
            local_files_only=source.is_local,
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(source, error) from None
    return config


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location,
            trust_remote_code=source.trust_remote_code,
            local_files_only=source.is_local,
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(source, error) from None
    return tokenizer


def load_model(source: ModelSource, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model with all weights in `dtype`, in evaluation mode."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=dtype,
            trust_remote_code=source.trust_remote_code,
            local_files_only=source.is_local,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(source, error) from None
    model: PreTrainedModel
    model, report = loaded
    # transformers fills a missing tensor with random numbers, and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        count = f"{len(missing)} tensors, such as" if len(missing) > 1 else "the tensor"
        raise DuitiError(f"{source.name}: {count} {missing[0]}, missing in its files")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DuitiError(f"{source.name}: the tensor {name} holds numbers that are not finite")
    nn.Module.to(model, device)  # transformers' own wrapper is typed for something else
    model.eval()
    return model


def num_embeddings(model: PreTrainedModel) -> int:
    """Rows of the input embedding: one more than the largest id that the model takes."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding.num_embeddings


def choose_device(wanted: str) -> str:
    """`auto` → CUDA where there is one, else the CPU; anything else is checked.

    Raises:
        UsageError: there is no such device here.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {wanted}: {reason}", fix="duiti doctor lists them") from None
    return wanted


def longest_text(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model's positions, and its tokenizer, allow."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # Tokenizers without a limit state one of about 1e30.
    limits = [n for n in (positions, tokenizer.model_max_length) if n and n < 10**9]
    return int(min(limits)) if limits else 10**9


def _unloadable(source: ModelSource, error: Exception) -> DuitiError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{source.name} wants to run Python code that comes with it",
            why="such code can do anything that you can",
            fix="if you have read it: --trust-remote-code",
        )
    return UsageError(f"{source.name}: cannot be loaded", why=reason)
