"""The token that ends an answer, and the shape of tool calls, asked of a template."""

from collections.abc import Sequence

import pytest

from duiti.data.templates.calls import CallShape
from duiti.data.templates.control import AddedToken, Control
from duiti.data.templates.render import Renderer, TemplateSpec
from duiti.data.templates.stops import Frame, Stop, Stops
from duiti.errors import RowError
from duiti.types import Message, ToolCall

TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>", "<|eos|>", "<|call|>")
ANSWER = Message(role="assistant", content="anything")
CALL = Message(
    role="assistant", content="", tool_calls=(ToolCall(name="f", arguments={"city": "x"}),)
)
CUE = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def turns(answer: str, after: str = "") -> str:
    """A template that writes an assistant's message as given, all others with their role."""
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>" + answer + "{% else %}"
        "{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% endif %}{% endfor %}" + after + CUE
    )


def ask(
    source: str,
    message: Message = ANSWER,
    frame: Frame = Frame(),  # noqa: B008  (frozen)
    *,
    tokens: Sequence[str] = TOKENS,
    stop: str | None = None,
) -> Stop | None:
    spec = TemplateSpec(name="mine", source=source, special_tokens={}, date="2026-03-31", stop=stop)
    renderer = Renderer(spec)
    control = Control([AddedToken(text, True) for text in tokens], source, mode="reject")
    return Stops(renderer, control).of(message, frame)


@pytest.mark.parametrize(
    ("source", "stop"),
    [
        (turns("{{ m.content }}<|end|>"), "<|end|>"),
        (turns("{{ m.content|trim }} <|end|>\n"), "<|end|>"),
        # Phi-3: another token behind the very last answer.
        (turns("{{ m.content }}<|end|>\n", "{% if not add_generation_prompt %}<|eos|>{% endif %}"),
         "<|end|>"),
        # Cohere 2: two tokens behind every answer; the second is where generation stops.
        (turns("{{ m.content }}<|end|><|eos|>"), "<|eos|>"),
        # gpt-oss: one token behind the last answer, another in history.
        (turns("{{ m.content }}{{ '<|eos|>' if loop.last and not add_generation_prompt "
               "else '<|end|>' }}"), "<|eos|>"),
        # Zephyr: written from the tokenizer's own token.
        (turns("{{ m.content }}{{ '<|e' ~ 'nd|>' }}"), "<|end|>"),
    ],
)  # fmt: skip
def test_the_stop_is_what_the_template_writes_behind_an_answer(source: str, stop: str) -> None:
    assert ask(source) == Stop(stop)


def test_where_none_is_written_the_next_turn_opens_with_it() -> None:
    glm = turns("\n{{ m.content }}")
    assert ask(glm) == Stop("<|user|>", is_next=True)
    spaced = turns("{{ m.content }}", "{{ '\n' if not add_generation_prompt }}")
    assert ask(spaced) == Stop("<|user|>", is_next=True, tail="\n")
    calls = turns("{{ m.content }}{{ m.tool_calls|tojson if m.tool_calls }}")
    assert ask(calls, CALL) == Stop("<|tool|>", is_next=True)


@pytest.mark.parametrize(
    "source",
    [
        turns("{{ m.content }}"),  # nothing separates turns: no `<|user|>` in the tokens below
        turns("{{ m.content }}\n", "\nnext:"),
        # The cue is always written: a token that opens an answer does not end one.
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<|assistant|>",
    ],
)
def test_text_and_cues_are_no_stop(source: str) -> None:
    assert ask(source, tokens=["<|assistant|>"]) is None


def test_a_template_without_control_tokens_has_no_stop() -> None:
    assert ask(turns("{{ m.content }}<|end|>"), tokens=[]) is None


def test_a_declared_stop_is_taken_as_it_is() -> None:
    assert ask("{{ messages }}", stop="<|eos|>") == Stop("<|eos|>")


