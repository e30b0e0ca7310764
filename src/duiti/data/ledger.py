"""Where every row and token went.

    ledger.add_row(source); ledger.keep(example); ledger.drop(example)

The law (a test holds it): tokens.total = supervised + context + dropped, and rows = kept + rejected
+ dropped. It is printed before step 1 and stored with the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from duiti.types import Example, Rejected


@dataclass(slots=True)
class Ledger:
    """Counts of one source, or of all."""

    rows: int = 0
    """Rows read, whatever became of them."""
    kept: int = 0
    """Rows that are trained on."""
    dropped: int = 0
    """Rows left out because they are longer than `max_length`."""
    examples: int = 0
    """Texts made of the kept rows: more than rows where conversations were unrolled."""
    supervised: int = 0
    """Tokens that are trained."""
    context: int = 0
    """Tokens that are given."""
    dropped_context: int = 0
    answers_cut: int = 0
    """Answer tokens lost with dropped rows."""
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All tokens of rows that could be read."""
        return self.supervised + self.context + self.answers_cut + self.dropped_context

    def keep(self, examples: list[Example]) -> None:
        """Count a row that is trained on."""
        self.kept += 1
        self.examples += len(examples)
        for example in examples:
            self.supervised += example.num_supervised
            self.context += len(example) - example.num_supervised

    def drop(self, examples: list[Example]) -> None:
        """Count a row that is too long."""
        self.dropped += 1
        for example in examples:
            self.answers_cut += example.num_supervised
            self.dropped_context += len(example) - example.num_supervised

    def as_dict(self) -> dict[str, object]:
        """The stored form; its keys are the machine-readable contract of `duiti check --json`."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped": self.dropped,
            "examples": self.examples,
            "rejected": [{"origin": str(r.origin), "reason": r.reason} for r in self.rejected],
            "tokens": {
                "total": self.total,
                "supervised": self.supervised,
                "context": self.context,
                "dropped_context": self.dropped_context,
                "answers_cut": self.answers_cut,
            },
        }
