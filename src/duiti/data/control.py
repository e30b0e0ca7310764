"""Control tokens: what separates turns in a text, and what a message must therefore not contain.

    control = Control(tokens, template_text, mode="reject")
    messages = control.treat(messages)          # refused, marked as ordinary text, or left alone

A control token is a special token of the tokenizer, or an added one that reads like a marker
(`<|…|>`): a model obeys them, so a message that contains one speaks with the template's voice.

| mode | a control token in a message |
|---|---|
| `reject` | the row is rejected |
| `escape` | it is encoded as ordinary text, as transformers' `sanitize_control_tokens=True` does |
| `allow` | it acts |

Added tokens that are no markers but that the template writes as well (`<think>`, `<tool_call>`)
are part of how many rows are written; they are left in answers, escaped elsewhere under `escape`,
and otherwise counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from duiti.errors import RowError
from duiti.types import Json, Message, ToolCall

Mode = Literal["reject", "escape", "allow"]

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around a control token that is meant as text. Unicode keeps these two code points free for such
use inside a program; they are gone before anything is encoded."""

_MARKER = re.compile(r"<[|｜].+[|｜]>|\[/?[A-Z_]+\]")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer finds in a text before anything else."""

    text: str
    is_special: bool


class Control:
    """The control tokens of a tokenizer under a template."""

    def __init__(self, added: Collection[AddedToken], template: str, *, mode: Mode) -> None:
        self.mode = mode
        hard = {t.text for t in added if t.text and (t.is_special or _MARKER.fullmatch(t.text))}
        soft = {t.text for t in added if t.text and t.text not in hard and t.text in template}
        self.pattern = _any_of(hard)
        """Matches the text of any control token; None where there are none."""
        self._soft = _any_of(soft)
        self._all = _any_of(hard | soft)

    def treat(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages as they may be rendered.

        Raises:
            RowError: one contains a control token, and the mode is to reject.
        """
        if self.mode == "allow" or self.pattern is None:
            return messages
        if self.mode == "reject":
            for number, message in enumerate(messages, start=1):
                for text in _texts(message):
                    if found := self.pattern.search(text):
                        raise RowError(
                            f"message {number} contains the control token {found.group()}"
                            " (--special-tokens escape makes it ordinary text)"
                        )
            return messages
        return [self._escaped(message) for message in messages]

    def treat_tools(self, tools: Sequence[Json]) -> Sequence[Json]:
        """Descriptions of tools, likewise."""
        if self.mode == "allow" or self.pattern is None or not tools:
            return tools
        if self.mode == "reject":
            if any(self.pattern.search(text) for text in _strings(list(tools))):
                raise RowError("a tool's description contains a control token")
            return tools
        assert self._all is not None
        marked = _map_strings(list(tools), _Mark(self._all))
        assert isinstance(marked, list)
        return marked

    def softly_acts(self, messages: Sequence[Message]) -> bool:
        """Whether a message that is given, not produced, holds an added token that will act."""
        if self._soft is None or self.mode == "escape":
            return False
        return any(m.role != "assistant" and self._soft.search(m.content) for m in messages)

    def _escaped(self, message: Message) -> Message:
        pattern = self.pattern if message.role == "assistant" else self._all
        assert pattern is not None
        mark = _Mark(pattern)
        if not any(OPEN in t or CLOSE in t or pattern.search(t) for t in _texts(message)):
            return message
        return replace(
            message,
            content=mark(message.content),
            input=mark(message.input),
            reasoning=mark(message.reasoning),
            tool_calls=tuple(
                ToolCall(name=mark(c.name), arguments=_map_strings(c.arguments, mark), id=c.id)
                for c in message.tool_calls
            ),
        )


def split_marked(text: str) -> list[tuple[str, bool]]:
    """Pieces of a rendered text, in turn not and meant as text; some may be empty. A mark that lost
    its partner (templates cut texts, too) still parts what stands on its two sides."""
    pieces = re.split(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]", text)
    return [(piece or "", number % 2 == 1) for number, piece in enumerate(pieces)]


def _any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Longest first, so that a token goes before those it contains."""
    if not texts:
        return None
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=lambda t: (-len(t), t))))


class _Mark:
    """Puts the marks around every control token of a text."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def __call__(self, text: str) -> str:
        if OPEN in text or CLOSE in text:
            raise RowError(
                "contains U+FDD0 or U+FDD1, which are no characters, and are needed here"
            )
        return self._pattern.sub(f"{OPEN}\\g<0>{CLOSE}", text)


def _texts(message: Message) -> list[str]:
    texts = [message.content]
    if message.input:
        texts.append(message.input)
    if message.reasoning:
        texts.append(message.reasoning)
    for call in message.tool_calls:
        texts.append(call.name)
        texts += _strings(call.arguments)
    return texts


def _strings(value: Json) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (key, *_strings(item))]
    return []


def _map_strings(value: Json, change: _Mark) -> Json:
    """`value` with every string in it changed; keys are left alone."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value
