"""The nouns of a run, in the order in which a sample meets them. No torch at import.

    Row -> Sample -> Turns -> Example -> Batch        and Progress beside them

All are frozen: a later hop makes a new value, it never edits the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a token that is not trained (the value that PyTorch's cross-entropy ignores)."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Role = Literal["system", "user", "assistant", "tool"]
TokenIds: TypeAlias = npt.NDArray[np.int32]
Weights: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row was read. Travels to the last error message and report."""

    file: str
    """Path as the user gave it, or `<rows>` for rows given from Python."""
    line: int
    """1-based line on which the row begins (for rows from Python: its 1-based index)."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed JSON object and its origin."""

    fields: Mapping[str, Json]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why. The reason never quotes the row."""

    origin: Origin
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that an assistant turn calls."""

    name: str
    arguments: Json
    """An object as a rule. Rows that give it as a string of JSON are parsed when they are read."""
    id: str = ""
    """What a `tool` message refers to as `tool_call_id`; empty: the row gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """Empty only where an assistant turn has tool calls or reasoning in its place."""
    input: str = ""
    """The `input` of an alpaca row: a template may place it apart from the instruction; every other
    template sees it joined to `content` by a newline."""
    reasoning: str = ""
    """What the assistant thinks before it answers (`reasoning_content`); how it is shown, and in
    which turns, is the template's to say."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Functions that an assistant turn calls."""
    name: str = ""
    """Of the function whose result a `tool` message holds, where the row gives it."""
    tool_call_id: str = ""
    """Of the call whose result a `tool` message holds, where the row gives it."""
    train: bool | None = None
    """Overrides whether an assistant turn is trained; None leaves it to the setting."""
    weight: float = 1.0
    """Of an assistant turn's tokens in the loss; 0 is the same as `train: false`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the user meant: messages, no tokens yet."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[Json, ...] = ()
    """Functions that the assistant may call, each as the row describes it (a JSON schema)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer and the prompt it answers, cut exactly where serving cuts.

    Serving sends `prompt` as one text and the model produces `answer` token by token; so both are
    tokenized apart, and the ids of `prompt` are by construction those that serving sends."""

    prompt: str
    """Everything before the answer, rendered as for serving (with the generation prompt)."""
    answer: str
    """What the model must produce: the text and its one stop token, nothing after."""
    weight: float = 1.0
    """Of the answer's tokens in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Token ids and their labels, born together and never rebuilt from each other."""

    input_ids: TokenIds
    """[T] token ids."""
    labels: TokenIds
    """[T] aligned with `input_ids` (not shifted): the id itself where trained, else -100."""
    origin: Origin
    weights: Weights | None = None
    """[T] of each trained token in the loss; None: all are 1."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Number of cross-entropy terms. A label at position 0 is predicted by nothing, so it does
        not count; templates never train the first token."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A flat run of D documents, T tokens, without padding. The one place where labels are shifted.

    `targets[k]` is the token that follows position `supervised[k]` *in the same document*; the
    first token of a document is therefore never a target."""

    input_ids: torch.Tensor
    """[T] int64."""
    position_ids: torch.Tensor
    """[T] int64; restart at 0 with each document."""
    cu_seqlens: tuple[int, ...]
    """[D+1] document borders: 0, end of first, …, T."""
    supervised: torch.Tensor
    """[N] int64 positions whose next token is trained."""
    targets: torch.Tensor
    """[N] int64 those next tokens."""
    documents: tuple[TokenIds, ...]
    """[D] ids of each document as they were given: to know one by without asking a GPU."""
    weights: torch.Tensor | None = None
    """[N] float32 of each target in the loss; None: all are 1."""
    weight_sum: int | float
    """What the sum of the losses is divided by: the sum of the weights (in float64), or where there
    are none the number of targets."""

    @property
    def num_tokens(self) -> int:
        return self.cu_seqlens[-1]

    @property
    def num_supervised(self) -> int:
        return self.targets.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How the drift of a run is held, between two updates (`duiti.training.hold`)."""

    multiplier: float
    """What the KL divergence to the base weighs in the loss where it is what is aimed at."""
    kl: float
    """Its moving average over the updates so far, in nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands. With the seed it determines everything that follows."""

    step: int = 0
    """Updates behind it: made, or left out because their numbers were bad."""
    cursor: int = 0
    """Rows consumed since the start of the run: epoch * number of examples + index."""
    num_tokens: int = 0
    """Tokens that went through the model in updates that were made."""
    supervised_tokens: int = 0
    """Cross-entropy terms that went into gradients."""
    skipped_steps: int = 0
    """Updates that were left out."""
    recent: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of the last updates that were made: what is usual in this run."""
    held: Held | None = None
    """None where the drift is not held."""
    spent_s: float = field(default=0.0, compare=False)
    """Time since training began, without the time between its sessions."""
    typical_s: float = field(default=0.0, compare=False)
    """Time from the end of an update to the end of the next, as a rule; 0: not known yet."""
