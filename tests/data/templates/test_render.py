"""Chat templates render as in transformers, byte for byte, and hostile ones end in an error."""

import resource
from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from benchmarks.oracle.stock import (
    SUITE,
    TWIN,
    as_row,
    read_stock,
    stock_names,
    tokenizer_of,
    twin_names,
)
from duiti.data.chunk import NumberedRow
from duiti.data.pool import Job, Pool, PromptService
from duiti.data.templates.calls import CallShape
from duiti.data.templates.render import Renderer, TemplateFault, TemplateSpec
from duiti.data.templates.sandbox import compile_template
from duiti.data.tokens.encode import EncodeOptions
from duiti.errors import RowError, UsageError
from duiti.types import Message, Origin, Row, Sample

FILES = [*stock_names(), *(name + TWIN for name in twin_names())]
SECRET = (Message(role="user", content="S3cret"),)


def renderer(source: str, *, day: str = "2026-03-31") -> Renderer:
    tokens = tokenizer_of("qwen3").special_tokens_map
    return Renderer(TemplateSpec(name="mine", source=source, special_tokens=tokens, date=day))


def theirs(source: str, sample: Sample, *, cue: bool, as_text: bool) -> str:
    """What transformers renders, or the kind of error with which it refuses."""
    rows = [as_row(message, arguments_as_text=as_text) for message in sample.messages]
    try:
        text = tokenizer_of("qwen3").apply_chat_template(
            rows,
            tools=list(sample.tools) or None,
            chat_template=source,
            add_generation_prompt=cue,
            tokenize=False,
        )
    except jinja2.TemplateError:
        return "refuses"
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        return f"fails: {type(error).__name__}"
    assert isinstance(text, str)
    return text


def ours(made: Renderer, sample: Sample, *, cue: bool, as_text: bool) -> str:
    shape = CallShape(arguments_as_text=as_text)
    dicts = [made.as_dict(message, shape) for message in sample.messages]
    try:
        return made.render(dicts, sample.tools, cue=cue)
    except RowError as error:
        before, found, kind = str(error).partition("fails on the conversation: ")
        assert before.startswith("the template mine ")
        return f"fails: {kind}" if found else "refuses"


@pytest.mark.parametrize("name", FILES)
def test_every_stock_template_renders_as_in_transformers(name: str) -> None:
    source = read_stock(name)
    made = renderer(source, day=date.today().isoformat())
    for sample in SUITE.values():
        cut = replace(sample, messages=sample.messages[:-1])
        for as_text in (False, True):
            for cue in (False, True):
                for part in (sample, cut):
                    found = ours(made, part, cue=cue, as_text=as_text)
                    assert found == theirs(source, part, cue=cue, as_text=as_text)


def test_templates_find_the_same_names_as_in_transformers() -> None:
    us, them = compile_template("", day="2026-03-31").environment, _environment_of_transformers()
    assert us.globals.keys() == them.globals.keys()
    assert us.filters.keys() == them.filters.keys()
    assert us.tests.keys() == them.tests.keys()
    for name in ("trim_blocks", "lstrip_blocks", "keep_trailing_newline", "autoescape"):
        assert getattr(us, name) == getattr(them, name)
    assert us.undefined is them.undefined


def _environment_of_transformers() -> jinja2.Environment:
    environment = _compile_jinja_template("").environment
    assert isinstance(environment, jinja2.Environment)
    return environment


@pytest.mark.parametrize(
    "source",
    [
        "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}"
        "{% endfor %}",
        "{% generation %}{{ messages|tojson }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}{% endfor %}",
        "{% for m in messages %}\n  {%- if m.role == 'user' %}\n a\n  {% endif %}\n{% endfor %}\n",
        "{{ messages|tojson(indent=2) }}{{ messages|tojson(ensure_ascii=True, sort_keys=True) }}",
        "{{ dict(a=1)|tojson }}{{ dict.fromkeys(['a']) }}{{ namespace(a=1).a }}",
        "{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ eos_token }}{{ absent }}",
        "{{ '<b>' }}{{ '<b>'|e }}{{ '<b>'|safe ~ '&' }}",
    ],
)
def test_small_programs_render_as_in_transformers(source: str) -> None:
    for sample in SUITE.values():
        expected = theirs(source, sample, cue=True, as_text=False)
        assert ours(renderer(source), sample, cue=True, as_text=False) == expected


