"""Where rows and tokens went, as pages show it: a line per source, and the bar of its tokens.

    ledger = show_ledger([LedgerLine(source="a.jsonl", …), …])
    ledger.total, ledger.stack, ledger.sources

`ledger.html` beside this module has the macros that make HTML of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from duiti.data.showing.chart import Part, draw_stack

MAX_SOURCES = 100
"""Lines of a table of sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """Where the rows and the tokens of one source went."""

    source: str
    rows: int
    """kept + dropped + rejected + not_selected + held_out."""
    kept: int
    dropped: int
    """Rows that are too long."""
    rejected: int
    """Rows that cannot be used."""
    not_selected: int
    """Rows that a filter leaves out."""
    tokens: int
    """supervised + context + cut + dropped_tokens + held_out_tokens."""
    supervised: int
    context: int
    cut: int
    """Tokens cut off rows that are kept."""
    dropped_tokens: int
    """Tokens of rows that are dropped."""
    held_out: int = 0
    """Rows that training does not see because validation does. Shown where there are any."""
    held_out_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLedger:
    """A ledger as a page shows it."""

    total: LedgerLine
    stack: Sequence[Part]
    """Of all tokens."""
    sources: Sequence[tuple[LedgerLine, Sequence[Part]]]
    """The first of them, each with its own stack."""
    num_sources: int


def show_ledger(lines: Sequence[LedgerLine], *, max_sources: int = MAX_SOURCES) -> ShownLedger:
    """The ledger for a page."""
    names = [field.name for field in fields(LedgerLine) if field.name != "source"]
    sums = {name: sum(getattr(line, name) for line in lines) for name in names}
    total = LedgerLine(source="all", **sums)
    return ShownLedger(
        total=total,
        stack=_stack(total),
        sources=[(line, _stack(line)) for line in lines[:max_sources]],
        num_sources=len(lines),
    )


def _stack(line: LedgerLine) -> list[Part]:
    return draw_stack(
        supervised=line.supervised,
        context=line.context,
        held=line.held_out_tokens,
        cut=line.cut,
        dropped=line.dropped_tokens,
    )
