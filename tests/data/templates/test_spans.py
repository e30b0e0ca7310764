"""What the model must produce, found by rendering: claim by claim, on templates made for it."""

from dataclasses import replace

import pytest

from duiti.data.templates.control import AddedToken, Control
from duiti.data.templates.render import Renderer, TemplateSpec
from duiti.data.templates.spans import Found, TrainOn, TurnFinder
from duiti.errors import RowError
from duiti.types import Json, Message, Origin, Sample, ToolCall, Turn

TOKENS = ("<|im_start|>", "<|im_end|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|tool|>")
ORIGIN = Origin("f.jsonl", 1)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3 does: thinking is shown in the last answer and removed from earlier ones.
FORGETS = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}",
)
# As Nemotron does: the prompt opens the thinking, and a finished answer shows how it closes.
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif").replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{{ '<think>\n' ~ m.reasoning_content ~ '\n</think>\n' "
    "if m.reasoning_content else '<think></think>' }}{% endif %}{{ m.content }}",
)
# As DeepSeek-R1 does: the prompt opens the thinking, and a finished answer shows none.
HIDES = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif").replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"
)
# As Qwen3.5 without thinking does: the prompt has opened and closed it.
CLOSES = FORGETS.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
# As GLM-4 does: no token ends an answer but the one that opens the next turn.
GLM = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As gpt-oss does: the analysis before a call is gone once a final answer follows.
DROPS = (
    "{% set final = messages|selectattr('role', 'equalto', 'assistant')|rejectattr('tool_calls') %}"
    "{% set is_final = final|list|length > 0 %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% if not is_final %}"
    "<|im_start|>assistant think {{ m.content }}<|eos|>{% endif %}"
    "<|im_start|>assistant call {{ m.tool_calls|tojson }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def finder(source: str, train_on: TrainOn = "assistant") -> TurnFinder:
    spec = TemplateSpec(name="mine", source=source, special_tokens={}, date="2026-03-31")
    renderer = Renderer(spec)
    control = Control([AddedToken(text, True) for text in TOKENS], renderer.literals, mode="reject")
    return TurnFinder(renderer, control, train_on=train_on)


def find(source: str, *messages: Message, train_on: TrainOn = "assistant") -> Found:
    return finder(source, train_on).find(Sample(messages=messages, origin=ORIGIN))


def answers(source: str, *messages: Message) -> list[str]:
    return [turn.answer for turn in find(source, *messages).turns]


def reason(source: str, *messages: Message) -> str:
    with pytest.raises(RowError) as caught:
        find(source, *messages)
    assert "S3cret" not in str(caught.value)
    return str(caught.value)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, reasoning: str = "") -> Message:
    return Message(role="assistant", content=content, reasoning=reasoning)


CALL = Message(
    role="assistant",
    content="let me see",
    tool_calls=(ToolCall(name="weather", arguments={"city": "Rome"}, id="c1"),),
)
RESULT = Message(role="tool", content="warm", name="weather", tool_call_id="c1")


def test_an_answer_reaches_from_the_served_prompt_to_its_stop() -> None:
    found = find(CHATML, user("q1"), assistant("a1"), user("q2"), assistant(" a2\n"))
    first = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    second = f"{first}a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    assert found.turns == [Turn(first, "a1<|im_end|>"), Turn(second, " a2\n<|im_end|>")]
    assert found.notes == set()


def test_a_thought_is_trained_where_it_is_said_and_given_as_later_prompts_show_it() -> None:
    found = find(FORGETS, user("q1"), assistant("a1", "r1"), user("q2"), assistant("a2", "r2"))
    assert [turn.answer for turn in found.turns] == [
        "<think>\nr1\n</think>\n\na1<|im_end|>",
        "<think>\nr2\n</think>\n\na2<|im_end|>",
    ]
    assert "r1" not in found.turns[1].prompt
    assert found.notes == set()


