"""The Jinja of chat templates: transformers' environment, in a sandbox with limits.

    template = compile_template(source, day="2026-03-31")
    with limited_time():
        text = template.render(…)
    words = literal_text(template, source)

A template is a program that came with a model. The environment is that of transformers'
`apply_chat_template`, name for name (a test holds them equal), with three differences: the date is
frozen; the clock and chance are out of reach, because what they write can never be served again;
and after `limit_time()`, computing for too long ends in a `TemplateFault`. Memory is bounded by the
child process in which templates are rendered (`duiti.data.worker`).
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from duiti.data.templates.control import CLOSE, OPEN

MAX_SECONDS = 2.0
"""Of computing, for one text; ordinary templates take less than a millisecond."""


class TemplateFault(Exception):
    """A template that must not be used: it loops, explodes, reads the clock or tries to escape."""


def compile_template(source: str, *, day: str) -> jinja2.Template:
    """The program of a template; `day` (2026-03-31) is what it gets for today.

    Raises:
        TemplateFault: it is not valid Jinja, or computes too long before it even begins.
    """
    try:
        with limited_time():
            return _environment(day).from_string(source)
    except TemplateFault:
        raise
    except Exception as error:  # whatever a compiler trips over: Jinja's errors, Python's, depth
        line = getattr(error, "lineno", None) if isinstance(error, jinja2.TemplateError) else None
        where = f", line {line}" if line else ""
        raise TemplateFault(f"is not valid Jinja{where}: {type(error).__name__}") from None


def literal_text(template: jinja2.Template, source: str) -> str:
    """What a template may write by itself: its text and its string constants."""
    tree = template.environment.parse(source)
    texts = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    constants = (node.value for node in tree.find_all(jinja2.nodes.Const))
    return "\0".join([*texts, *(value for value in constants if isinstance(value, str))])


@contextmanager
def limited_time() -> Iterator[None]:
    """Raise `TemplateFault` after too much computing; the kernel ends the process at twice that,
    for the loops in C that Python's signals do not reach. Where the main thread does not belong to
    us (a notebook's, a server's), only templates of our own are rendered, which need no limit."""
    if not _IS_LIMITED:
        yield
        return
    # Again and again, because a template's code can swallow an exception.
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS, MAX_SECONDS / 8)
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


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which does not only hide what a template must not reach but says so."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        if attribute.startswith("_"):
            raise jinja2.exceptions.SecurityError("underscored attribute")
        return super().unsafe_undefined(obj, attribute)


class _NoFiles(jinja2.BaseLoader):
    """What `include`, `import` and `extends` ask."""

    def get_source(self, environment: jinja2.Environment, template: str) -> Any:
        raise TemplateFault("reads another file")


def _only_data(value: object) -> object:
    """What a template prints. A method without its parentheses prints an address, another each
    time."""
    if not isinstance(value, str) and callable(value) and not isinstance(value, jinja2.Undefined):
        raise TemplateFault("prints a piece of a program, not its text")
    return value


def _environment(day: str) -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        loader=_NoFiles(),
        finalize=_only_data,
    )
    environment.filters["tojson"] = _tojson
    environment.filters["random"] = _draw
    environment.globals["lipsum"] = _draw
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
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    # The marks of templates/control.py must not become text: they say what is no control token.
    return _MARK.sub(lambda found: found[1] + (OPEN, CLOSE)[int(found[2])], text)


_MARK = re.compile(r"(?<!\\)((?:\\\\)*)\\ufdd([01])")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _draw(*args: object, **kwargs: object) -> str:
    raise TemplateFault("draws at random: what it writes can never be served again")


_CLOCK = re.compile(r"%[-_0^#+]*\d*[EO]?[HIMSfpXcTRrsZz+klPN]")
"""Fields of strftime that change within a day, with the flags and widths of the C library."""


def _frozen(day: date) -> Any:
    midnight = datetime(day.year, day.month, day.day)

    def strftime_now(format: str) -> str:
        if _CLOCK.search(format.replace("%%", "")):
            raise TemplateFault("reads the clock: what it writes can never be served again")
        return midnight.strftime(format)

    return strftime_now


class _Generation(Extension):
    """`{% generation %}` marks what to train for other tools; here it only has to be read."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what is set inside stays inside.
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


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
