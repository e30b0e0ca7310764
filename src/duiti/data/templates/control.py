"""Control tokens: what separates turns in a text, and what a message must therefore not contain.

    control = Control(tokens, renderer.literals, mode="reject")
    messages = control.treat(messages)          # refused, marked as ordinary text, or left alone
    messages = control.treat(messages, is_served=True)      # a chat, of which nothing is refused

A control token is a special token of the tokenizer, the stop of a declared template, or an added
token that reads like a marker (`<|…|>`, `[INST]`): a model obeys them, so a message that contains
one speaks with the template's voice.

| mode | a control token in a row | in a chat |
|---|---|---|
| `reject` | the row is rejected | is ordinary text |
| `escape` | is ordinary text, as with transformers' `sanitize_control_tokens=True` | likewise |
| `allow` | acts | acts |

Added tokens that are no markers but that the template writes as well (`<think>`, `<tool_call>`)
are part of how many rows are written. They act in answers; elsewhere they are ordinary text under
`escape`, and act and are counted otherwise, in rows and chats alike. (transformers makes them text
in earlier answers, too.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from duiti.errors import RowError
from duiti.types import Json, Message, ToolCall

Mode = Literal["reject", "escape", "allow"]

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around a control token that is meant as text. Unicode keeps these two code points free for such
use inside a program; they are gone before anything is encoded."""

_MARKER = re.compile(r"<[|｜].+>|<.+[|｜]>|\[/?[A-Z_]+\]")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer finds in a text before anything else."""

    text: str
    is_special: bool


class Control:
    """The control tokens of a tokenizer under a template."""

    def __init__(
        self,
        added: Collection[AddedToken],
        template: str,
        *,
        mode: Mode,
        stop: str | None = None,
    ) -> None:
        """
        Args:
            template: what the template may write by itself.
            stop: a declared stop token, which is a control token whatever it reads like.
        """
        self.mode = mode
        hard = {t.text for t in added if t.text and (t.is_special or _MARKER.fullmatch(t.text))}
        hard |= {stop} if stop else set()
        texts = {t.text for t in added if t.text and not t.text.isspace()}
        soft = {text for text in texts - hard if text in template}
        self.pattern = _any_of(hard)
        """Matches the text of any control token; None where there are none."""
        self._soft = _any_of(soft)
        self._all = _any_of(hard | soft)

    def is_control(self, text: str) -> bool:
        """Whether this is the text of a control token."""
        return self.pattern is not None and self.pattern.fullmatch(text) is not None

    def treat(self, messages: Sequence[Message], *, is_served: bool = False) -> Sequence[Message]:
        """The messages as they may be rendered.

        Raises:
            RowError: one contains what it must not.
        """
        for number, message in enumerate(messages, start=1):
            for text in _texts(message):
                if fault := self._fault(text, is_served):
                    raise RowError(f"message {number} contains {fault}")
        if self.mode == "allow" or (self.mode == "reject" and not is_served):
            return messages
        return [self._escaped(message) for message in messages]

    def treat_tools(self, tools: Sequence[Json], *, is_served: bool = False) -> Sequence[Json]:
        """Descriptions of tools, likewise."""
        for text in _strings(list(tools)):
            if fault := self._fault(text, is_served):
                raise RowError(f"a tool's description contains {fault}")
        pattern = self._all if self.mode == "escape" else self.pattern
        if pattern is None or self.mode == "allow" or (self.mode == "reject" and not is_served):
            return tools
        return [_marked(tool, pattern) for tool in tools]

    def softly_acts(self, messages: Sequence[Message]) -> bool:
        """Whether a message that is given, not produced, holds an added token that will act."""
        soft = self._soft
        if soft is None or self.mode == "escape":
            return False
        given = (message for message in messages if message.role != "assistant")
        return any(soft.search(text) for message in given for text in _texts(message))

    def _fault(self, text: str, is_served: bool) -> str:
        if OPEN in text or CLOSE in text:
            return "U+FDD0 or U+FDD1, which are no characters, and are needed here"
        if self.mode != "reject" or is_served or self.pattern is None:
            return ""
        found = self.pattern.search(text)
        if found is None:
            return ""
        return f"the control token {found.group()} (--special-tokens escape makes it ordinary text)"

    def _escaped(self, message: Message) -> Message:
        is_hard = message.role == "assistant" or self.mode == "reject"
        pattern = self.pattern if is_hard else self._all
        if pattern is None or not any(pattern.search(text) for text in _texts(message)):
            return message

        def mark(text: str) -> str:
            return _mark(text, pattern)

        return replace(
            message,
            content=mark(message.content),
            input=mark(message.input),
            reasoning=mark(message.reasoning),
            tool_calls=tuple(
                ToolCall(
                    name=mark(call.name),
                    arguments=_marked(call.arguments, pattern),
                    id=mark(call.id),
                )
                for call in message.tool_calls
            ),
            name=mark(message.name),
            tool_call_id=mark(message.tool_call_id),
        )


def split_marked(text: str) -> list[tuple[str, bool]]:
    """Pieces of a rendered text, in turn not and meant as text; some may be empty. A mark that lost
    its partner (templates cut texts, too) still parts what stands on its two sides."""
    pieces = re.split(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]", text)
    return [(piece or "", number % 2 == 1) for number, piece in enumerate(pieces)]


def shared_length(one: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Matches the longest of the texts that stands at a place. Some tokenizers have a thousand
    control tokens, so shared beginnings are written once."""
    return re.compile(_alternatives(sorted(texts))) if texts else None


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern for any of some sorted texts."""
    shared = texts[0][: shared_length(texts[0], texts[-1])]
    rests = [text[len(shared) :] for text in texts]
    groups = [list(group) for _, group in groupby(filter(None, rests), key=lambda rest: rest[0])]
    if not groups:
        return re.escape(shared)
    branches = "|".join(_alternatives(group) for group in groups)
    return f"{re.escape(shared)}(?:{branches}){'' if all(rests) else '?'}"


def _mark(text: str, pattern: re.Pattern[str]) -> str:
    return pattern.sub(f"{OPEN}\\g<0>{CLOSE}", text)


def _texts(message: Message) -> list[str]:
    texts = [message.content]
    for text in (message.input, message.reasoning, message.name, message.tool_call_id):
        if text:
            texts.append(text)
    for call in message.tool_calls:
        texts += [call.name, call.id, *_strings(call.arguments)]
    return texts


def _strings(value: Json) -> list[str]:
    """All strings in a value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (key, *_strings(item))]
    return []


def _marked(value: Json, pattern: re.Pattern[str]) -> Json:
    """`value` with the marks in every string of it. transformers leaves keys alone; they are
    somebody's text as well."""
    if isinstance(value, str):
        return _mark(value, pattern)
    if isinstance(value, list):
        return [_marked(item, pattern) for item in value]
    if isinstance(value, dict):
        return {_mark(key, pattern): _marked(item, pattern) for key, item in value.items()}
    return value