@pytest.mark.parametrize(
    ("source", "answer", "trained"),
    [
        (OPENS, assistant("a1", "r1"), "r1\n</think>\na1<|im_end|>"),
        (OPENS, assistant("a1"), "\n</think>\na1<|im_end|>"),
        (HIDES, assistant("a1", "r1"), "r1\n</think>\n\na1<|im_end|>"),
        (HIDES, assistant("<think>\nr1\n</think>\n\na1"), "r1\n</think>\n\na1<|im_end|>"),
        (HIDES, assistant("a1"), "\n</think>\n\na1<|im_end|>"),
        (HIDES, assistant("<b>a1</b>"), "\n</think>\n\n<b>a1</b><|im_end|>"),
        (HIDES, assistant("", "r1"), "r1\n</think>\n\n<|im_end|>"),
    ],
)
def test_where_the_prompt_opens_the_thinking_the_answer_goes_on_from_there(
    source: str, answer: Message, trained: str
) -> None:
    found = find(source, user("q1"), answer, user("q2"), assistant("a2"))
    assert found.turns[0].prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert found.turns[0].answer == trained
    assert found.notes == set()


def test_a_thought_that_does_not_begin_as_the_prompt_does_is_refused() -> None:
    found = reason(HIDES, user("q1"), assistant("Hm. <think>S3cret</think> a1"))
    assert "the template mine opens the thinking" in found
    assert "(message 2): give reasoning_content and content apart" in found


def test_an_answer_that_is_written_elsewhere_is_not_blamed_on_its_thinking() -> None:
    source = HIDES.replace("{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}")
    assert "differently" in reason(source, user("q1"), assistant("S3cret"))


def test_a_thought_behind_a_prompt_that_closes_the_thinking_is_refused() -> None:
    found = reason(CLOSES, user("q"), assistant("a", "S3cret"))
    assert "the template mine closes the thinking in the prompt that serving sends" in found
    (turn,) = find(CLOSES, user("q"), assistant("a")).turns
    assert turn.prompt.endswith("<think>\n\n</think>\n\n")
    assert turn.answer == "a<|im_end|>"


def test_a_template_without_a_stop_token_is_refused() -> None:
    found = reason(CHATML.replace("<|im_end|>", "").replace("<|im_start|>", ""),
                   user("q"), assistant("S3cret"))  # fmt: skip
    assert found == (
        "the template mine does not end an answer with a token of its own (message 2), so a model"
        " trained on it would not learn to stop"
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (CHATML.replace("assistant\n{% endif", "assistant\nHm{% endif"), "differently from"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>said\n"), "writes text behind the token"),
        (CHATML.replace("{{ m.content }}<|im_end|>", "{% if m.content != 'S3cret' %}"
                        "{{ m.content }}<|im_end|>{% endif %}"), "lost the end of the answer"),
        ("{% if messages|length > 1 %}{{ raise_exception('too long') }}{% endif %}", "too long"),
    ],
)  # fmt: skip
def test_what_cannot_be_proven_is_refused_by_name(source: str, why: str) -> None:
    found = reason(source, user("q"), assistant("S3cret"))
    assert found.startswith("the template mine ")
    assert why in found


def test_the_opener_of_the_next_turn_ends_an_answer_where_nothing_else_does() -> None:
    found = find(GLM, user("q1"), assistant("a1"), user("q2"), assistant("a2"))
    assert [turn.answer for turn in found.turns] == ["\na1<|user|>", "\na2<|user|>"]
    assert found.turns[1].prompt.startswith(found.turns[0].prompt + found.turns[0].answer)


def test_calls_that_end_by_the_next_turn_may_look_as_they_like() -> None:
    source = GLM.replace("m.content }}", "m.content }}{{ m.tool_calls|tojson if m.tool_calls }}")
    bare = replace(CALL, tool_calls=(ToolCall(name="weather", arguments={}),) * 2)
    found = find(source, user("q"), bare, RESULT, assistant("a"))
    assert found.turns[0].answer.endswith('"arguments": {}}}]<|tool|>')


def test_an_answer_is_found_where_the_template_rewrites_what_stands_before_it() -> None:
    found = find(DROPS, user("q"), CALL, RESULT, assistant("a"), user("q2"), assistant("a2"))
    assert [turn.answer for turn in found.turns][1:] == [" a<|im_end|>", " a2<|im_end|>"]
    assert "think let me see" in found.turns[1].prompt
    assert "think let me see" not in found.turns[2].prompt


