"""Conversations whose prompts the saved template has to make again, to the id.

    chats = sample_chats(template, options, files, [material.train, material.val])

A few of the run's own rows, read again from its files, with the prompt ids that were *trained*; and
a few that anybody might ask, with the ids that the run's own encoder gives them. Left out is what
plain transformers is not given as training was: messages with tool calls, whose form every template
has its own, and with control tokens that somebody typed. Plain transformers tells a template that
asks for the date today's; so do these, and rows of a run that told it another are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from duiti.data.jobs import PrepareOptions, day, prompt_service
from duiti.data.pool import PromptService
from duiti.data.prepare import FileFacts
from duiti.data.reading.read import read_rows
from duiti.data.reading.sources import Source
from duiti.data.rows.formats import to_sample
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template
from duiti.errors import DataError, RowError, UsageError
from duiti.types import IGNORE_INDEX, Example, Json, Message, Row, Sample

NUM_ROWS, MAX_READ = 4, 32
"""Rows of a run that are rendered again, and that are looked at for them, from the first on."""
ASKED: tuple[tuple[Message, ...], ...] = (
    (Message(role="user", content="Who are you, and what is 2 + 2?"),),
    (Message(role="user", content="  水的化学式是什么？\n\nTell me, “in short”. "),),
    (
        Message(role="system", content="You answer in one word."),
        Message(role="user", content="Is it so?"),
    ),
    (
        Message(role="user", content="Hello!"),
        Message(role="assistant", content="Hello. What can I do?"),
        Message(role="user", content="Count: 1, 2,"),
    ),
)
"""What anybody might ask; a template need not take each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation that waits for an answer, and the ids that the model has to be given."""

    messages: list[dict[str, Json]]
    """As `apply_chat_template` takes them."""
    tools: list[Json]
    prompt_ids: list[int]
    is_row: bool
    """Whether it is a row of the run, and the ids those that were trained on."""
    date: str
    """The day that the prompt holds good for, where the template asks for it; else empty."""


def sample_chats(
    template: Template,
    options: PrepareOptions,
    files: Sequence[FileFacts],
    stores: Sequence[ExampleStore],
) -> list[Chat]:
    """The conversations, those of rows first.

    Args:
        options: with which the rows were prepared.
        files: that were read; none for rows from Python.
        stores: their examples.
    """
    date = day("auto") if "strftime_now" in template.source else ""
    service = prompt_service(
        template, date=date or options.date, special_tokens=options.special_tokens
    )
    control = set(template.tokenizer.get_added_vocab())
    if options.special_tokens == "allow":
        control = set()
    try:
        found = list(islice(_of_rows(template, options, files, stores, service, control), NUM_ROWS))
        for messages in ASKED:
            try:
                ids = service.prompt_ids(messages)
            except RowError:
                continue  # no conversation for this template, in training or later
            found.append(_chat(template, messages, [], ids, is_row=False))
    finally:
        service.close()
    return [replace(chat, date=date) for chat in found]


def _of_rows(
    template: Template,
    options: PrepareOptions,
    files: Sequence[FileFacts],
    stores: Sequence[ExampleStore],
    service: PromptService,
    control: set[str],
) -> Iterator[Chat]:
    for sample in _samples(options, files):
        if not _is_plain(sample, control):
            continue
        examples = [example for store in stores for example in _examples_of(sample, store)]
        for place, message in enumerate(sample.messages):
            asked = sample.messages[:place]
            if message.role != "assistant" or not asked:
                continue
            try:
                ids = service.prompt_ids(asked, sample.tools)
            except RowError:
                continue
            if any(_is_trained_prompt(ids, example) for example in examples):
                yield _chat(template, asked, list(sample.tools), ids, is_row=True)
                break


def _samples(options: PrepareOptions, files: Sequence[FileFacts]) -> Iterator[Sample]:
    for file in files:
        try:
            for row in islice(read_rows(Source(name=file.name, path=file.path)), MAX_READ):
                if isinstance(row, Row):
                    try:
                        yield to_sample(row, options.mapping)
                    except RowError:
                        continue  # it was rejected, and counted, when it was prepared
        except (DataError, UsageError):
            # The files were read whole before training; they may be gone now. What is left to
            # compare is counted in the proof.
            continue


def _is_plain(sample: Sample, control: set[str]) -> bool:
    if any(message.tool_calls for message in sample.messages):
        return False
    texts = [text for m in sample.messages for text in (m.content, m.input, m.reasoning, m.name)]
    text = "\n".join([*texts, *map(str, sample.tools)])
    return not any(token in text for token in control if not token.isspace())


def _examples_of(sample: Sample, store: ExampleStore) -> Iterator[Example]:
    name, line = sample.origin.file, sample.origin.line
    if name not in store.files:
        return
    numbers, lines = store.origins()
    own = (lines == line) & np.isin(numbers, [i for i, n in enumerate(store.files) if n == name])
    for index in np.flatnonzero(own).tolist():
        yield store[index]


def _is_trained_prompt(ids: list[int], example: Example) -> bool:
    """Whether an answer that was trained begins right behind these ids."""
    end = len(ids)
    labels = example.labels
    return (
        end < len(example)
        and bool(labels[end] != IGNORE_INDEX)
        and bool(labels[end - 1] == IGNORE_INDEX)
        and example.input_ids[:end].tolist() == ids
    )


def _chat(
    template: Template,
    messages: Sequence[Message],
    tools: list[Json],
    ids: list[int],
    *,
    is_row: bool,
) -> Chat:
    dicts = [_as_dict(message, places_input=template.places_input) for message in messages]
    return Chat(messages=dicts, tools=tools, prompt_ids=ids, is_row=is_row, date="")


def _as_dict(message: Message, *, places_input: bool) -> dict[str, Json]:
    """As training hands a message without tool calls to a template (`templates/render.py`)."""
    found: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.reasoning:
        found |= {"thinking": message.reasoning, "reasoning_content": message.reasoning}
    if message.input and places_input:
        found["input"] = message.input
    elif message.input:
        found["content"] = f"{message.content}\n{message.input}"
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found
