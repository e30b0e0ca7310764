"""Prepared rows to what is trained and what is measured on: lengths, validation, duplicates, leaks.

    data = settle_data(prepared, val, max_length=2048)
    data.train, data.val, data.ledger, data.warnings
    if error := refusal(data, limits, on_bad_row="refuse"): raise error

Nothing is read or encoded here; every example gets one `State`, and the ledger counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from duiti.data.ledger import Ledger, State, States, make_ledger
from duiti.data.prepare import Prepared
from duiti.data.reading.json_rows import REST_UNREAD
from duiti.data.repeats.duplicates import Duplicates, Leaks, find_duplicates, find_leaks
from duiti.data.repeats.split import split
from duiti.data.storage.store import ExampleStore
from duiti.errors import DataError
from duiti.types import Rejected

SHOWN = 20
"""Rows that an error lists."""

OverLength = Literal["drop", "error", "truncate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a text may be, and what may be lost for it."""

    max_length: int
    positions: int
    """What the model's positions allow."""
    over_length: OverLength = "drop"
    max_lost: float = 0.01
    """Share of the answer tokens that may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What is trained, what is measured on, and where the rest went."""

    train: ExampleStore
    val: ExampleStore
    ledger: Ledger
    """Of the rows given as data."""
    val_ledger: Ledger | None
    """Of the rows given for validation; None where they were split off."""
    duplicates: Duplicates
    """Among the rows that are short enough, split off ones included."""
    leaks: Leaks | None
    max_length: int
    longest: int
    """Length of the longest example, kept or not."""
    warnings: tuple[str, ...]


def settle_data(
    prepared: Prepared,
    val: Prepared | float | None = None,
    *,
    max_length: int,
    seed: int = 0,
) -> DataSet:
    """Decide what becomes of every example.

    Args:
        val: validation rows; or the share of the rows to split off.
        max_length: a row with a longer example is dropped, and counted.
    """
    states = _too_long(prepared.store, max_length)
    longest = _longest(prepared.store)
    short = np.flatnonzero(states == State.KEPT)
    duplicates = find_duplicates(prepared.store.select(short))
    leaks: Leaks | None = None
    val_store, val_ledger = ExampleStore(), None
    if isinstance(val, Prepared):
        val_store, val_ledger = short_enough(val, max_length)
        longest = max(longest, _longest(val.store))
        leaks = find_leaks(prepared.store.select(short), val_store)
        states[short[leaks.mask]] = State.LEAKED
    elif val is not None:
        _, held = split(
            prepared.store.select(short), share=val, seed=seed, groups=duplicates.groups
        )
        states[short[held]] = State.VAL
        val_store = prepared.store.select(short[held])
    warnings = [_counted(text, count) for text, count in sorted(prepared.account.notes.items())]
    if isinstance(val, Prepared):
        notes = sorted(val.account.notes.items())
        warnings += [f"val: {_counted(text, count)}" for text, count in notes]
    warnings += _repeats(duplicates) + _leaked(leaks)
    return DataSet(
        train=prepared.store.select(np.flatnonzero(states == State.KEPT)),
        val=val_store,
        ledger=make_ledger(prepared.store, states, prepared.account, prepared.names),
        val_ledger=val_ledger,
        duplicates=duplicates,
        leaks=leaks,
        max_length=max_length,
        longest=longest,
        warnings=tuple(warnings),
    )


def refusal(
    data: DataSet, limits: Limits, *, on_bad_row: str, is_strict: bool = False
) -> DataError | None:
    """Why these rows should not be trained on, or None. Lists up to 20 rows by file and line."""
    for ledger in filter(None, (data.ledger, data.val_ledger)):
        error = rows_refusal(
            ledger,
            limits,
            on_bad_row=on_bad_row,
            longest=data.longest,
        )
        if error is not None:
            return error
    if is_strict and data.warnings:
        return DataError(
            "\n".join(["refused, as strict is set:", *(f"  {line}" for line in data.warnings)]),
            fix="mend the data, or leave out --strict to train on it as it is",
        )
    if not len(data.train):
        return DataError("no row is left to train on", why="the table above says where they went")
    if data.val_ledger is not None and not len(data.val):
        return DataError("no row is left to validate on")
    return None


def short_enough(prepared: Prepared, max_length: int) -> tuple[ExampleStore, Ledger]:
    """The examples of rows to measure on, without those that are too long; and their ledger."""
    states = _too_long(prepared.store, max_length)
    kept = prepared.store.select(np.flatnonzero(states == State.KEPT))
    return kept, make_ledger(prepared.store, states, prepared.account, prepared.names)


