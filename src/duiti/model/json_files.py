"""The files beside a model's weights, read with limits: JSON objects, and none from elsewhere.

    values = read_json(folder, "config.json", "my-model")      # None: there is no such file
    check_file(folder, "tokenizer.json", "my-model")

Links that lead out of the folder, devices and pipes, files that are too long, nesting without end
and NaN are refused. Nothing in a file is followed here.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TypeAlias

from duiti.errors import UsageError

MAX_BYTES = {"tokenizer.json": 2**28, "model.safetensors.index.json": 2**26}
"""Of files that are longer than a configuration."""
MAX_CONFIG_BYTES = 2**23
MAX_DEPTH = 16
"""Levels of nesting."""

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"


def read_json(folder: Path, file: str, name: str) -> dict[str, Value] | None:
    """The object in a small file; None where there is no such file.

    Raises:
        UsageError: it is too long, nested too deeply, or no JSON object.
    """
    path = check_file(folder, file, name)
    if path is None:
        return None
    try:
        values = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise unloadable(name, f"{file}: {reason}") from None
    if not isinstance(values, dict):
        raise unloadable(name, f"{file} holds no JSON object")
    if _depth(values) > MAX_DEPTH:
        raise unloadable(name, f"{file} is nested more than {MAX_DEPTH} levels deep")
    return values


def check_file(folder: Path, file: str, name: str) -> Path | None:
    """A file of the model's folder; None where there is none of that name.

    Raises:
        UsageError: it is no regular file, too long, or a link that leads out of the folder.
    """
    path = folder / file
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise unloadable(name, f"{file} is a link to a file that is not there") from None
        return None
    except (OSError, ValueError) as error:
        raise unloadable(name, f"{file}: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise unloadable(name, f"{file} is no regular file")
    if not is_inside(path, folder):
        raise UsageError(
            f"{name}: {file} is a link that leads out of the folder",
            why="a folder that came from elsewhere could so show files of yours",
            fix="put a copy in its place, or name the folder in which it lies",
        )
    limit = MAX_BYTES.get(file, MAX_CONFIG_BYTES)
    if not file.endswith(".safetensors") and status.st_size > limit:
        raise unloadable(name, f"{file} has more than {limit >> 20} MiB")
    return path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, links followed. The hub's cache is made of links to its
    `blobs`, and others link there too: that is no way out."""
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def unloadable(name: str, why: str) -> UsageError:
    """What is said of a model whose files are not what they should be."""
    return UsageError(f"{name}: cannot be loaded", why=why)


def _depth(value: Value) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        inner, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, dict | list):
            items = inner.values() if isinstance(inner, dict) else inner
            stack += [(item, depth + 1) for item in items if isinstance(item, dict | list)]
    return deepest


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name.replace("Infinity", "inf"))  # some limits are written so
