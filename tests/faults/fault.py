"""A line of the matrix: a fault, what is expected of the program, and the trials that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faults.place import World

Trial = tuple[str, Callable[[], str]]
"""Which case of the fault, and a function that makes it and says what was seen."""


def spread(trials: list[Trial], number: int) -> list[Trial]:
    """So many of them, from all over."""
    step = len(trials) / number
    return trials if step <= 1 else [trials[int((n + 0.5) * step)] for n in range(number)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of fault. A trial that raises has found that the program does something else."""

    name: str
    """A word for the command line."""
    number: str
    """In the list of faults (`docs/reliability.md`)."""
    what: str
    expected: str
    trials: Callable[[World], Iterator[Trial]]
    num_sampled: int = 0
    """Trials that are made in `make test`, spread over all of them."""
