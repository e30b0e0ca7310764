"""The regular expressions of a tokenizer, tried before it is used: do they come to an end?

    screen_patterns(folder, "my-model")

They came with the model, and the library's engine tries every way to match: a few characters can
take it hours for one row, or make it panic. So patterns that are not well known are run on a
handful of texts that patterns stumble over, in a child process with limits on time and memory
(`python -m duiti.model.tokenizer_patterns`). What passes is no proof, and preparing rows has limits
of its own (`duiti.data.worker`).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from duiti.errors import UsageError
from duiti.model.json_files import Value, check_file, unloadable

PARTS = ("normalizer", "pre_tokenizer", "decoder")
"""Of a tokenizer.json, those that can hold a pattern."""
MAX_PATTERN = 8192
"""Characters."""
MAX_PATTERNS = 100
CPU_S = 5
"""Of trying; ordinary patterns take some milliseconds."""
MEMORY_BYTES = 2**30

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = "'s|'t|'re|'ve|'m|'ll|'d"
KNOWN = {
    f"(?i:{_CUTS})|{_WORDS}|\\p{{N}}|{_REST}",  # Qwen 2 and 3
    f"(?i:{_CUTS})|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",  # Llama 3, GPT-4
    rf"{_CUTS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
    r"\p{Han}|\p{N}",  # the embedded model
}
"""Patterns that need no trying."""

_UNITS = (
    *(
        "a",
        "A",
        "aA",
        "a ",
        " ",
        "\n",
        " \n",
        "\t",
        "1",
        "a1",
        "'s",
        "!",
        "._-",
        "你",
        "é",
        "\u0301",
    ),
)
_ENDS = ("", "!", "a", "1", " x", "\n")
_LENGTH = 1500
"""Units of a text that is tried."""


def screen_patterns(folder: Path, name: str) -> None:
    """Refuse a tokenizer whose patterns do not come to an end.

    Raises:
        UsageError: they do not, or are far longer than patterns are.
    """
    path = check_file(folder, "tokenizer.json", name)
    if path is None:
        return
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unloadable(name, f"tokenizer.json: {type(error).__name__}") from None
    if not isinstance(values, dict):
        raise unloadable(name, "tokenizer.json holds no JSON object")
    parts = {part: values.get(part) for part in PARTS}
    found = list(_patterns(parts))
    if len(found) > MAX_PATTERNS or any(len(pattern) > MAX_PATTERN for pattern in found):
        raise unloadable(name, "tokenizer.json: its patterns are longer than patterns are")
    if all(pattern in KNOWN for pattern in found) and "Precompiled" not in json.dumps(parts):
        return
    if not _comes_to_an_end(parts):
        raise UsageError(
            f"{name}: a pattern of its tokenizer.json does not come to an end on some texts",
            why=f"it was tried for {CPU_S} s of computing, in {MEMORY_BYTES >> 30} GiB of memory",
            fix="fetch the model's files again, from where you trust",
        )


def _patterns(value: Any) -> list[str]:
    stack: list[Value] = [value]
    found = []
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            pattern = inner.get("Regex")
            if isinstance(pattern, str):
                found.append(pattern)
            stack += inner.values()
        elif isinstance(inner, list):
            stack += inner
    return found


def _comes_to_an_end(parts: dict[str, Any]) -> bool:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "duiti.model.tokenizer_patterns"],
        input=json.dumps(parts).encode(),
        capture_output=True,
        env=_environment(),
        check=False,
    )
    return done.returncode == 0


def _environment() -> dict[str, str]:
    """Nothing of this environment that the child has no use for."""
    names = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _try() -> None:
    """In the child: encode texts that patterns stumble over."""
    from tokenizers import Tokenizer

    parts = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    try:
        tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "model": empty, **parts}))
    except Exception:  # not what the library reads: it says so itself when the whole is loaded
        return
    for unit in _UNITS:
        for end in _ENDS:
            tokenizer.encode(unit * _LENGTH + end)


if __name__ == "__main__":
    _try()