def test_the_date_is_the_one_that_was_frozen() -> None:
    made = renderer("{{ strftime_now('%Y-%m-%d %d %B %y %A %j %% %%H') }}", day="2026-03-31")
    assert made.prompt(SECRET) == "2026-03-31 31 March 26 Tuesday 090 % %H"


@pytest.mark.parametrize(
    "field",
    [
        *("%H:%M", "%I", "%S", "%f", "%p", "%X", "%c", "%T", "%R", "%r", "%s", "%Z", "%z", "%k"),
        *("%l", "%-H", "%_H", "%10H", "%EX", "%Ec", "%OH", "%-OS", "%^p", "%%%H"),
    ],
)
def test_a_template_that_reads_the_clock_is_refused(field: str) -> None:
    with pytest.raises(TemplateFault, match="reads the clock"):
        renderer(f"{{{{ strftime_now('{field}') }}}}").prompt(SECRET)


@pytest.mark.parametrize("source", ["{{ [1, 2]|random }}", "{{ lipsum() }}", "{{ 'ab'|random }}"])
def test_a_template_that_draws_at_random_is_refused(source: str) -> None:
    with pytest.raises(TemplateFault, match="draws at random"):
        renderer(source).prompt(SECRET)


@pytest.mark.parametrize(
    "expression",
    [
        "cycler.__init__.__globals__.os.system('id')",
        "''.__class__.__mro__[1].__subclasses__()",
        "''['__class__'].__mro__",
        "''|attr('__class__')|attr('__mro__')",
        "self.__init__.__globals__",
        "self._TemplateReference__context.environment",
        "lipsum.__globals__['os']",
        "strftime_now.__globals__",
        "raise_exception.__globals__",
        "namespace.__init__.__globals__",
        "dict.__class__",
        "dict.__call__.__globals__",
        "joiner.__init__.__globals__",
        "namespace(__class__=1)",
        "namespace({'_x': 1})",
        "messages.append(1)",
        "messages[0].update({'a': 1})",
        "messages[0].clear()",
        "messages.__class__",
        "tools.__class__.__base__",
        "'{0.__class__.__mro__}'.format('')",
        "'{x.__class__}'.format_map({'x': 1})",
        "(messages|map(attribute='__class__')|list)[0].__mro__",
        "[].__class__.__base__.__subclasses__()",
        "range.__class__",
        "loop.__class__",
        "(1).__class__.__bases__",
        "request.application.__globals__",
        "get_flashed_messages.__globals__",
        "messages.__getattribute__('x')",
    ],
)
def test_a_template_that_tries_to_escape_gets_nowhere_and_is_named(expression: str) -> None:
    made = renderer(f"{{{{ {expression} }}}}")
    with pytest.raises((TemplateFault, RowError)) as caught:
        made.render([{"role": "user", "content": "S3cret"}], [], cue=True)
    assert "S3cret" not in str(caught.value)
    if isinstance(caught.value, RowError):
        assert "template mine" in str(caught.value)


def test_underscored_names_cannot_be_set_on_a_namespace() -> None:
    with pytest.raises(TemplateFault, match="tries to reach"):
        renderer("{% set ns = namespace() %}{% set ns.__class__ = 1 %}").prompt(SECRET)


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "{% if %}",
        "{% for m in messages %}",
        "{% break %}",
        "{% unknown %}",
        "{{ messages|unknown }}",
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
        "{% include 'x' %}{{ ",
        "{% generation %}",
        "{% generation %}{% for m in messages %}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    ],
)
def test_what_does_not_compile_is_refused_without_a_traceback(source: str) -> None:
    with pytest.raises(TemplateFault, match="is not valid Jinja"):
        renderer(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must be nice') }}", "conversation: roles must be nice"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "conversation: TemplateError"),
        ("{{ messages[0].content + 1 }}", "fails on the conversation: TypeError"),
        ("{{ messages[7].content }}", "refuses the conversation: UndefinedError"),
        ("{{ 'a'.index('b') }}", "fails on the conversation: ValueError"),
        ("{{ 1 // 0 }}", "fails on the conversation: ZeroDivisionError"),
        ("{{ messages|tojson(default=1) }}", "fails on the conversation: TypeError"),
        ("{{ {}['x'].y }}", "refuses the conversation: UndefinedError"),
    ],
)
def test_a_template_that_fails_on_a_row_is_named_and_quotes_nothing(
    source: str, reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        renderer(source).prompt(SECRET)
    assert str(caught.value).startswith("the template mine ")
    assert reason in str(caught.value)
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{{ range(10 ** 9) }}", "more than memory holds"),
        ("{% include 'x' %}", "reads another file"),
        ("{% extends '/etc/passwd' %}", "reads another file"),
        ("{{ messages[0].content.strip }}", "a piece of a program"),
        ("{{ raise_exception }}", "a piece of a program"),
        ("{{ '\\ud800' }}", "half of a surrogate pair"),
    ],
)
def test_what_no_row_is_to_blame_for_is_a_fault_of_the_template(source: str, fault: str) -> None:
    with pytest.raises(TemplateFault, match=fault):
        renderer(source).prompt(SECRET)


