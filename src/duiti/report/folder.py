"""What the files of a run's folder say, as types. No HTML, no torch.

    Evaluation, Anchor, Strength, TellingRows, FoundRate, MoreData, Sample, Moment, Proof

Each stands for the file that its docstring names. Numbers that were not finite are None there.
Keys that are not known here are passed over, so that a file may say more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

Number = float | None


def _only_numbers(value: object) -> object:
    """A mapping's numbers: a metric may come with more than its mean."""
    if not isinstance(value, Mapping):
        return value
    kinds = (int, float, type(None))
    return {key: found for key, found in value.items() if isinstance(found, kinds)}


Numbers = Annotated[dict[str, Number], BeforeValidator(_only_numbers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: Number
    low: Number = None
    high: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`evaluation.json`: base beside tuned on held-out rows."""

    n: int
    """Held-out rows."""
    tuned: Numbers
    base: Numbers = field(default_factory=dict)
    change: dict[str, Interval] = field(default_factory=dict)
    """tuned - base, of paired rows."""
    supervised_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """`anchor.json`: the final model on text that has nothing to do with the task."""

    source: str
    """`generated` by the base model, or the name of a file."""
    num_texts: int = 0
    num_tokens: int = 0
    kl: Number = None
    """KL(base ‖ tuned) in nats per token."""
    nll_base: Number = None
    nll_tuned: Number = None
    nll_change: Number = None
    """In nats per token; above zero: the text got worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrengthPoint:
    """The model with its adapter at one strength."""

    strength: float
    val_loss: Number = None
    anchor_kl: Number = None
    anchor_nll_change: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """`strength.json`: what less or more of the adapter would do."""

    points: tuple[StrengthPoint, ...]
    recommended: Number = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingRow:
    """One row of `rows.json`."""

    origin: str
    """`file:line`; the content of a row is never here."""
    kind: str
    losses: tuple[Number, ...] = ()
    """In nats per token, epoch by epoch."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingRows:
    """`rows.json`: what became of the rows, and the most telling of them."""

    rows: tuple[TellingRow, ...]
    counts: dict[str, int] = field(default_factory=dict)
    epochs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """A short training with one learning rate."""

    learning_rate: float
    val_loss: Number = None
    train_loss: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRate:
    """`find_lr.json`: the search for a learning rate."""

    points: tuple[RatePoint, ...]
    chosen: Number = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePoint:
    """A training on a share of the rows."""

    share: float
    rows: int
    val_loss: Number = None
    low: Number = None
    high: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreData:
    """`more_data.json`: whether more rows would help."""

    points: tuple[SharePoint, ...]
    says: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """A token of the expected answer, with its loss in nats."""

    text: str
    before: Number = None
    after: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedAnswer:
    """What the model made of one question."""

    prompt: str
    """As the model read it, template and all."""
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A line of `answers.jsonl`: the answers to the same few questions behind one update."""

    step: int
    answers: tuple[WatchedAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A line of `samples.jsonl`: one question, answered before and after."""

    prompt: str
    expected: str
    base: str
    tuned: str
    base_loss: Number = None
    tuned_loss: Number = None
    tokens: tuple[TokenLoss, ...] = ()

    @property
    def gain(self) -> float | None:
        """What training took off the loss of the expected answer."""
        if self.base_loss is None or self.tuned_loss is None:
            return None
        return self.base_loss - self.tuned_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far two sets of log-probabilities are apart, in nats."""

    largest: Number = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`proof.json`: what a fresh process found in the saved files."""

    passed: bool
    problems: tuple[str, ...] = ()
    opened_by: str = ""
    num_rows: int = 0
    num_tokens: int = 0
    num_chats: int = 0
    saved: Apart | None = None
    other_base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """One source in `data/ledger.json`."""

    file: str
    rows: int
    kept: int
    filtered: int = 0
    dropped: int = 0
    val: int = 0
    leaked: int = 0
    rejected: int = 0
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCountsOfAll:
    """The sources of `data/ledger.json`."""

    sources: tuple[SourceCounts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFile:
    """`data/ledger.json`: where every row and token went."""

    data: SourceCountsOfAll
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`env.json`: where the run was made."""

    values: dict[str, Any]
    """All of it, as it is."""

    @property
    def command(self) -> list[str]:
        """What was typed; empty where it was no command."""
        found = self.values.get("command")
        return [str(word) for word in found] if isinstance(found, list) else []