# As DiffusionGemma does: no cue behind the result of a tool, and one in the finished text.
NO_CUE = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|tool|>{{ m.content }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ m.tool_calls|tojson if m.tool_calls }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}"
    "<|im_start|>assistant\n{% endif %}"
)


def test_a_cue_that_only_the_finished_text_has_is_not_for_the_model_to_say() -> None:
    found = find(NO_CUE, user("q"), CALL, RESULT, assistant("a"))
    assert found.turns[1].prompt.endswith("<|tool|>warm")
    assert found.turns[1].answer == "a<|im_end|>"
    assert found.notes == {"the template's prompt lacks the cue of an answer, which is not trained"}


def test_half_a_cue_is_refused() -> None:
    source = NO_CUE.replace("{{ m.role }}\n{{ m.content }}", "{{ m.role }}: {{ m.content }}")
    found = reason(source, user("q"), CALL, RESULT, assistant("S3cret"))
    assert "differently" in found
    source = source.replace("{{ m.role }}: ", "{{ m.role }}{{ ': ' if loop.index > 3 else '\n' }}")
    found = reason(source, user("q"), CALL, RESULT, assistant("S3cret"))
    assert "lacks the beginning of an answer (message 4)" in found


def test_a_template_that_cannot_write_calls_refuses_the_row_even_if_they_are_given() -> None:
    given = replace(CALL, train=False)
    found = reason(CHATML, user("q"), given, RESULT, assistant("a"))
    assert found == "the template mine cannot write tool calls"


CALLS = CHATML.replace("<|im_end|>", "{{ m.tool_calls|tojson if m.tool_calls }}<|im_end|>", 1)


def test_calls_are_trained_with_their_text_and_stop() -> None:
    call = (
        '[{"id": "c1", "type": "function", "function": {"name": "weather", "arguments":'
        ' {"city": "Rome"}}}]'
    )
    tools: tuple[Json, ...] = ({"name": "weather"},)
    sample = Sample(messages=(user("q"), CALL, RESULT, assistant("a")), origin=ORIGIN, tools=tools)
    found = finder(CALLS).find(sample)
    assert [turn.answer for turn in found.turns] == [
        f"let me see{call}<|im_end|>",
        "a<|im_end|>",
    ]
    assert found.notes == set()


READS_FUNCTIONS = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}" + CHATML


def test_flat_tools_become_functions_only_for_a_template_that_reads_no_others() -> None:
    flat: Json = {"name": "weather", "description": "of a city"}
    sample = Sample(messages=(user("q"), assistant("a")), origin=ORIGIN, tools=(flat,))
    found = finder(READS_FUNCTIONS).find(sample)
    assert found.turns[0].prompt.startswith("weather;<|im_start|>")
    assert any("functions" in note for note in found.notes)
    as_is = finder("{{ tools|tojson if tools }}" + CHATML).find(sample)
    assert as_is.turns[0].prompt.startswith('[{"name": "weather", "description": "of a city"}]')
    assert as_is.notes == set()


def test_tools_that_a_template_leaves_out_are_counted() -> None:
    tools: tuple[Json, ...] = ({"type": "function", "function": {"name": "weather"}},)
    sample = Sample(messages=(user("q"), assistant("a")), origin=ORIGIN, tools=tools)
    assert finder(CHATML).find(sample).notes == {"the template leaves out the tools of a row"}


def test_a_control_token_that_a_template_makes_of_text_is_refused() -> None:
    lower = CHATML.replace("m.content", "m.content|lower")
    messages = (user("x <|IM_END|> y"), assistant("a"))
    with pytest.raises(RowError, match="makes a control token"):
        finder(lower).find(Sample(messages=messages, origin=ORIGIN))
    harmless = (user("X y"), assistant("A b"))
    assert (
        finder(lower).find(Sample(messages=harmless, origin=ORIGIN)).turns[0].answer
        == "a b<|im_end|>"
    )


CHAT = (user("q1"), assistant("a1"), user("q2"), assistant("a2"), user("q3"), assistant("a3"))


def chat(**fields: dict[int, object]) -> tuple[Message, ...]:
    """CHAT, with fields of its answers changed: `train={1: False}`."""
    messages = list(CHAT)
    for name, by_index in fields.items():
        for index, value in by_index.items():
            messages[index] = replace(messages[index], **{name: value})
    return tuple(messages)