def test_calls_may_end_otherwise_than_answers() -> None:
    source = turns(
        "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls|tojson }}<|call|>"
        "{% else %}<|end|>{% endif %}"
    )
    assert ask(source, ANSWER) == Stop("<|end|>")
    assert ask(source, CALL) == Stop("<|call|>")


def test_tools_and_a_system_message_may_change_the_end() -> None:
    source = turns("{{ m.content }}{{ '<|eos|>' if tools else '<|end|>' }}")
    assert ask(source, frame=Frame()) == Stop("<|end|>")
    assert ask(source, frame=Frame(has_tools=True)) == Stop("<|eos|>")
    source = turns("{{ m.content }}{{ '<|eos|>' if messages[0].role == 'system' else '<|end|>' }}")
    assert ask(source, frame=Frame(has_system=True)) == Stop("<|eos|>")


def test_a_template_that_cannot_go_on_is_asked_for_the_finished_answer_alone() -> None:
    source = turns(
        "{{ m.content }}{% if not loop.last %}{{ raise_exception('one turn only') }}{% endif %}"
        "<|end|>"
    )
    assert ask(source) == Stop("<|end|>")


def test_a_template_that_shows_no_answer_is_named() -> None:
    with pytest.raises(RowError, match="the template mine does not show the text of an answer"):
        ask(turns("<|end|>"))
    with pytest.raises(RowError, match="the template mine refuses the conversation: no chats"):
        ask("{{ raise_exception('no chats') }}")


def shape_of(source: str) -> CallShape | None:
    return Renderer(
        TemplateSpec(name="mine", source=source, special_tokens={}, date="2026-03-31")
    ).call_shape


NAMED = "{{ c.function.name }}"


def calls(written: str, *, only: str = "true") -> str:
    """A template that writes each call of a message as given, if a condition holds."""
    return turns(
        "{{ m.content }}{% if m.tool_calls and " + only + " %}{% for c in m.tool_calls %}"
        + NAMED + written + "{% endfor %}{% endif %}<|end|>"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        # Qwen: either would do, so an object, as transformers' documentation has it.
        (calls("{{ c.function.arguments|tojson }}"), CallShape()),
        (calls("{% for k, v in c.function.arguments|items %}{{ k }}={{ v }}{% endfor %}"),
         CallShape()),
        # DeepSeek-V3 adds it to a string.
        (calls("{{ '```json\n' + c.function.arguments + '\n```' }}"),
         CallShape(arguments_as_text=True)),
        # Printed as Python would: not JSON, so the text is handed over.
        (calls("{{ c.function.arguments }}"), CallShape(arguments_as_text=True)),
        # Calls are written where there is no content.
        (turns("{% if m.content is defined %}{{ m.content }}{% else %}{{ m.tool_calls|tojson }}"
               "{% endif %}<|end|>"), CallShape(has_content=False)),
        # Only with tools, only with a system message.
        (calls("{{ c.function.arguments|tojson }}", only="tools"), CallShape()),
        (calls("{{ c.function.arguments|tojson }}", only="messages[0].role == 'system'"),
         CallShape()),
        (calls("{{ c.function.arguments|tojson }}", only="false"), None),
        (calls(""), None),
        (turns("{{ m.content }}<|end|>"), None),
        ("{{ tools|tojson }}{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{{ raise_exception('no chats') }}", None),
    ],
)  # fmt: skip
def test_calls_are_handed_over_in_the_first_shape_that_shows(
    source: str, shape: CallShape | None
) -> None:
    assert shape_of(source) == shape


def test_the_shape_does_not_depend_on_what_was_rendered_before() -> None:
    source = calls("{{ '' + c.function.arguments }}")
    spec = TemplateSpec(name="mine", source=source, special_tokens={}, date="2026-03-31")
    ask_first = Message(role="user", content="q")
    fresh, used = Renderer(spec), Renderer(spec)
    used.transcript([ask_first, ANSWER])
    expected = '<|user|>q<|assistant|>f{"city": "x"}<|end|>'
    assert fresh.transcript([ask_first, CALL]) == expected
    assert used.transcript([ask_first, CALL]) == expected
