"""What preparing needs to know before the first row, and what else stands on the same: prompts.

job = make_job(template, PrepareOptions(date="2026-03-31"))     # for duiti.data.pool
service = prompt_service(template)                              # prompts as serving sends them
encoder = make_encoder(template)                                # for a loop of your own
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from duiti.data.pool import Job, PromptService
from duiti.data.templates.control import Mode
from duiti.data.templates.spans import TrainOn
from duiti.data.templates.template import Template
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What a user may choose about preparing data."""

    date: str
    mapping: Mapping[str, str] = field(default_factory=dict)
    filter: str | None = None
    train_on: TrainOn = "assistant"
    special_tokens: Mode = "reject"
    truncate_to: int | None = None
    seed: int = 0
    workers: int | None = None
    """None: one per CPU core, and one for little data."""
    cache: bool = True


def make_job(template: Template, options: PrepareOptions) -> Job:
    """What a process has to know before the first row."""
    tokenizer = template.tokenizer
    return Job(
        spec=template.spec(options.date),
        tokenizer_json=tokenizer_json(tokenizer),
        options=EncodeOptions(
            train_on=options.train_on,
            special_tokens=options.special_tokens,
            truncate_to=options.truncate_to,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        ),
        mapping=dict(options.mapping),
        markers=template.markers,
    )


def prompt_service(
    template: Template, *, date: str = "auto", special_tokens: Mode = "reject"
) -> PromptService:
    """Prompts of this template as serving sends them.

    Args:
        special_tokens: as in training, so that a prompt's ids are those that were trained on;
            there is nobody to reject, so what would be is ordinary text.
    """
    options = PrepareOptions(date=day(date), special_tokens=special_tokens)
    return PromptService(make_job(template, options))


def make_encoder(template: Template, *, date: str = "auto") -> Encoder:
    """An encoder in this process, for a loop of your own. A template that comes with a model is a
    program: `prepare` and `prompt_service` run it in a child that is bounded, this does not."""
    job = make_job(template, PrepareOptions(date=day(date)))
    return Encoder(job.spec, Tokenizer.from_str(job.tokenizer_json), job.options)


def day(date: str) -> str:
    """The date that a template gets: the one given, or for `auto` today's."""
    return datetime.date.today().isoformat() if date == "auto" else date


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's Rust core as JSON.

    Raises:
        UsageError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) is written in Python only",
            why="data is encoded by the tokenizers library, from a tokenizer.json",
            fix="save the model with a fast tokenizer",
        )
    text: str = backend.to_str()
    return text
