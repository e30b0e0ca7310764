"""What a model was trained on, as hashes: the base's weights and config, tokenizer, template.

    found = base_digest(resolve("Qwen/Qwen3-0.6B"))      # .weights, .config
    tokenizer_digest(tokenizer), template_digest(template)

Weights are read once: what came out is remembered in the cache folder, under the file's real path,
size and times, so that a chat with a large model does not begin with seconds of reading.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from duiti.data.jobs import tokenizer_json
from duiti.data.storage.cache import cache_folder
from duiti.data.storage.cache_files import canonical
from duiti.data.storage.fingerprint import file_digest
from duiti.data.templates.template import Template
from duiti.durable import write_file
from duiti.errors import DuitiError, UsageError
from duiti.model.json_files import read_json
from duiti.model.load import ModelSource
from duiti.model.weight_files import weight_files
from duiti.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTLED_S = 2.0
"""A file that was written a moment ago may be written again without a change of its times (they
are as fine as the file system's clock), so what it hashes to is not remembered yet."""

_NO_MATTER = ("_name_or_path", "transformers_version")
"""Keys of a config.json that say who wrote it, and nothing about the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDigest:
    """A base model as two hashes."""

    weights: str
    """sha256 over the name and sha256 of each safetensors file that is loaded, in name order."""
    config: str
    """sha256 over what config.json says, however it is written."""


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A file as it is, without a look into it."""

    real: str
    num_bytes: int
    times_ns: tuple[int, int]
    """Of the last writing, and of the last change of any kind: that one cannot be set back."""


def base_digest(source: ModelSource) -> BaseDigest:
    """The hashes of a base whose files are here: of a hub id, those in the local cache.

    Raises:
        UsageError: there are no such files, or they cannot be read.
        DuitiError: one of them changed while it was read.
    """
    folder = _folder(source)
    config = read_json(folder, "config.json", source.name) or {}
    named: dict[str, Json] = {
        path.name: _remembered_digest(path) for path in weight_files(folder, source.name)
    }
    kept: dict[str, Json] = {key: value for key, value in config.items() if key not in _NO_MATTER}
    return BaseDigest(weights=_sha256(canonical(named)), config=_sha256(canonical(kept)))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into ids, and the texts of the special tokens.

    Not over how it pads and cuts: any call may set that, and nothing here asks for it."""
    named = tokenizer.special_tokens_map.items()
    special: dict[str, Json] = {key: text for key, text in named if isinstance(text, str)}
    # Two settings precede this key, which stands but once unescaped in what the library writes.
    _, key, rest = tokenizer_json(tokenizer).partition('"added_tokens":')
    assert key
    return _sha256(canonical({"json": rest, "special": special}))


def template_digest(template: Template) -> str:
    """sha256 over the Jinja source and the stop token."""
    return _sha256(canonical({"source": template.source, "stop": template.stop}))


def _folder(source: ModelSource) -> Path:
    """Where the model's files lie on this machine."""
    if source.is_local:
        return Path(source.location)
    found = try_to_load_from_cache(source.location, "config.json")
    if not isinstance(found, str):
        raise UsageError(f"{source.name}: it is not on this machine")
    return Path(found).parent


def _remembered_digest(path: Path) -> str:
    """A file's sha256, read anew only where it is not the file that was read before."""
    before = _stamp(path)
    name = _sha256(canonical({"file": [before.real, before.num_bytes, *before.times_ns]}))
    memory = cache_folder() / "hashes" / name
    known = _recall(memory)
    if known is not None:
        return known
    digest = file_digest(path)
    if _stamp(path) != before:
        raise DuitiError(f"{path} changed while it was read", fix="run it again")
    if max(before.times_ns) < time.time_ns() - SETTLED_S * 1e9:
        _remember(memory, digest)
    return digest


def _stamp(path: Path) -> _Stamp:
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return _Stamp(real, found.st_size, (found.st_mtime_ns, found.st_ctime_ns))


def _recall(memory: Path) -> str | None:
    try:
        digest, _, seal = memory.read_text(encoding="ascii").strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return digest if seal == _seal(memory, digest) else None


def _remember(memory: Path, digest: str) -> None:
    try:
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(memory, f"{digest} {_seal(memory, digest)}\n")
    except (OSError, DuitiError):
        return  # a cache that cannot be written costs time in the next run, and nothing else


def _seal(memory: Path, digest: str) -> str:
    """So that a flipped bit of what is remembered is no other hash."""
    return _sha256(f"{memory.name} {digest}".encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
