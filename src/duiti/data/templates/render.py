"""Chat templates, rendered: a Jinja program from a model's files, in a sandbox with limits.

    renderer = Renderer(spec)
    renderer.prompt(messages)          # what serving sends: up to and with the cue for an answer
    renderer.transcript(messages)      # finished turns

What a template gets is what transformers' `apply_chat_template` gives it, name for name; where it
runs is said in `templates/sandbox.py`. Templates that come with a model are rendered in a child
process (`duiti.data.worker`), which bounds their time and memory. Imports neither torch nor
transformers, so that such a child starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import jinja2

from duiti.data.templates.calls import CallShape, find_shape
from duiti.data.templates.sandbox import TemplateFault as TemplateFault
from duiti.data.templates.sandbox import compile_template, limited_time, literal_text
from duiti.data.templates.sandbox import limit_time as limit_time
from duiti.errors import RowError
from duiti.types import Json, Message

MAX_GROWTH, MAX_ADDED = 16, 2**22
"""A text has at most so many characters for each one of its messages and tools, and so many more:
room for every escape and every preamble, none for a template that explodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSpec:
    """A template and what it needs of a tokenizer, as plain values."""

    name: str
    source: str
    """Jinja."""
    special_tokens: Mapping[str, str]
    """`bos_token`, `eos_token`, …: variables of the template."""
    date: str
    """What `strftime_now` gets, as `2026-03-31`."""
    is_ours: bool = False
    """Compiled from declared strings, so it can neither loop nor escape."""
    places_input: bool = False
    """Whether it lays out an alpaca row's `input` by itself."""
    stop: str | None = None
    """The text of the stop token, where it was declared."""

    def as_dict(self) -> dict[str, Json]:
        """Values that JSON can carry; `TemplateSpec(**values)` is the way back."""
        return cast(dict[str, Json], asdict(self))


class Renderer:
    """A compiled template."""

    def __init__(self, spec: TemplateSpec) -> None:
        """Compile `spec`.

        Raises:
            TemplateFault: it is not valid Jinja.
        """
        self.spec = spec
        self._template = compile_template(spec.source, day=spec.date)
        self._names = {
            **self._template.globals,
            **spec.special_tokens,
            "documents": None,
        }
        self._shape: CallShape | None = None
        self._is_shape_known = False

    @property
    def literals(self) -> str:
        """What the template may write by itself: its text and its string constants."""
        return literal_text(self._template, self.spec.source)

    @property
    def call_shape(self) -> CallShape | None:
        """How the template reads tool calls; None: it cannot write them. Asked of it once, and
        before the first message with calls is rendered, so the order of messages is no matter."""
        if not self._is_shape_known:
            self._shape = find_shape(self._finished_in)
            self._is_shape_known = True
        return self._shape

    def prompt(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The text that serving sends for these messages: up to and with the cue for an answer."""
        return self.render([self.as_dict(message) for message in messages], tools, cue=True)

    def transcript(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The text of finished turns."""
        return self.render([self.as_dict(message) for message in messages], tools, cue=False)

    def render(
        self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Json], *, cue: bool
    ) -> str:
        """The text of messages as `as_dict` makes them, with or without the cue for an answer.

        Raises:
            RowError: the template refuses this conversation, or fails on it.
            TemplateFault: it must not be used at all.
        """
        name = self.spec.name
        try:
            with limited_time():
                text = self._run(
                    messages=messages, tools=list(tools) or None, add_generation_prompt=cue
                )
        except TemplateFault:
            raise
        except jinja2.exceptions.SecurityError:
            raise TemplateFault("tries to reach what a template must not") from None
        except (MemoryError, OverflowError):
            raise TemplateFault("writes more than memory holds") from None
        except RecursionError:
            raise TemplateFault("calls itself without end") from None
        except jinja2.TemplateError as error:
            # A template's own message is static text that explains; anything else could be content.
            known = str(error) if str(error) and str(error) in self.spec.source else ""
            known = known or type(error).__name__
            raise RowError(f"the template {name} refuses the conversation: {known}") from None
        except Exception as error:  # it is somebody else's program, and may fail in any way
            kind = type(error).__name__
            raise RowError(f"the template {name} fails on the conversation: {kind}") from None
        if len(text) > MAX_ADDED and len(text) - MAX_ADDED > MAX_GROWTH * _size(
            [*messages, *tools]
        ):
            raise TemplateFault("writes without bound")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise TemplateFault("writes half of a surrogate pair, which is no text") from None
        return text

    def _run(self, **names: object) -> str:
        """What `Template.render` does, with the names that never change put together once: they
        took it a third of its time."""
        context = self._template.new_context({**self._names, **names}, shared=True)
        return "".join(self._template.root_render_func(context))

    def as_dict(self, message: Message, shape: CallShape | None = None) -> dict[str, Json]:
        """A message as `apply_chat_template` hands it to a template: absent keys are absent.

        Args:
            shape: of its tool calls; None: the one that the template can read.
        """
        found: dict[str, Json] = {"role": message.role, "content": message.content}
        if message.reasoning:
            # gpt-oss reads `thinking`, all others `reasoning_content`; transformers gives both.
            found = {"thinking": message.reasoning, **found, "reasoning_content": message.reasoning}
        if message.input:
            if self.spec.places_input:
                found["input"] = message.input
            else:
                found["content"] = f"{message.content}\n{message.input}"
        if message.tool_calls:
            shape = shape or self.call_shape or CallShape()
            if not message.content and not shape.has_content:
                del found["content"]
            found["tool_calls"] = [shape.call(call) for call in message.tool_calls]
        if message.name:
            found["name"] = message.name
        if message.tool_call_id:
            found["tool_call_id"] = message.tool_call_id
        return found

    def _finished_in(
        self, messages: Sequence[Message], tools: Sequence[Json], shape: CallShape
    ) -> str:
        dicts = [self.as_dict(message, shape) for message in messages]
        return self.render(dicts, tools, cue=False)


def _size(value: object) -> int:
    """Characters of all strings in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + _size(item) for key, item in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 0
