"""A filter of the user's own: a function in a Python file that says which rows are kept.

    keeps = load_filter("keep.py:is_short")     # def is_short(row: dict) -> bool
    if keeps(row.fields): ...

The function sees a copy of the row as it was read, before `map`, and must return True or False.
The file is run as it is, by itself: its folder is not put on the import path. It may read anything,
so what it chose is not kept in the cache. A filter is trusted code: nothing but the user's own flag
or setting names it.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

from duiti.errors import RowError, UsageError, did_you_mean, shown_name
from duiti.types import Json

_HOW = "name a file and a function in it: --filter keep.py:is_short"


def load_filter(spec: str) -> Callable[[Mapping[str, Json]], bool]:
    """The filter that `FILE.py:FUNCTION` names.

    The filter raises RowError where the function fails on a row or returns anything but True or
    False; the reason names the exception and the line, never the row.

    Raises:
        UsageError: no such file or function, or the file cannot be run.
    """
    path, name = _split(spec)
    module = _run(path, _read(path))
    function = vars(module).get(name)
    if not callable(function):
        raise UsageError(_no_function(module, name, path), fix=_HOW)

    def keeps(fields: Mapping[str, Json]) -> bool:
        try:
            answer: object = function(copy.deepcopy(dict(fields)))
        except (Exception, SystemExit) as error:
            raise RowError(f"the filter raised {_where(error, path)}") from None
        if not isinstance(answer, bool):
            found = "None" if answer is None else f"a value of type {type(answer).__name__}"
            raise RowError(f"the filter returned {found}; True or False is due")
        return answer

    return keeps


def _split(spec: str) -> tuple[Path, str]:
    file, colon, name = spec.rpartition(":")  # the last one: C:\keep.py:is_short has two
    if not colon or not file or not name.isidentifier():
        raise UsageError(f"--filter {spec!r} names no function", fix=_HOW)
    return Path(file), name


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = f"{path} is not a file" if path.exists() else f"no such file: {path}"
            raise UsageError(f"--filter: {what}", fix=_HOW)
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--filter: {path} cannot be read ({error.strerror})") from None


def _run(path: Path, source: bytes) -> ModuleType:
    """The file as a module under a name of its own, without the .pyc an import would leave."""
    module = ModuleType(f"_duiti_filter_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and typing look themselves up there
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UsageError(
            f"--filter: {path} cannot be run: {_where(error, path)}",
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
    return f"--filter: {shown_name(name)} in {path} {what}.{hint}"


def _where(error: BaseException, path: Path) -> str:
    """`KeyError at keep.py:12`: the exception and the last line of that file on the way to it."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(path):
            line = number
    kind = type(error).__name__
    return f"{kind} at {path}:{line}" if line else kind
