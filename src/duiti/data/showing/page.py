"""What `duiti check` found, as one HTML file: ledger, lengths, masks, rejected rows, duplicates.

    write_page(path, PageData(title=…, ledger=[…], examples=[show_example(…), …], …))

The file needs no network and no other file, says so in its own content security policy, and stays
below 2 MB. All text in it is hostile: jinja escapes what stands in the HTML, tokens reach the
page's script as escaped JSON and are inserted as text, and what is invisible is shown as an escape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from duiti.data.showing.chart import draw_lengths
from duiti.data.showing.island import beginning, island, parts
from duiti.data.showing.ledger import LedgerLine, show_ledger
from duiti.data.showing.one_file import environment, policy_hash, script_of, style_of
from duiti.data.showing.views import ShownExample

__all__ = ["LedgerLine", "PageData", "Pairs", "render_page", "write_page"]

_HERE = Path(__file__).parent
NUM_STATIC = 3
"""Examples that can be read without scripts."""
MAX_ITEMS = 100
"""Lines of any list: files, reasons, warnings, pairs."""
MAX_ORIGINS = 20
"""Rows named for a reason."""


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
    style, script = style_of(_HERE), script_of(_HERE)
    data, num_shown = island(page.examples)
    ledger = show_ledger(page.ledger)
    return (
        environment(_HERE)
        .get_template("page.html")
        .render(
            page=page,
            ledger=ledger,
            total=ledger.total,
            chart=draw_lengths(page.lengths, page.max_length),
            num_shown=num_shown,
            parts=parts,
            beginnings=[
                beginning(example) for example in page.examples[: min(NUM_STATIC, num_shown)]
            ],
            reasons=[
                (reason, len(rows), _by_file(rows)) for reason, rows in _by_reason(page.rejected)
            ],
            max_items=MAX_ITEMS,
            max_origins=MAX_ORIGINS,
            style=style,
            script=script,
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
            data=data,
        )
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
