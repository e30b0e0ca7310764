"""Two ways to find what is trained, side by side: ours, and the generation tags of a twin.

    pair = compare("qwen3", "three turns")
    found = explain(pair)           # how the two differ: names of exceptions; none: not at all

A twin is a copy of a model's template into which `trl` has put generation tags by hand, and which
transformers turns into spans. Where the two differ, the difference has to be one of
`exceptions.py`, and each has a rule here that holds it to the letter; anything else is
an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from benchmarks.oracle.stock import (
    AS_TEXT,
    EOS,
    SUITE,
    TWIN,
    as_row,
    read_stock,
    spec_of,
    tokenizer_of,
    tokens_of,
)
from duiti.data.templates.control import AddedToken, Control
from duiti.data.templates.render import Renderer
from duiti.data.templates.spans import TurnFinder
from duiti.errors import RowError
from duiti.types import Message, Sample, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A conversation under a template, as `duiti` trains it and as the template's twin does."""

    name: str
    sample: Sample
    arguments_as_text: bool
    """The twin gets the arguments of calls as strings of JSON."""
    turns: tuple[Turn, ...]
    """Ours; empty where we refuse."""
    notes: frozenset[str]
    refusal: str
    """Why we refuse."""
    text: str
    """The twin's, of the whole conversation."""
    spans: tuple[tuple[int, int], ...]
    """What of it the twin trains; parts that touch are one."""
    failure: str
    """Why the twin fails."""

    @property
    def trained(self) -> list[str]:
        """The texts of the twin's spans."""
        return [self.text[start:end] for start, end in self.spans]

    @property
    def answers(self) -> list[Message]:
        return [message for message in self.sample.messages if message.role == "assistant"]


@cache
def compare(name: str, conversation: str) -> Pair:
    """A conversation of the suite (or `AS_TEXT`) under a template and its twin."""
    if conversation == AS_TEXT:
        return lay_out(name, SUITE["call and result"], arguments_as_text=True)
    return lay_out(name, SUITE[conversation])


