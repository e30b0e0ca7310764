"""The verb `runs`."""

from __future__ import annotations

import json

from duiti.verbs.shared import Json


def runs(*, json_: Json = False) -> None:
    """List the runs under runs/, newest first.

    Parameters
    ----------
    json_
        Print one JSON array instead of a table.
    """
    from duiti.listing import list_as_dicts, print_runs

    found = list_as_dicts()
    if json_:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_runs(found)
