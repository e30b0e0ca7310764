"""Chat templates, rendered: a Jinja program from a model's files, in a sandbox with limits.

    renderer = Renderer(spec)
    renderer.prompt(messages)          # what serving sends: up to and with the cue for an answer
    renderer.transcript(messages)      # finished turns

The environment is that of transformers' `apply_chat_template`, name for name (a test holds them
equal), with three differences: the date is frozen, the clock cannot be read, and a template that
computes for too long, or writes too much, ends in a `TemplateFault`. Templates that come with a
model are rendered in a child process (`duiti.data.worker`), which also bounds their memory. Imports
neither torch nor transformers, so that such a child starts fast.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from types import FrameType
from typing import Any, cast

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from duiti.errors import RowError
from duiti.types import Json, Message

MAX_SECONDS = 2.0
"""Of computing, for one text; ordinary templates take less than a millisecond."""
MAX_CHARACTERS = 256 * 2**20
"""Of one text."""


class TemplateFault(Exception):
    """A template that must not be used: it loops, explodes, reads the clock or tries to escape."""


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


@dataclass(frozen=True, slots=True)
class CallShape:
    """How tool calls are handed to a template: templates differ in what they can read."""

    arguments_as_text: bool = False
    """`arguments` as a string of JSON instead of an object."""
    has_content: bool = True
    """An assistant turn without text has `content: ""`, rather than no content."""


class Renderer:
    """A compiled template."""

    def __init__(self, spec: TemplateSpec) -> None:
        """Compile `spec`.

        Raises:
            TemplateFault: it is not valid Jinja.
        """
        self.spec = spec
        self.shape = CallShape()
        self.asks_date = "strftime_now" in spec.source
        try:
            self._template = _environment(spec.date).from_string(spec.source)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise TemplateFault(f"is not valid Jinja{where}: {type(error).__name__}") from None

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
            with _limited_time():
                text = self._template.render(
                    messages=messages,
                    tools=list(tools) or None,
                    documents=None,
                    add_generation_prompt=cue,
                    **self.spec.special_tokens,
                )
        except jinja2.exceptions.SecurityError:
            raise TemplateFault("tries to reach what a template must not") from None
        except (MemoryError, OverflowError):
            raise TemplateFault("writes more than memory holds") from None
        except jinja2.TemplateError as error:
            # A template's own message is static text that explains; anything else could be content.
            known = str(error) if str(error) and str(error) in self.spec.source else ""
            known = known or type(error).__name__
            raise RowError(f"the template {name} refuses the conversation: {known}") from None
        except RecursionError:
            raise TemplateFault("calls itself without end") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            kind = type(error).__name__
            raise RowError(f"the template {name} fails on the conversation: {kind}") from None
        if len(text) > MAX_CHARACTERS:
            raise TemplateFault(f"writes more than {MAX_CHARACTERS >> 20} Mi characters")
        return text

    def as_dict(self, message: Message) -> dict[str, Json]:
        """A message as `apply_chat_template` hands it to a template: absent keys are absent."""
        found: dict[str, Json] = {"role": message.role, "content": message.content}
        if message.input:
            if self.spec.places_input:
                found["input"] = message.input
            else:
                found["content"] = f"{message.content}\n{message.input}"
        if message.reasoning:
            # gpt-oss reads `thinking`, all others `reasoning_content`; transformers gives both.
            found["thinking"] = found["reasoning_content"] = message.reasoning
        if message.tool_calls:
            if not message.content and not self.shape.has_content:
                del found["content"]
            found["tool_calls"] = [self._call(call.name, call.arguments, call.id)
                                   for call in message.tool_calls]  # fmt: skip
        if message.name:
            found["name"] = message.name
        if message.tool_call_id:
            found["tool_call_id"] = message.tool_call_id
        return found

    def _call(self, name: str, arguments: Json, id_: str) -> Json:
        given = json.dumps(arguments, ensure_ascii=False) if self.shape.arguments_as_text else None
        function: dict[str, Json] = {"name": name, "arguments": given or arguments}
        call: dict[str, Json] = {"type": "function", "function": function}
        return {"id": id_, **call} if id_ else call


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise `TemplateFault` after too much computing; the kernel ends the process at twice that,
    for the loops in C that Python's signals do not reach. Where the main thread does not belong to
    us (a notebook's, a server's), only templates of our own are rendered, which need no limit."""
    if not _IS_LIMITED:
        yield
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, 2 * MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


_IS_LIMITED = False


def limit_time() -> None:
    """From here on, this process bounds what a template computes. Called by the child process."""
    global _IS_LIMITED

    def stop(number: int, frame: FrameType | None) -> None:
        raise TemplateFault(f"does not come to an end within {MAX_SECONDS:.0f} s")

    signal.signal(signal.SIGVTALRM, stop)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _IS_LIMITED = True


def _environment(day: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _frozen(date.fromisoformat(day))
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


_CLOCK = re.compile(r"%[-_0^#]?[HIMSfpXcTRrsZz+klPN]")


def _frozen(day: date) -> Any:
    midnight = datetime(day.year, day.month, day.day)

    def strftime_now(format: str) -> str:
        if _CLOCK.search(format):
            raise TemplateFault("reads the clock: what it writes can never be served again")
        return midnight.strftime(format)

    return strftime_now


class _Generation(Extension):
    """`{% generation %}` marks what to train for other tools; here it only has to be read."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as the call block of transformers is.
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Dict:
    """`dict(…)` without the class, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscored attributes, which lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        values = dict(*given, **kwargs)
        for name in values:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("underscored attribute on a namespace")
