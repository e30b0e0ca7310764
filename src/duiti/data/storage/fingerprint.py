"""What prepared data was made from, as one name: bytes of the data, code, settings.

    name = key({"data": file_digest("my.jsonl"), "code": code_digest(), "template": …})

A cache that is asked by such a name cannot answer with what another file, tokenizer, template,
setting or version of this code made. Which things those are is the caller's to list.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from duiti.data.storage.cache_files import LAYOUT, canonical
from duiti.errors import UsageError

LIBRARIES = ("jinja2", "pyarrow", "tokenizers", "transformers", "zstandard")
"""Whose version can change what a row is prepared to."""


def key(parts: Mapping[str, str]) -> str:
    """The name of what was made from these: any change to any of them gives another name."""
    return hashlib.sha256(canonical({"layout": LAYOUT, "parts": dict(parts)})).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def code_digest() -> str:
    """sha256 of the code that prepares data, ours and what it stands on."""
    package = Path(__file__).parents[2]
    sources = [
        package / "types.py",
        package / "errors.py",
        *sorted((package / "data").rglob("*.py")),
    ]
    found = {path.relative_to(package).as_posix(): file_digest(path) for path in sources}
    found |= {name: _version(name) for name in LIBRARIES}
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    return hashlib.sha256(canonical(dict(found))).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
