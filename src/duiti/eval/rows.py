"""Rows that fight you: what became of each row's loss, in words.

    found = sort_rows(train, losses_ME, names=("epoch 1", "epoch 2", "epoch 3"), held_out=held_out)
    found.counts, found.of_kind("never_learned")
    told = found.as_dict()                                   # origins and losses, never content
    for line in described(told): print(line)

Nothing is absolute: a row is held against the other rows of its run. `Usual` is how it went with
most of them: the median loss at first and at last, and the level half-way between. *High* is above
that level, *low* is not; *much* is more than half of what a row usually gained.

- `contradictory`: another row has the same prompt and another answer, and both are, at last, not
  below the median row;
- `unlearned`: it was low, then rose by much, and is high at last;
- `never_learned`: it is high at last, and did not fall by much;
- `memorised`: it fell by much, to less than a tenth of the loss of held-out rows of about its
  length, which are higher by much;
- `learned`: all others.

The first that applies. A row that was measured once only is of no kind, but may contradict another.

Legend: M measurements in their order, E examples, R rows (a row may have made several examples).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from duiti.data.storage.store import ExampleStore
from duiti.eval.row_table import Floats, Ints, RowTable, table_of
from duiti.types import Origin

KINDS = ("contradictory", "never_learned", "unlearned", "memorised", "learned")
FIGHTING = ("contradictory", "never_learned", "unlearned")
"""What a cleaned file goes without. What was memorised is not wrong, only too rare."""
NUM_TOLD = 40
"""Rows of each kind that a report names."""
FAR_BELOW = 0.1
"""Share of the loss of held-out rows alike that is far below it."""
NUM_ALIKE = 25
"""Held-out rows that are nearest in length."""

_NO_KIND = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows that were not trained on, by the model that was."""

    lengths: Ints
    """[V] supervised tokens of each."""
    losses: Floats
    """[V] mean loss over them, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """How it went with most rows of the run."""

    first: float
    """Median of the first losses, in nats."""
    last: float
    """Median of the last ones."""

    @property
    def much(self) -> float:
        """Half of what a row usually gained."""
        return (self.first - self.last) / 2

    @property
    def level(self) -> float:
        """Above it a loss is high: nearer to where rows began than to where they ended."""
        return self.last + self.much


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """One row, for people."""

    origin: Origin
    kind: str
    losses: tuple[float | None, ...]
    """Mean loss of its supervised tokens at each measurement, in nats; None: not known."""
    why: str
    """Without anything of what the row says."""

    def as_dict(self) -> dict[str, object]:
        """The machine-readable form."""
        return {
            "origin": str(self.origin),
            "kind": self.kind,
            "losses": list(self.losses),
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedRows:
    """All rows of a store, with what they are."""

    names: tuple[str, ...]
    """[M] of the measurements."""
    usual: Usual | None
    """None: no row was measured twice, or the loss of most rows did not fall."""
    note: str
    """What could not be told, and why; empty: everything could."""
    counts: dict[str, int]
    """Rows of each kind that could be looked for."""
    rows: RowTable
    kinds: npt.NDArray[np.int8]
    """[R] index into KINDS; -1: none."""
    scores: Floats
    """[R] how telling a row is among those of its kind."""
    alike: Floats
    """[R] loss of held-out rows of its length; NaN: not known."""
    rivals: Ints
    """[R] a row that contradicts it; -1: none."""

    def of_kind(self, kind: str, *, most: int | None = None) -> list[JudgedRow]:
        """The rows of a kind, the most telling first (of equal ones in the order of the file)."""
        places = np.flatnonzero(self.kinds == KINDS.index(kind))
        places = places[np.argsort(-self.scores[places], kind="stable")][:most]
        return [self._judged(place, kind) for place in places.tolist()]

    def origins(self, kinds: Collection[str]) -> list[Origin]:
        """Of all rows of these kinds, in the order of the data."""
        wanted = [KINDS.index(kind) for kind in kinds]
        return [self.rows.origin(p) for p in np.flatnonzero(np.isin(self.kinds, wanted)).tolist()]

    def as_dict(self, *, most: int | None = NUM_TOLD) -> dict[str, object]:
        """The machine-readable form.

        Args:
            most: rows of each kind, at most; None: all, but for those that were learned.
        """
        told: list[JudgedRow] = []
        for kind in KINDS:
            told += self.of_kind(kind, most=NUM_TOLD if kind == "learned" else most)
        return {
            "measured": list(self.names),
            "usual": None if self.usual is None else [self.usual.first, self.usual.last],
            "counts": self.counts,
            "note": self.note,
            "rows": [row.as_dict() for row in told],
        }

    def _judged(self, place: int, kind: str) -> JudgedRow:
        losses = tuple(_finite(loss) for loss in self.rows.losses[:, place].tolist())
        return JudgedRow(
            origin=self.rows.origin(place), kind=kind, losses=losses, why=self._why(place, kind)
        )

    def _why(self, place: int, kind: str) -> str:
        rows = self.rows
        first, last, lowest = (
            float(column[place]) for column in (rows.first, rows.last, rows.lowest)
        )
        if kind == "contradictory":
            rival = rows.origin(int(self.rivals[place]))
            return (
                f"{rival} has the same prompt and another answer; {last:.3g} nats at last, where"
                f" half of the rows are at or below {rows.median:.3g}"
            )
        assert self.usual is not None  # or there is no other kind
        usual = f"rows usually fell from {self.usual.first:.3g} to {self.usual.last:.3g}"
        if kind == "unlearned":
            return f"it was down to {lowest:.3g} nats and ends at {last:.3g}; {usual}"
        if kind == "memorised":
            alike = f"held-out rows of its length have {self.alike[place]:.3g}"
            return f"from {first:.3g} to {last:.3g} nats, where {alike}"
        return f"from {first:.3g} to {last:.3g} nats; {usual}"


def sort_rows(
    store: ExampleStore,
    losses: npt.NDArray[np.floating],
    *,
    names: Sequence[str],
    held_out: HeldOut | None = None,
) -> SortedRows:
    """Say of each row of the store what it is.

    Args:
        losses: [M, E] mean loss over the supervised tokens of each example, measured M times in
            the course of training; NaN: not measured.
        names: [M] of the measurements.
        held_out: to tell what was memorised; without it nothing is called so.
    """
    rows = table_of(store, np.asarray(losses, np.float64).reshape(len(names), len(store)))
    known_twice = np.isfinite(rows.lowest)
    usual, note = _usual(rows, known_twice)
    kinds = np.full(len(rows.lines), _NO_KIND, np.int8)
    scores = np.nan_to_num(rows.last, nan=0.0)
    alike = np.full(len(rows.lines), np.nan)
    if held_out is not None and len(held_out.losses):
        alike = _alike(rows.lengths, held_out)
    if usual is not None:
        gain, rise = rows.first - rows.last, rows.last - rows.lowest
        is_high = rows.last > usual.level
        is_memorised = (gain >= usual.much) & (rows.last < FAR_BELOW * alike)
        is_memorised &= alike - rows.last >= usual.much
        # From the last that applies to the first.
        for kind, applies, score in (
            ("learned", known_twice, gain),
            ("memorised", is_memorised, alike - rows.last),
            ("never_learned", is_high & (gain < usual.much), rows.last),
            ("unlearned", is_high & (rows.lowest <= usual.level) & (rise >= usual.much), rise),
        ):
            chosen = known_twice & applies
            kinds[chosen], scores[chosen] = KINDS.index(kind), score[chosen]
    rivals = rows.rivals()
    stuck = rivals >= 0
    kinds[stuck], scores[stuck] = KINDS.index("contradictory"), rows.last[stuck]
    sought: tuple[str, ...] = KINDS if usual is not None else KINDS[:1]
    if usual is not None and not np.isfinite(alike).any():
        sought = tuple(kind for kind in KINDS if kind != "memorised")
        note = "without held-out rows nobody can tell what was memorised"
    counts = {kind: int((kinds == KINDS.index(kind)).sum()) for kind in sought}
    return SortedRows(
        names=tuple(names), usual=usual, note=note, counts=counts, rows=rows, kinds=kinds,
        scores=scores, alike=alike, rivals=rivals,
    )  # fmt: skip


def described(told: Mapping[str, Any], *, most: int = 20) -> Iterator[str]:
    """Lines for people, from `SortedRows.as_dict`: the usual row, then each kind with its rows by
    file and line."""
    if told["usual"] is not None:
        (first, last), names = told["usual"], told["measured"]
        yield f"rows usually fell from {first:.3g} nats ({names[0]}) to {last:.3g} ({names[-1]})"
    if told["note"]:
        yield told["note"]
    for kind, count in told["counts"].items():
        yield f"{kind.replace('_', ' ')}: {count:,}"
        if kind != "learned":
            rows = [row for row in told["rows"] if row["kind"] == kind]
            yield from (f"  {row['origin']}: {row['why']}" for row in rows[:most])
            if count > most:
                yield f"  … and {count - most:,} more"


def _usual(rows: RowTable, known_twice: npt.NDArray[np.bool_]) -> tuple[Usual | None, str]:
    if not np.isfinite(rows.last).any():
        return None, "no loss of any row is known"
    if not known_twice.any():
        return None, "each row was measured once only, so nobody can tell how its loss went on"
    first, last = rows.first[known_twice], rows.last[known_twice]
    usual = Usual(first=float(np.median(first)), last=float(np.median(last)))
    if usual.much > 0:
        return usual, ""
    return None, (
        f"the median loss of a row did not fall ({usual.first:.3g} nats at first, {usual.last:.3g}"
        " at last), so no row stands out from the others"
    )


def _alike(lengths: Ints, held_out: HeldOut) -> Floats:
    """[R] median loss of the held-out rows that are nearest in length."""
    order = np.argsort(held_out.lengths, kind="stable")
    sorted_lengths, losses = held_out.lengths[order], held_out.losses[order]
    different, which = np.unique(lengths, return_inverse=True)
    begins = np.searchsorted(sorted_lengths, different) - NUM_ALIKE // 2
    begins = np.clip(begins, 0, max(0, len(losses) - NUM_ALIKE))
    medians = np.array([np.median(losses[b : b + NUM_ALIKE]) for b in begins.tolist()])
    found: Floats = medians[which]
    return found


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
