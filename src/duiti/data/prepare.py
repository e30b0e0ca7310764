"""Files to examples: the first hops in a line, with every row accounted for.

    prepared = prepare(["a.jsonl", "b.json"], encoder, max_length=2048)
    prepared.examples; prepared.ledger; prepared.warnings
    if error := refusal(prepared, on_bad_row="refuse"): raise error

Preparing never raises because of a row: all rows are looked at, so that all problems can be shown
at once. Whether they stop the run is `refusal`'s to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duiti.data.encode import Encoder
from duiti.data.formats import to_sample, unread_fields
from duiti.data.ledger import Ledger
from duiti.data.read import read_rows
from duiti.errors import DataError, RowError, shown_name
from duiti.types import Example, Json, Rejected, Sample

MAX_ANSWERS_CUT = 0.01
"""Share of the answer tokens that may be lost to `max_length` before the run is refused."""

Source = str | Path | Sequence[Mapping[str, Json]]


@dataclass(slots=True)
class Prepared:
    """Examples of all sources in the order of the rows, and where everything went."""

    examples: list[Example] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    warnings: list[str] = field(default_factory=list)
    max_length: int = 0
    longest: int = 0
    """Length of the longest example, kept or not."""


def prepare(
    sources: Iterable[Source],
    encoder: Encoder,
    *,
    max_length: int,
    mapping: Mapping[str, str] | None = None,
) -> Prepared:
    """Read, parse, render and encode every row.

    Args:
        sources: file paths, or lists of dicts.
        max_length: examples with more tokens are dropped, and counted.

    Raises:
        UsageError: a file cannot be read at all.
    """
    prepared = Prepared(max_length=max_length)
    notes: Counter[str] = Counter()
    for source in sources:
        for item in encoder.encode(_samples(source, mapping, encoder, notes)):
            _account(prepared, item)
    prepared.warnings = [
        f"{text} ({count} row{'s' if count > 1 else ''})" for text, count in sorted(notes.items())
    ]
    return prepared


def refusal(prepared: Prepared, *, on_bad_row: str, over_length: str = "drop") -> DataError | None:
    """Why these rows should not be trained on, or None. Lists up to 20 rows by file and line."""
    ledger = prepared.ledger
    if ledger.rejected and on_bad_row == "refuse":
        lines = [f"{len(ledger.rejected)} of {ledger.rows} rows cannot be used:"]
        lines += [f"  {row.origin}: {row.reason}" for row in ledger.rejected[:20]]
        if len(ledger.rejected) > 20:
            lines.append(f"  … and {len(ledger.rejected) - 20} more")
        fix = "mend them, or train without them: --on-bad-row drop (they are listed in the run)"
        return DataError("\n".join(lines), fix=fix)
    if not ledger.rows:
        return DataError("there are no rows")
    lost, answers = ledger.answers_cut, ledger.answers_cut + ledger.supervised
    if ledger.dropped and (over_length == "error" or lost > MAX_ANSWERS_CUT * answers):
        return DataError(
            f"{ledger.dropped} of {ledger.rows} rows are longer than max_length"
            f" {prepared.max_length}; {lost / answers:.1%} of the answer tokens would be lost",
            fix=f"--max-length {prepared.longest}",
        )
    if not prepared.examples:
        return DataError("no row is left to train on", why="all were rejected")
    return None


def _samples(
    source: Source, mapping: Mapping[str, str] | None, encoder: Encoder, notes: Counter[str]
) -> Iterator[Sample | Rejected]:
    markers = encoder.template.markers
    for row in read_rows(source):
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            sample = to_sample(row, mapping)
        except RowError as error:
            yield Rejected(row.origin, str(error))
            continue
        for name in unread_fields(row, mapping):
            notes[f"the field {shown_name(name)} is not read"] += 1
        for marker in markers:
            if any(_has_line(message.content, marker) for message in sample.messages):
                notes[f'a message has a line that begins like a turn, "{marker}"'] += 1
        yield sample


def _has_line(text: str, start: str) -> bool:
    return text.startswith(start) or f"\n{start}" in text


def _account(prepared: Prepared, item: tuple[Example, ...] | Rejected) -> None:
    ledger = prepared.ledger
    ledger.rows += 1
    if isinstance(item, Rejected):
        ledger.rejected.append(item)
        return
    longest = max(len(example) for example in item)
    prepared.longest = max(prepared.longest, longest)
    if longest > prepared.max_length:
        ledger.drop(list(item))
    else:
        ledger.keep(list(item))
        prepared.examples.extend(item)