def rows_refusal(
    ledger: Ledger, limits: Limits, *, on_bad_row: str, longest: int | None = None
) -> DataError | None:
    """Why rows that are given should not be used as they are, or None.

    Args:
        longest: of all examples; None where there is no setting that would keep them.
    """
    total = ledger.total
    if not total.rows:
        return DataError("there are no rows")
    # A fault that hides the rest of its file is not a row that could be dropped.
    broken = [row for row in ledger.rejected if row.reason.endswith(REST_UNREAD)]
    if broken or (ledger.rejected and on_bad_row == "refuse"):
        return _bad_rows(ledger, broken)
    lost = total.answers_cut / max(total.answers, 1)
    if not (total.dropped or total.cut):
        return None
    if limits.over_length != "error" and lost <= limits.max_lost:
        return None
    return DataError(
        f"{total.dropped + total.cut} of {total.rows} rows are longer than max_length"
        f" {limits.max_length}; {lost:.1%} of the answer tokens would be lost",
        fix=_how_to_keep(limits, longest, lost),
    )


def _too_long(store: ExampleStore, max_length: int) -> States:
    """`DROPPED` for every example of a row that has a longer one."""
    states = np.full(len(store), State.KEPT, dtype=np.uint8)
    is_long = store.lengths > max_length
    if is_long.any():
        row = np.cumsum(store.parts() == 0) - 1
        has_long = np.bincount(row, weights=is_long) > 0
        states[has_long[row]] = State.DROPPED
    return states


def _longest(store: ExampleStore) -> int:
    return int(store.lengths.max()) if len(store) else 0


def _bad_rows(ledger: Ledger, broken: Sequence[Rejected]) -> DataError:
    others = [row for row in ledger.rejected if row not in broken]
    listed = [*broken, *others]
    lines = [f"{ledger.total.rejected} of {ledger.total.rows} rows cannot be used:"]
    lines += [f"  {row.origin}: {row.reason}" for row in listed[:SHOWN]]
    if len(listed) > SHOWN:
        lines.append(f"  … and {len(listed) - SHOWN} more")
    fix = "mend them, or train without them: --on-bad-row drop (they are listed in the run)"
    if broken:
        fix = f"mend the file at {broken[0].origin}: what follows there could not be read"
    return DataError("\n".join(lines), fix=fix)


def _how_to_keep(limits: Limits, longest: int | None, lost: float) -> str:
    """Settings that keep more, or accept the loss; each works as it is written."""
    if longest is None:
        return "split them, or leave them out: --on-bad-row drop"
    is_cut = limits.over_length == "truncate"
    if limits.max_length < limits.positions:
        enough = limits.positions if is_cut else min(longest, limits.positions)
        return f"--max-length {enough}"
    ways = ["split the rows"]
    if not is_cut:
        ways.append("--over-length truncate keeps what fits")
    accept = ["--over-length drop"] if limits.over_length == "error" else []
    if lost > limits.max_lost:
        accept.append(f"--max-lost {math.ceil(lost * 100) / 100:g}")
    if lost < 1:
        ways.append(f"{' '.join(accept)} accepts it")
    return f"the model has {limits.positions} positions: {', '.join(ways)}"


def _counted_rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


def _counted(text: str, count: int) -> str:
    return f"{text} ({count:,} row{'s' if count > 1 else ''})"


def _repeats(found: Duplicates) -> list[str]:
    texts = (
        (found.exact_rows, "say what another row says", found.exact),
        (found.near_rows, "say nearly what another row says", found.near),
        (found.contradictions, "with different answers", found.contradicting),
    )
    lines = []
    for count, what, pairs in texts:
        if count:
            subject = "row" if what.startswith("say") else "prompt"
            first = f", such as {pairs[0][0]} and {pairs[0][1]}" if pairs else ""
            plural = "s" if count > 1 else ""
            verb = what if count > 1 else what.replace("say ", "says ", 1)
            lines.append(f"{count:,} {subject}{plural} {verb}{first}")
    return lines


def _leaked(leaks: Leaks | None) -> list[str]:
    if leaks is None or not leaks.num_rows:
        return []
    pairs: Sequence[tuple[object, object]] = (*leaks.exact, *leaks.prompt, *leaks.near)
    return [
        f"{_counted_rows(leaks.num_rows)} in the validation data as well, and left out of"
        f" training ({leaks.exact_rows:,} the same, {leaks.prompt_rows:,} with the same prompt,"
        f" {leaks.near_rows:,} nearly the same), such as {pairs[0][0]} and {pairs[0][1]}"
    ]
