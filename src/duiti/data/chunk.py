"""A chunk of rows to a chunk of examples: parse, render, encode, account. Runs in any process.

encoder = RowEncoder(encoder, mapping, markers)
chunk = encoder.encode(rows)        # Row or Rejected in, a Block and its account out
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from duiti.data.rows.formats import row_digests, to_sample, unread_fields
from duiti.data.storage.block import Block
from duiti.data.templates.render import TemplateFault
from duiti.data.tokens.encode import Encoded, Encoder
from duiti.errors import RowError, shown_name
from duiti.types import Json, Rejected, Row, Sample

MAX_FIELDS = 20
"""Names of unread fields that are noted; names beyond these are more likely values."""


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A row and which of the sources it is from."""

    row: Row | Rejected | None
    """None: the user's filter left it out."""
    source: int


@dataclass(slots=True)
class SourceCounts:
    """What a chunk holds of one source."""

    rows: int = 0
    rejected: int = 0
    filtered: int = 0
    tokens: int = 0
    """Of all examples of its readable rows, before anything was cut."""
    cut_answer: int = 0
    """Trained tokens that were cut."""
    cut_context: int = 0
    cut: int = 0
    """Rows of which something was cut, and something was kept."""
    emptied: int = 0
    """Rows of which nothing trained was left."""


