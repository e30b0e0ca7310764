"""A function of the user's own, in a Python file: a filter of rows, a metric.

    own = load_function("keep.py:is_short", flag="--filter", how="--filter keep.py:is_short")
    own.function(row)
    own.where(error)                    # "KeyError at keep.py:12"

The file is run as it is, by itself: its folder is not put on the import path. It is trusted code:
nothing but the user's own flag or setting may name it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

from duiti.errors import UsageError, did_you_mean, shown_name


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """What a name like `FILE.py:FUNCTION` names."""

    function: Callable[..., object]
    path: Path

    def where(self, error: BaseException) -> str:
        """`KeyError at keep.py:12`: the exception and the last line of the file on the way."""
        return _where(error, self.path)


def load_function(spec: str, *, flag: str, how: str) -> OwnFunction:
    """The function that `FILE.py:FUNCTION` names.

    Args:
        flag: what named it, for the message.
        how: an example that is right.

    Raises:
        UsageError: no such file or function, or the file cannot be run.
    """
    file, colon, name = spec.rpartition(":")  # the last one: C:\keep.py:is_short has two
    if not colon or not file or not name.isidentifier():
        raise UsageError(f"{flag} {spec!r} names no function", fix=how)
    path = Path(file)
    module = _run(path, _read(path, flag, how), flag)
    function = vars(module).get(name)
    if not callable(function):
        raise UsageError(f"{flag}: {_no_function(module, name, path)}", fix=how)
    return OwnFunction(function, path)


def _read(path: Path, flag: str, how: str) -> bytes:
    try:
        if not path.is_file():
            what = f"{path} is not a file" if path.exists() else f"no such file: {path}"
            raise UsageError(f"{flag}: {what}", fix=how)
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{flag}: {path} cannot be read ({error.strerror})") from None


def _run(path: Path, source: bytes, flag: str) -> ModuleType:
    """The file as a module under a name of its own, without the .pyc an import would leave."""
    module = ModuleType(f"_duiti_own_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and typing look themselves up there
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UsageError(
            f"{flag}: {path} cannot be run: {_where(error, path)}",
            why=str(error) if isinstance(error, ImportError) else "",
            fix=f"python {path} shows the same error",
        ) from None
    return module


def _no_function(module: ModuleType, name: str, path: Path) -> str:
    what = "is not a function" if name in vars(module) else "does not exist"
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    hint = did_you_mean(name, own) or (f" There is: {', '.join(own)}" if own else "")
    return f"{shown_name(name)} in {path} {what}.{hint}"


def _where(error: BaseException, path: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(path):
            line = number
    kind = type(error).__name__
    return f"{kind} at {path}:{line}" if line else kind
