"""Where every row and token went, source by source.

    ledger = make_ledger(store, states, account, names)
    ledger.total.rows, ledger.total.supervised, ledger.sources, ledger.as_dict()

The law, held by `check` whenever a ledger is made:

    rows   = kept + rejected + filtered + dropped + val + leaked
    tokens = supervised + context + cut + dropped + val + leaked

Its left sides are counted where rows are read and texts are encoded, its right sides from what is
stored, so that nothing can get lost between the two unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from duiti.data.chunk import Account, SourceCounts
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.types import Origin, Rejected

States = npt.NDArray[np.uint8]


class State(IntEnum):
    """What becomes of an example."""

    KEPT = 0
    DROPPED = 1
    """Its row is longer than `max_length`."""
    VAL = 2
    """Its row was split off for validation."""
    LEAKED = 3
    """Its row stands in the validation data as well, so it is not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLedger:
    """Counts of one source, or the sums of several."""

    file: str = ""
    rows: int = 0
    """Rows read, whatever became of them."""
    kept: int = 0
    """Rows that are trained on."""
    rejected: int = 0
    """Rows that cannot be used."""
    filtered: int = 0
    """Rows that the user's filter left out."""
    dropped: int = 0
    """Rows longer than `max_length`."""
    val: int = 0
    """Rows split off for validation."""
    leaked: int = 0
    """Rows left out because they stand in the validation data."""
    cut: int = 0
    """Rows that were truncated, and not wholly."""
    examples: int = 0
    """Texts made of the kept rows: more than rows where conversations were unrolled."""
    total: int = 0
    """Tokens of all rows that could be read."""
    supervised: int = 0
    """Tokens that are trained."""
    context: int = 0
    """Tokens that are given."""
    cut_tokens: int = 0
    """Tokens that truncation took."""
    dropped_tokens: int = 0
    val_tokens: int = 0
    leaked_tokens: int = 0
    answers_cut: int = 0
    """Answer tokens among those cut and dropped."""
    answers: int = 0
    """Answer tokens of all rows that could be read."""

    def check(self) -> None:
        """Hold the law.

        Raises:
            DuitiError: a fault of this program; nothing should be trained then.
        """
        rows = self.kept + self.rejected + self.filtered + self.dropped + self.val + self.leaked
        tokens = self.supervised + self.context + self.cut_tokens
        tokens += self.dropped_tokens + self.val_tokens + self.leaked_tokens
        if rows != self.rows or tokens != self.total:
            raise DuitiError(
                f"{self.file}: {self.rows} rows and {self.total} tokens came in,"
                f" {rows} and {tokens} are accounted for",
                why="this is a fault in duiti, not in your data; please report it",
            )


@dataclass(frozen=True, slots=True)
class Ledger:
    """All sources of a run."""

    sources: tuple[SourceLedger, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    """Each once, however often its weight would have repeated it."""

    @property
    def total(self) -> SourceLedger:
        """The sums over all sources."""
        names = [f.name for f in fields(SourceLedger) if f.name != "file"]
        sums = {name: sum(getattr(source, name) for source in self.sources) for name in names}
        return SourceLedger(file="all", **sums)

    def as_dict(self) -> dict[str, object]:
        """The stored form; its keys are the machine-readable contract of `duiti check --json`."""
        total = self.total
        return {
            **_as_dict(total),
            "rejected": [{"origin": str(r.origin), "reason": r.reason} for r in self.rejected],
            "sources": [
                {"file": source.file, **_as_dict(source), "rejected": source.rejected}
                for source in self.sources
            ],
        }


def make_ledger(
    store: ExampleStore, states: States, account: Account, names: Sequence[str]
) -> Ledger:
    """Count.

    Args:
        store: the examples of all rows that could be read.
        states: a `State` for each example.
        account: what was counted while they were read.
        names: of the sources, in order.

    Raises:
        DuitiError: the law does not hold.
    """
    counted = _count_store(store, states, len(names))
    sources = tuple(
        _source(name, account.sources.get(number, SourceCounts()), counted[:, :, number])
        for number, name in enumerate(names)
    )
    for source in sources:
        source.check()
    rejected = (
        Rejected(Origin(store.files[source], line), reason)
        for source, line, reason in account.rejected
    )
    return Ledger(sources, tuple(dict.fromkeys(rejected)))


def with_rehearsal(ledger: Ledger, texts: ExampleStore, *, name: str) -> Ledger:
    """With one more source: texts that are rehearsed, each of them a row.

    Args:
        texts: `duiti.data.replay.rehearsal`.
        name: of the source: the file, or who wrote them.
    """
    tokens, supervised = (int(n.sum(dtype=np.int64)) for n in (texts.lengths, texts.num_supervised))
    source = SourceLedger(
        file=name,
        rows=len(texts),
        kept=len(texts),
        examples=len(texts),
        total=tokens,
        supervised=supervised,
        context=tokens - supervised,
        answers=supervised,
    )
    source.check()
    return replace(ledger, sources=(*ledger.sources, source))


def _count_store(store: ExampleStore, states: States, num_sources: int) -> npt.NDArray[np.int64]:
    """[4, 4, sources]: for each state its rows, examples, answer tokens and other tokens."""
    counted = np.zeros((4, 4, num_sources), dtype=np.int64)
    begin = 0
    for block in store.blocks():
        end = begin + len(block)
        state, supervised = states[begin:end], store.num_supervised[begin:end]
        place = state.astype(np.int64) * num_sources + block.files
        columns = (block.parts == 0, np.ones(len(block)), supervised, block.lengths - supervised)
        for number, column in enumerate(columns):
            sums = np.bincount(place, weights=column, minlength=4 * num_sources)
            counted[:, number] += sums.astype(np.int64).reshape(4, num_sources)
        begin = end
    return counted


def _source(name: str, counts: SourceCounts, stored: npt.NDArray[np.int64]) -> SourceLedger:
    kept, dropped, val, leaked = stored.tolist()
    return SourceLedger(
        file=name,
        rows=counts.rows,
        kept=kept[0],
        rejected=counts.rejected,
        filtered=counts.filtered,
        dropped=dropped[0] + counts.emptied,
        val=val[0],
        leaked=leaked[0],
        cut=counts.cut,
        examples=kept[1],
        total=counts.tokens,
        supervised=kept[2],
        context=kept[3],
        cut_tokens=counts.cut_answer + counts.cut_context,
        dropped_tokens=dropped[2] + dropped[3],
        val_tokens=val[2] + val[3],
        leaked_tokens=leaked[2] + leaked[3],
        answers_cut=dropped[2] + counts.cut_answer,
        answers=kept[2] + dropped[2] + val[2] + leaked[2] + counts.cut_answer,
    )


def _as_dict(ledger: SourceLedger) -> dict[str, object]:
    rows = ("rows", "kept", "filtered", "dropped", "val", "leaked", "cut", "examples")
    tokens = {
        "total": ledger.total,
        "supervised": ledger.supervised,
        "context": ledger.context,
        "cut": ledger.cut_tokens,
        "dropped": ledger.dropped_tokens,
        "val": ledger.val_tokens,
        "leaked": ledger.leaked_tokens,
        "answers_cut": ledger.answers_cut,
    }
    return {**{name: getattr(ledger, name) for name in rows}, "tokens": tokens}
