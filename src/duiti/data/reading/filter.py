"""A filter of the user's own: a function in a Python file that says which rows are kept.

    keeps = load_filter("keep.py:is_short")     # def is_short(row: dict) -> bool
    if keeps(row.fields): ...

The function sees a copy of the row as it was read, before `map`, and must return True or False. It
may read anything, so what it chose is not kept in the cache. How the file is run, and why it is
trusted: `own_function.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from duiti.data.reading.own_function import load_function
from duiti.errors import RowError
from duiti.types import Json

_HOW = "name a file and a function in it: --filter keep.py:is_short"


def load_filter(spec: str) -> Callable[[Mapping[str, Json]], bool]:
    """The filter that `FILE.py:FUNCTION` names.

    The filter raises RowError where the function fails on a row or returns anything but True or
    False; the reason names the exception and the line, never the row.

    Raises:
        UsageError: no such file or function, or the file cannot be run.
    """
    own = load_function(spec, flag="--filter", how=_HOW)

    def keeps(fields: Mapping[str, Json]) -> bool:
        try:
            answer = own.function(copy.deepcopy(dict(fields)))
        except (Exception, SystemExit) as error:
            raise RowError(f"the filter raised {own.where(error)}") from None
        if not isinstance(answer, bool):
            found = "None" if answer is None else f"a value of type {type(answer).__name__}"
            raise RowError(f"the filter returned {found}; True or False is due")
        return answer

    return keeps