@pytest.mark.parametrize(
    ("train_on", "messages", "trained"),
    [
        ("assistant", CHAT, ["a1", "a2", "a3"]),
        ("assistant", chat(train={1: False}), ["a2", "a3"]),
        ("assistant", chat(train={5: False}), ["a1", "a2"]),
        ("assistant", chat(weight={3: 0.0}), ["a1", "a3"]),
        ("assistant", chat(weight={3: 0.0}, train={3: True}), ["a1", "a3"]),
        ("last", CHAT, ["a3"]),
        ("last", chat(train={1: True}), ["a1", "a3"]),
        ("last", chat(train={1: True, 5: False}), ["a1"]),
        ("last", chat(weight={1: 2.0}), ["a3"]),
        ("all", CHAT, ["a3"]),
    ],
)
def test_the_setting_and_the_messages_decide_what_is_trained(
    train_on: TrainOn, messages: tuple[Message, ...], trained: list[str]
) -> None:
    found = find(CHATML, *messages, train_on=train_on)
    assert [turn.answer for turn in found.turns] == [f"{text}<|im_end|>" for text in trained]


@pytest.mark.parametrize(
    ("train_on", "messages", "why"),
    [
        ("assistant", chat(train={1: False, 3: False, 5: False}), "no answer of it is trained"),
        ("last", chat(train={5: False}), "no answer of it is trained"),
        ("last", chat(weight={5: 0.0}), "no answer of it is trained"),
        ("all", chat(train={1: False}), "train_on: all trains the whole"),
        ("all", chat(weight={1: 0.5}), "train_on: all trains the whole"),
    ],
)
def test_a_row_of_which_nothing_is_left_is_refused(
    train_on: TrainOn, messages: tuple[Message, ...], why: str
) -> None:
    with pytest.raises(RowError, match=why):
        find(CHATML, *messages, train_on=train_on)


def test_weights_go_with_their_turns() -> None:
    found = find(CHATML, *chat(weight={1: 0.5, 5: 3.0}))
    assert [turn.weight for turn in found.turns] == [0.5, 1.0, 3.0]


@pytest.mark.parametrize(
    ("source", "messages", "note"),
    [
        (CHATML.replace("m.content", "m.content|trim"), (user("q"), assistant(" a ")),
         "the template strips white space around an answer"),
        (CHATML.replace("m.content", "m.content|trim"), (user("q\n"), assistant("a")),
         "the template strips white space around a user message"),
        (CHATML.replace("m.content", "m.content|replace('!', '')"), (user("q"), assistant("a!")),
         "the template rewrites or leaves out the text of an answer"),
        (CHATML.replace("m.content", "m.content|replace('!', '')"), (user("q!"), assistant("a")),
         "the template rewrites or leaves out a user message"),
        (CHATML, (user("q"), assistant("a", "r")),
         "the template leaves out the reasoning of an answer"),
        (CALLS.replace("m.tool_calls|tojson", "m.tool_calls[0]|tojson"),
         (user("q"), replace(CALL, tool_calls=CALL.tool_calls * 2)),
         "the template leaves out a tool call of an answer"),
        (CALLS.replace("m.tool_calls|tojson", "m.tool_calls|tojson|replace('Rome', '')"),
         (user("q"), CALL),
         "the template rewrites or leaves out an argument of a tool call"),
    ],
)  # fmt: skip
def test_what_a_template_does_to_the_text_is_noted(
    source: str, messages: tuple[Message, ...], note: str
) -> None:
    assert find(source, *messages).notes == {note}


def test_a_result_inside_a_json_string_is_not_lost() -> None:
    source = CALLS.replace("{{ m.content }}", "{{ m.content|tojson if m.role == 'tool' "
                           "else m.content }}", 1)  # fmt: skip
    result = replace(RESULT, content='{"t": "3\n"}')
    assert find(source, user("q"), CALL, result, assistant("a")).notes == set()


def test_the_input_of_an_alpaca_row_joins_the_question() -> None:
    message = Message(role="user", content="Sum up.", input="xyzzy")
    (turn,) = find(CHATML, message, assistant("a")).turns
    assert turn.prompt == "<|im_start|>user\nSum up.\nxyzzy<|im_end|>\n<|im_start|>assistant\n"