@dataclass(slots=True)
class Account:
    """Where the rows of a chunk went, as plain values."""

    sources: dict[int, SourceCounts] = field(default_factory=dict)
    rejected: list[tuple[int, int, str]] = field(default_factory=list)
    """Source, line, reason."""
    notes: Counter[str] = field(default_factory=Counter)
    stops: set[int] = field(default_factory=set)
    """Tokens that end trained answers."""

    def of(self, source: int) -> SourceCounts:
        return self.sources.setdefault(source, SourceCounts())

    @property
    def num_rows(self) -> int:
        return sum(counts.rows for counts in self.sources.values())

    def pass_by(self, numbered: NumberedRow) -> bool:
        """Count a row; False where there is nothing to encode in it."""
        counts = self.of(numbered.source)
        counts.rows += 1
        if numbered.row is None:
            counts.filtered += 1
        elif isinstance(numbered.row, Rejected):
            self.reject(numbered.source, numbered.row.origin.line, numbered.row.reason)
        return isinstance(numbered.row, Row)

    def reject(self, source: int, line: int, reason: str) -> None:
        """Note that a row cannot be used."""
        self.of(source).rejected += 1
        self.rejected.append((source, line, reason))

    def add(self, other: Account) -> None:
        """Take in the account of what follows."""
        for source, counts in other.sources.items():
            own = self.of(source)
            for name in SourceCounts.__slots__:
                setattr(own, name, getattr(own, name) + getattr(counts, name))
        self.rejected += other.rejected
        self.notes.update(other.notes)
        self.stops |= other.stops

    def as_dict(self) -> dict[str, Json]:
        """Values that JSON can carry."""
        sources = {
            str(source): {name: getattr(counts, name) for name in SourceCounts.__slots__}
            for source, counts in self.sources.items()
        }
        values = {
            "sources": sources,
            "rejected": self.rejected,
            "notes": dict(self.notes),
            "stops": sorted(self.stops),
        }
        return cast(dict[str, Json], values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Account:
        """The account that `as_dict` gave."""
        return cls(
            sources={int(s): SourceCounts(**counts) for s, counts in values["sources"].items()},
            rejected=[(source, line, reason) for source, line, reason in values["rejected"]],
            notes=Counter(values["notes"]),
            stops=set(values["stops"]),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Encoded rows."""

    block: Block
    account: Account


class FaultAt(Exception):
    """A template that must not be used, and the row at which it showed."""

    def __init__(self, fault: str, place: int) -> None:
        self.fault, self.place = fault, place
        super().__init__(fault)


class FastPathFault(Exception):
    """The fast path for tokens was caught differing from the library, so that what it made before
    may be wrong as well. No test has ever seen it."""


class RowEncoder:
    """Turns rows into examples, one after the other."""

    def __init__(
        self, encoder: Encoder, mapping: Mapping[str, str], markers: Sequence[str]
    ) -> None:
        """
        Args:
            mapping: renames fields.
            markers: plain text that a template uses to announce a role; in a message it is
                indistinguishable from a turn, and counted.
        """
        self._encoder = encoder
        self._mapping = mapping
        self._markers = markers
        self._seen: set[str] = set()

    def encode(
        self, rows: Sequence[NumberedRow], *, at: Callable[[int], object] = lambda place: None
    ) -> Chunk:
        """Encode rows, all faults of rows collected.

        Args:
            at: is told the place of each row before it is looked at.

        Raises:
            FaultAt: the template must not be used at all.
            FastPathFault: these rows, and those before, have to be encoded without the fast path.
        """
        columns, account = _Columns(), Account()
        for place, numbered in enumerate(rows):
            at(place)
            row, source = numbered.row, numbered.source
            if not account.pass_by(numbered) or not isinstance(row, Row):
                continue
            try:
                sample = to_sample(row, self._mapping)
                encoded = self._encoder.encode(sample)
            except RowError as error:
                account.reject(source, row.origin.line, str(error))
                continue
            except TemplateFault as fault:
                raise FaultAt(str(fault), place) from None
            except BaseException as error:
                # What Rust code panics with has no public type, and is no Exception.
                if type(error).__name__ != "PanicException":
                    raise
                account.reject(source, row.origin.line, "the tokenizers library breaks down on it")
                continue
            _count(account.of(source), encoded)
            account.notes.update(encoded.notes)
            account.stops |= encoded.stops
            account.notes.update(self._odd(row, sample))
            columns.add(encoded, source, row.origin.line, row_digests(sample))
        if self._encoder.has_disagreed:
            raise FastPathFault
        return Chunk(columns.block(), account)

    def _odd(self, row: Row, sample: Sample) -> list[str]:
        notes = []
        for name in unread_fields(row, self._mapping):
            shown = shown_name(name)
            if len(self._seen) < MAX_FIELDS:
                self._seen.add(shown)
            what = f"the field {shown} is" if shown in self._seen else "further fields are"
            notes.append(f"{what} not read")
        for marker in self._markers:
            if any(_has_line(message.content, marker) for message in sample.messages):
                notes.append(f'a message has a line that begins like a turn, "{marker}"')
        return notes


def _has_line(text: str, start: str) -> bool:
    return text.startswith(start) or f"\n{start}" in text


def _count(counts: SourceCounts, encoded: Encoded) -> None:
    counts.tokens += encoded.num_tokens
    counts.cut_answer += encoded.cut_answer
    counts.cut_context += encoded.cut_context
    if not encoded.pieces:
        counts.emptied += 1
    elif encoded.cut_answer or encoded.cut_context:
        counts.cut += 1


class _Columns:
    """Grows the columns of a block."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._lengths: list[int] = []
        self._span_counts: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._weights: list[float] = []
        self._files: list[int] = []
        self._lines: list[int] = []
        self._parts: list[int] = []
        self._digests: list[tuple[int, int, int, int]] = []

    def add(
        self, encoded: Encoded, source: int, line: int, digests: tuple[int, int, int, int]
    ) -> None:
        for part, piece in enumerate(encoded.pieces):
            self._parts.append(part)
            self._ids += piece.ids
            self._lengths.append(len(piece.ids))
            self._span_counts.append(len(piece.spans))
            for start, end, weight in piece.spans:
                self._spans.append((start, end))
                self._weights.append(weight)
            self._files.append(source)
            self._lines.append(line)
            self._digests.append(digests)

    def block(self) -> Block:
        return Block(
            input_ids=np.array(self._ids, dtype=np.int32),
            lengths=np.array(self._lengths, dtype=np.int32),
            span_counts=np.array(self._span_counts, dtype=np.int32),
            spans=np.array(self._spans, dtype=np.int32).reshape(-1, 2),
            weights=np.array(self._weights, dtype=np.float32),
            files=np.array(self._files, dtype=np.int32),
            lines=np.array(self._lines, dtype=np.int64),
            parts=np.array(self._parts, dtype=np.int32),
            digests=np.array(self._digests, dtype=np.uint64).reshape(-1, 4),
        )