@given(content=st.text(max_size=30))
def test_errors_never_quote_a_row(content: str) -> None:
    secret = f"<<{content}>>"
    made = renderer("{{ raise_exception(messages[0].content) }}")
    with pytest.raises(RowError) as caught:
        made.prompt([Message(role="user", content=secret)])
    assert secret not in str(caught.value)


HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "computes before it begins": "{{ 9 ** (9 ** 9) }}",
    "computes where no signal reaches": "{{ ('9' * 4000)|int ** 4000 }}",
    "calls itself": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
    "branches": "{% macro f(x) %}{{ f(x-1) ~ f(x-1) if x else '' }}{% endmacro %}{{ f(40) }}",
    "loops over itself": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "repeats": "{{ 'a' * 10 ** 10 }}",
    "doubles": "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "joins": "{% set n = namespace(x=['a']) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}{{ n.x|join }}",
    "replaces": "{% set x = 'a' * 10 ** 6 %}{{ x|replace('a', x) }}",
    "pads": "{{ 'a'|center(10 ** 9) }}",
    "formats": "{{ '%10000000000d'|format(1) }}",
    "indents": "{{ messages|tojson(indent=10 ** 9) }}",
    "writes a little too much": "{{ 'a' * 6 * 10 ** 6 }}",
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reads the clock": "{{ strftime_now('%H') }}",
    "is no template": "{{",
}
"""What a template does, and how."""


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return str(tokenizer_of("qwen3").backend_tokenizer.to_str())


@pytest.fixture
def cpu_seconds() -> Iterator[None]:
    """Fails a test whose child processes computed for more than 10 s."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    yield
    assert used() - before < 10


@pytest.mark.usefixtures("cpu_seconds")
@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_template_ends_in_an_error_that_names_it(how: str, tokenizer_json: str) -> None:
    spec = TemplateSpec(name="evil", source=HOSTILE[how], special_tokens={}, date="2026-03-31")
    job = Job(spec=spec, tokenizer_json=tokenizer_json, options=EncodeOptions())
    service = PromptService(job)
    try:
        with pytest.raises(UsageError, match="the template evil ") as caught:
            service.prompt_ids(SECRET)
    finally:
        service.close()
    assert "S3cret" not in str(caught.value)


@pytest.mark.usefixtures("cpu_seconds")
@pytest.mark.parametrize("how", ["loops", "repeats", "escapes"])
def test_a_template_that_turns_hostile_at_a_row_is_stopped_there(
    how: str, tokenizer_json: str
) -> None:
    source = (
        "{% if messages[0].content == 'S3cret' %}" + HOSTILE[how] + "{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    spec = TemplateSpec(name="evil", source=source, special_tokens={}, date="2026-03-31")
    job = Job(spec=spec, tokenizer_json=tokenizer_json, options=EncodeOptions())
    rows = [
        NumberedRow(Row({"prompt": prompt, "response": "a"}, Origin("f.jsonl", line)), 0)
        for line, prompt in enumerate(["hi", "S3cret", "ho"], start=1)
    ]
    with (
        Pool(job, count=1) as pool,
        pytest.raises(UsageError, match="the template evil ") as caught,
    ):
        list(pool.encode([rows]))
    assert "f.jsonl:2" in str(caught.value)
    assert "S3cret" not in str(caught.value)