def lay_out(name: str, sample: Sample, *, arguments_as_text: bool = False) -> Pair:
    """A conversation under a template and its twin."""
    turns: tuple[Turn, ...] = ()
    notes: frozenset[str] = frozenset()
    refusal, failure, text = "", "", ""
    spans: Sequence[tuple[int, int]] = ()
    try:
        found = _finder(name).find(sample)
        turns, notes = tuple(found.turns), frozenset(found.notes)
    except RowError as error:
        refusal = str(error)
    rows = [as_row(m, arguments_as_text=arguments_as_text) for m in sample.messages]
    try:
        text, spans = _twin(name, rows, list(sample.tools))
    except (jinja2.TemplateError, TypeError) as error:
        failure = type(error).__name__
    return Pair(
        name=name,
        sample=sample,
        arguments_as_text=arguments_as_text,
        turns=turns,
        notes=notes,
        refusal=refusal,
        text=text,
        spans=tuple(spans),
        failure=failure,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """How two ways to train a conversation differ."""

    exceptions: frozenset[str]
    aligned: Mapping[int, Sequence[int]]
    """The twin's ids of those turns of ours, by number, that stand in its text as they are."""


def explain(pair: Pair) -> Explained:
    """How the two differ, by names of exceptions.

    Raises:
        AssertionError: in a way that is none of them.
    """
    if pair.refusal:
        return Explained(exceptions=frozenset([_why_refused(pair)]), aligned={})
    if pair.arguments_as_text:
        as_object = lay_out(pair.name, pair.sample)
        if pair.trained != as_object.trained:
            assert pair.failure or '"{' in "".join(pair.trained), "not as JSON in JSON"
            found = explain(as_object)
            return replace(found, exceptions=found.exceptions | {"arguments as text"}, aligned={})
    assert not pair.failure, f"the twin fails: {pair.failure}"
    assert len(pair.turns) == len(pair.spans), f"{len(pair.turns)} turns, {pair.trained}"
    names: set[str] = set()
    aligned: dict[int, Sequence[int]] = {}
    for number, (start, _) in enumerate(pair.spans):
        found_names, offset = _explain_turn(pair, number)
        names |= found_names
        if offset is None:
            continue
        begin = start + offset
        ids = _ids_between(pair, begin, begin + len(pair.turns[number].answer))
        if ids is None:
            names.add("border")
        else:
            aligned[number] = ids
    return Explained(exceptions=frozenset(names), aligned=aligned)


def _ids_between(pair: Pair, start: int, end: int) -> list[int] | None:
    """The ids of a part of the twin's text, which is tokenized as a whole; None if a token reaches
    over its beginning."""
    found = tokenizer_of(pair.name)(pair.text, return_offsets_mapping=True)
    tokens = list(zip(found["input_ids"], found["offset_mapping"], strict=True))
    if any(first < start < last for _, (first, last) in tokens):
        assert pair.text[start - 1 : start + 1] == "\n\n"
        return None
    return [id_ for id_, (first, last) in tokens if start <= first and last <= end]


def _explain_turn(pair: Pair, number: int) -> tuple[set[str], int | None]:
    """The exceptions of one turn, and where in the twin's span our answer begins, if it does."""
    turn, span = pair.turns[number], pair.trained[number]
    core, names = span, set[str]()
    if core.endswith(f"\n{EOS}"):
        core = core.removesuffix(EOS)
        names.add("end of text")
    if core.endswith("\n") and not turn.answer.endswith("\n"):
        core = core.removesuffix("\n")
        names.add("line break")
    if pair.answers[number].tool_calls and turn.answer == f"{core}<|tool_response>":
        return names | {"no stop"}, None
    cue = core[: len(core) - len(turn.answer)]
    if core == cue + turn.answer and turn.prompt.endswith(cue):
        return names | ({"cue"} if cue else set()), len(cue)
    if _is_history(pair, number):
        return names | {"history"}, None
    if _continues_thinking(pair.answers[number], turn, core):
        return names | {"opened thinking"}, None
    raise AssertionError(f"turn {number + 1}: {turn.answer!r} is not {span!r}")


def _is_history(pair: Pair, number: int) -> bool:
    """Whether ours is what the twin trains once the conversation ends with this turn."""
    if number == len(pair.turns) - 1:
        return False
    end = [i for i, m in enumerate(pair.sample.messages) if m.role == "assistant"][number] + 1
    cut = lay_out(pair.name, replace(pair.sample, messages=pair.sample.messages[:end]))
    if len(cut.turns) != len(cut.spans) or cut.turns[-1] != pair.turns[number]:
        return False
    try:
        names, _ = _explain_turn(cut, number)
    except AssertionError:
        return False
    return cut.trained[-1] != pair.trained[number] and "history" not in names


def _continues_thinking(message: Message, turn: Turn, core: str) -> bool:
    """Whether ours is the thought, its end, and what the twin shows behind its own thinking."""
    thought, end, answer = turn.answer.partition("</think>")
    shown = core.rpartition("</think>")[2].removeprefix("<｜Assistant｜>")
    said = message.reasoning or message.content.partition("</think>")[0].removeprefix("<think>\n")
    if "</think>" not in message.content and not message.reasoning:
        said = ""
    return (
        turn.prompt.endswith("<think>\n")
        and bool(end)
        and thought.strip() == said.strip()
        and answer.lstrip() == shown.lstrip()
    )


def _why_refused(pair: Pair) -> str:
    """The exception by which we refuse and the twin does not, or trains what it should not."""
    names = [call.name for message in pair.answers for call in message.tool_calls]
    trained = "".join(pair.trained)
    rules: Sequence[tuple[str, bool]] = (
        ("both refuse", "refuses the conversation" in pair.refusal and bool(pair.failure)),
        (
            "no calls",
            pair.refusal.endswith("cannot write tool calls")
            and (bool(pair.failure) or not any(name in trained for name in names)),
        ),
        (
            "typed parts",
            ("does not show the text" in pair.refusal or "UndefinedError" in pair.refusal)
            and not any(m.content in trained for m in pair.answers if m.content),
        ),
        (
            "closed thinking",
            "closes the thinking in the prompt" in pair.refusal and "<think>\n" in trained,
        ),
        (
            "moved text",
            "writes a finished answer (message 4) differently" in pair.refusal
            and _is_behind_result(pair),
        ),
        (
            "second call",
            "writes a finished answer (message 6) differently" in pair.refusal
            and pair.trained[2].startswith("\n<｜tool▁call▁begin｜>"),
        ),
    )
    found = [name for name, holds in rules if holds]
    assert found, f"refused: {pair.refusal}; the twin: {pair.failure or pair.trained}"
    return found[0]


def _is_behind_result(pair: Pair) -> bool:
    """Whether the text of the first, calling turn stands behind the result of its tool."""
    call, result = pair.sample.messages[1:3]
    places = [pair.text.find(message.content) for message in (result, call)]
    return bool(call.content and call.tool_calls) and -1 < places[0] < places[1]


@cache
def _finder(name: str) -> TurnFinder:
    spec = spec_of(name)
    renderer = Renderer(spec)
    tokens = [AddedToken(text, is_special) for text, is_special in tokens_of(spec.source).items()]
    control = Control(tokens, renderer.literals, mode="reject")
    return TurnFinder(renderer, control, train_on="assistant")


def _twin(name: str, rows: list[Any], tools: list[Any]) -> tuple[str, list[tuple[int, int]]]:
    options: dict[str, Any] = {
        "chat_template": read_stock(name + TWIN),
        "return_assistant_tokens_mask": True,
        **spec_of(name).special_tokens,
    }
    found: Any = render_jinja_template([rows], tools or None, **options)
    texts, spans = found
    return texts[0], _merged(spans[0])


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without empty ones; those that touch are one."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        elif start < end:
            merged.append((start, end))
    return merged
