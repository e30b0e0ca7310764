"""Names to models: a folder, the embedded `tiny`, or a hub id. Weights in the dtype that is asked
for.

source = resolve("tiny")                       # where it is; a path that exists is a path
tokenizer = load_tokenizer(source)
model = load_model(source, dtype=torch.float32, device="cpu")      # quantize="nf4": see `quantize`
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from duiti import tiny
from duiti.config import Quantize
from duiti.errors import DuitiError, UsageError, did_you_mean
from duiti.model.fetch import fetch, small_files
from duiti.model.quantize import quantize_layers, require_nf4
from duiti.model.screening import screen_model, screen_tokenizer
from duiti.model.tokenizer_patterns import screen_patterns
from duiti.model.weight_files import WEIGHTS, check_described, contents, shard_names, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

transformers.utils.logging.disable_progress_bar()

MAX_REASON = 300
"""Characters of what another library says."""
LOOKED_AT = 2**22
"""Numbers of a tensor that are looked at together for one that is not finite."""


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
    """The model's `config.json`.

    Raises:
        UsageError: there is none, or it is not what it should be.
    """
    folder = _folder(source)
    _say_code(source, screen_model(folder, source.name, trusts_code=source.trust_remote_code))
    return _read_config(source, folder)


def _read_config(source: ModelSource, folder: Path) -> PreTrainedConfig:
    """Of a folder that has been looked at."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=source.trust_remote_code, local_files_only=True
        )
        # Others are kernels, which transformers would fetch where the package for that is there.
        own = config._attn_implementation
        config._attn_implementation = own if own in ("eager", "sdpa") else None
        config._experts_implementation = None
    except Exception as error:  # somebody else's file, read by somebody else's code
        raise _unloadable(source, error) from None
    _refuse_packed(source, config)
    return config


def _folder(source: ModelSource, more: Sequence[str] = ()) -> Path:
    """Where the model's files are; those of a hub id are fetched, and no others."""
    if source.is_local:
        return Path(source.location)
    return fetch(source.name, [*small_files(trusts_code=source.trust_remote_code), *more])


def _say_code(source: ModelSource, runs_code: bool) -> None:
    if runs_code:
        _say_once(f"! {source.name}: Python code that came with it is run (--trust-remote-code)")


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        UsageError: there is none, or its files are not what they should be.
    """
    folder = _folder(source)
    _say_code(source, screen_tokenizer(folder, source.name, trusts_code=source.trust_remote_code))
    screen_patterns(folder, source.name)
    with _stderr_kept() as noted:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=source.trust_remote_code, local_files_only=True
            )
        except Exception as error:  # somebody else's files, read by somebody else's code
            raise _unloadable(source, error) from None
        except BaseException as error:
            # A panic of the Rust library is no Exception, and has no type that could be imported.
            if type(error).__name__ != "PanicException":
                raise
            noted.truncate(0)  # the backtrace
            raise UsageError(
                f"{source.name}: its tokenizer.json is damaged",
                why=f"the tokenizers library cannot read it ({_reason(error)})",
                fix="fetch the model's files again",
            ) from None
    return tokenizer


@contextmanager
def _stderr_kept() -> Iterator[IO[bytes]]:
    """Hold back what is written to stderr, Rust's panics included, until the end."""
    with tempfile.TemporaryFile() as noted:
        sys.stderr.flush()
        own = os.dup(2)
        os.dup2(noted.fileno(), 2)
        try:
            yield noted
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            noted.seek(0)
            while piece := noted.read(2**16):
                os.write(2, piece)


def load_model(
    source: ModelSource, *, dtype: torch.dtype, device: str, quantize: Quantize = "none"
) -> PreTrainedModel:
    """The model with all weights in `dtype`, in evaluation mode.

    Args:
        quantize: `nf4` keeps its linear layers in four bits, made from the numbers that are in the
            files: the same ones whatever `dtype` the rest has, and the products are made in.
    """
    trusts_code = source.trust_remote_code
    folder = _folder(source)
    if not source.is_local:
        folder = _folder(source, shard_names(folder, source.name) or [WEIGHTS])
    _say_code(source, screen_model(folder, source.name, trusts_code=trusts_code))
    config = _read_config(source, folder)
    if quantize == "nf4":
        require_nf4(device)
    held = contents(weight_files(folder, source.name), source.name)
    try:
        check_described(config, held, source.name, trust=trusts_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype if quantize == "none" else "auto",
            trust_remote_code=trusts_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except DuitiError:
        raise
    except Exception as error:  # somebody else's files, read by somebody else's code
        raise _unloadable(source, error) from None
    model: PreTrainedModel
    model, report = loaded
    # transformers fills a missing tensor with random numbers, and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        count = f"{len(missing)} tensors, such as" if len(missing) > 1 else "the tensor"
        raise DuitiError(f"{source.name}: {count} {missing[0]}, missing in its files")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _is_finite(tensor):
            raise DuitiError(f"{source.name}: the tensor {name} holds numbers that are not finite")
    if quantize == "nf4":
        stored = model.dtype
        quantize_layers(model, device=device)
        for parameter in model.parameters():
            # Others, transformers keeps in float32 on purpose. A copy even where nothing changes:
            # a tensor as it was loaded holds the whole file in memory.
            wanted = dtype if parameter.dtype == stored else parameter.dtype
            parameter.data = parameter.data.to(wanted, copy=True)
    nn.Module.to(model, device)  # transformers' own wrapper is typed for something else
    model.eval()
    return model


def _is_finite(tensor: Tensor) -> bool:
    """Piece by piece: of a whole embedding, it would take more memory than training does."""
    pieces = tensor.detach().reshape(-1).split(LOOKED_AT)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


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
    stated = (positions, tokenizer.model_max_length)  # by files that may say anything
    limits = [n for n in stated if isinstance(n, int | float) and 0 < n < 10**9]
    return int(min(limits)) if limits else 10**9


def _refuse_packed(source: ModelSource, config: PreTrainedConfig) -> None:
    """Weights that bitsandbytes has packed are no numbers to adapt, to merge or to write again."""
    values = getattr(config, "quantization_config", None)  # a file may say anything, or nothing
    method = values.get("quant_method") if isinstance(values, dict) else None
    if method == "bitsandbytes":
        raise UsageError(
            f"{source.name} holds weights that bitsandbytes has packed already",
            why="what was lost on the way cannot be had back when the adapter is merged",
            fix="name the model that it was made from, with --quantize nf4",
        )


def _unloadable(source: ModelSource, error: Exception) -> DuitiError:
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{source.name} wants to run Python code that comes with it",
            why="such code can do anything that you can",
            fix="if you have read it: --trust-remote-code",
        )
    return UsageError(f"{source.name}: cannot be loaded", why=_reason(error))


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # What a file says must not drive a terminal.
    return "".join(c if c.isprintable() else "?" for c in lines[0][:MAX_REASON])
