"""What `duiti check` found, as one HTML file: ledger, lengths, masks, rejected rows, duplicates.

    write_page(path, PageData(title=…, ledger=[…], examples=[show_example(…), …], …))

The file needs no network and no other file, says so in its own content security policy, and stays
below 2 MB. All text in it is hostile: jinja escapes what stands in the HTML, tokens reach the
page's script as escaped JSON and are inserted as text, and what is invisible is shown as an escape.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined, Template

from duiti.data.showing.chart import Part, draw_lengths, draw_stack
from duiti.data.showing.island import beginning, island, parts, shown
from duiti.data.showing.views import ShownExample

NUM_STATIC = 3
"""Examples that can be read without scripts."""
MAX_ITEMS = 100
"""Lines of any list: sources, reasons, warnings, pairs."""
MAX_ORIGINS = 20
"""Rows named for a reason."""


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
class Pairs:
    """How often something was found that takes two rows."""

    count: int
    pairs: Sequence[tuple[str, str]] = ()
    """Origins of both rows, for some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageData:
    """All that a page shows, as plain values."""

    title: str
    files: Sequence[str]
    """Data files, as the user named them."""
    model: str
    template: str
    max_length: int
    ledger: Sequence[LedgerLine]
    """A line per source."""
    lengths: Sequence[int] | npt.NDArray[np.integer]
    """Tokens of each example, those that are too long among them."""
    num_examples: int
    """How many there are; `examples` are the first of them."""
    examples: Sequence[ShownExample]
    """As many as fit are shown, and the page says how many those are."""
    rejected: Sequence[tuple[str, str]] = ()
    """Origin and reason of each rejected row."""
    refusal: str = ""
    """Why training would refuse these rows; empty: it would not."""
    warnings: Sequence[str] = ()
    duplicates: Mapping[str, Pairs] = field(default_factory=dict)
    """By what they are: "same conversation", "same prompt, different answer", …"""
    summary: Mapping[str, int | str] = field(default_factory=dict)
    """Further counts and settings, in the order in which to show them."""


def write_page(path: Path, page: PageData) -> None:
    """Write the page as one file."""
    path.write_text(render_page(page), encoding="utf-8", newline="\n")


def render_page(page: PageData) -> str:
    """The page as HTML. The same data give the same bytes."""
    style, script = _asset("page.css"), _asset("page.js")
    data, num_shown = island(page.examples)
    total = _total(page.ledger)
    return _template().render(
        page=page,
        total=total,
        stack=_stack(total),
        sources=[(line, _stack(line)) for line in page.ledger[:MAX_ITEMS]],
        chart=draw_lengths(page.lengths, page.max_length),
        num_shown=num_shown,
        beginnings=[beginning(example) for example in page.examples[: min(NUM_STATIC, num_shown)]],
        reasons=[(reason, len(rows), _by_file(rows)) for reason, rows in _by_reason(page.rejected)],
        max_items=MAX_ITEMS,
        max_origins=MAX_ORIGINS,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data,
    )


def _total(ledger: Sequence[LedgerLine]) -> LedgerLine:
    return LedgerLine(
        source="all",
        rows=sum(line.rows for line in ledger),
        kept=sum(line.kept for line in ledger),
        dropped=sum(line.dropped for line in ledger),
        rejected=sum(line.rejected for line in ledger),
        not_selected=sum(line.not_selected for line in ledger),
        tokens=sum(line.tokens for line in ledger),
        supervised=sum(line.supervised for line in ledger),
        context=sum(line.context for line in ledger),
        cut=sum(line.cut for line in ledger),
        dropped_tokens=sum(line.dropped_tokens for line in ledger),
        held_out=sum(line.held_out for line in ledger),
        held_out_tokens=sum(line.held_out_tokens for line in ledger),
    )


def _stack(line: LedgerLine) -> list[Part]:
    return draw_stack(
        supervised=line.supervised,
        context=line.context,
        held=line.held_out_tokens,
        cut=line.cut,
        dropped=line.dropped_tokens,
    )


def _by_reason(rejected: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Each reason with its rows, the most frequent first."""
    rows: dict[str, list[str]] = {}
    for origin, reason in rejected:
        rows.setdefault(reason, []).append(origin)
    return sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))


def _by_file(origins: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The first origins as lines of each file."""
    files: dict[str, list[str]] = {}
    for origin in origins[:MAX_ORIGINS]:
        file, _, line = origin.rpartition(":")
        files.setdefault(file, []).append(line)
    return list(files.items())


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "parts": parts, "num": _number, "share": _share}
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: int | str) -> str:
    return shown(value) if isinstance(value, str) else f"{value:,}"


def _share(part: int, whole: int) -> str:
    """A share in percent that is only 0 or 100 where it is exactly that."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return "> 99.9 %"
    return "< 0.1 %" if percent < 0.1 else f"{percent:.3g} %"
