"""What can go wrong, as a tree that maps onto exit codes.

    DuitiError             the run failed                            exit 1
    ├─ UsageError          a flag, a key, a name, a path             exit 2
    └─ DataError           the data was refused                      exit 3

Every error has three parts: *what* was found (with its place), *why* it stops the work, and a *fix*
that can be pasted. Content of rows never appears in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class DuitiError(Exception):
    """A failure that is explained to the user. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(DuitiError):
    """A flag, config key, name or path that cannot be meant as given."""

    exit_code = 2


class MetricError(UsageError):
    """A metric of the user's that fails on an answer: a run goes on without its figure."""


class DataError(DuitiError):
    """Rows that cannot be trained on, or too many of them."""

    exit_code = 3


class RowError(ValueError):
    """Why one row is rejected: a reason without its content. Collected, never shown alone."""


def shown_name(name: str) -> str:
    """A name out of a file, in quotes; one that does not read like a name could be content, or
    drive a terminal, and is only called odd."""
    return f'"{name}"' if re.fullmatch(r"[\w.\-/]{1,32}", name) else "(a long or odd name)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`' Did you mean "learning_rate"?'` where something known is near, else an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
