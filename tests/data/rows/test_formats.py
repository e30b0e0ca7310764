"""Every shape a row can have, every reason to refuse one, and no reason that quotes a row."""

import itertools
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.formats import ANSWERS, to_sample, unread_fields
from duiti.errors import RowError
from duiti.types import Json, Message, Origin, Row

ORIGIN = Origin("f.jsonl", 7)
SECRET = "Zq7xSecretXq9"
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def _row(fields: Mapping[str, Json]) -> Row:
    return Row(fields, ORIGIN)


def _messages(
    fields: Mapping[str, Json], mapping: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    sample = to_sample(_row(fields), mapping)
    assert sample.origin == ORIGIN
    return [(message.role, message.content) for message in sample.messages]


def _reason(fields: Mapping[str, Json], mapping: Mapping[str, str] | None = None) -> str:
    with pytest.raises(RowError) as caught:
        to_sample(_row(fields), mapping)
    return str(caught.value)


def _turn(role: str, content: Json, **more: Json) -> dict[str, Json]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("question", ["prompt", "instruction"])
def test_every_name_of_the_answer_is_read(question: str, answer: str) -> None:
    assert _messages({question: "q", answer: "a"}) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("question", ["prompt", "instruction"])
def test_a_system_field_comes_first(question: str) -> None:
    found = _messages({"response": "a", question: "q", "system": "s"})
    assert found == [("system", "s"), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_or_null_system_or_input_counts_as_missing(nothing: Json) -> None:
    row: dict[str, Json] = {
        "instruction": "q",
        "output": "a",
        "system": nothing,
        "input": nothing,
    }
    assert to_sample(_row(row)).messages == (
        Message(role="user", content="q"),
        Message(role="assistant", content="a"),
    )


def test_the_input_of_an_alpaca_row_is_kept_apart() -> None:
    sample = to_sample(_row({"instruction": "q", "input": "i", "output": "a"}))
    assert sample.messages[0] == Message(role="user", content="q", input="i")


def test_messages_are_read_in_order_with_their_train_flags() -> None:
    turns: list[Json] = [
        _turn("system", "s"),
        _turn("user", "q1"),
        _turn("assistant", "a1", train=False),
        _turn("user", "q2", train=None),
        _turn("assistant", "a2", train=True),
        _turn("user", "q3"),
        _turn("assistant", "a3"),
    ]
    sample = to_sample(_row({"messages": turns}))
    assert [m.content for m in sample.messages] == ["s", "q1", "a1", "q2", "a2", "q3", "a3"]
    assert [m.train for m in sample.messages] == [None, None, False, None, True, None, None]


@given(content=st.text(CHARACTERS, min_size=1))
def test_content_is_taken_over_to_the_character(content: str) -> None:
    if not content.strip():
        assert "is empty" in _reason({"prompt": content, "response": "a"})
    else:
        found = _messages({"prompt": content, "response": content})
        assert found == [("user", content), ("assistant", content)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "has no prompt, instruction, messages or conversations (fields: none)"),
        ({"text": "x"}, 'has no prompt, instruction, messages or conversations (fields: "text")'),
        ({"promt": "x"}, 'Did you mean "prompt"?'),
        ({"question": "q", "answer": "a"}, "--map question=prompt"),
        ({"input": "q", "output": "a"}, "--map input=prompt"),
        ({"prompt": "q"}, 'has "prompt" but no answer'),
        ({"prompt": "q", "respones": "a"}, 'Did you mean "response"?'),
        ({"instruction": "q", "input": "i"}, 'has "instruction" but no answer'),
        ({"prompt": "q", "response": "a", "output": "b"}, "has response and output"),
        ({"prompt": "q", "instruction": "q", "output": "b"}, 'both "prompt" and "instruction"'),
        ({"conversation": []}, 'Did you mean "conversations"?'),
        ({"dialog": [{"from": "human"}]}, "--map dialog=messages"),
        ({"question": None, "dialog": [{"role": "user"}]}, "--map question=prompt"),
        ({"prompt": "q", "messages": [1], "answer": "a"}, 'both "messages" and "prompt"'),
        ({"instruction": "q", "conversations": [1], "answer": "a"}, 'both "conversations" and'),
        ({"messages": [1], "conversations": [1]}, 'both "messages" and "conversations"'),
        ({"messages": None, "x": "a"}, '"messages" must be a list of messages, not null'),
        ({"prompt": "", "response": "a"}, '"prompt" is empty'),
        ({"prompt": " \n", "response": "a"}, '"prompt" is empty'),
        ({"prompt": "q", "response": ""}, '"response" is empty'),
        ({"prompt": None, "response": "a"}, '"prompt" must be text, not null'),
        ({"prompt": "q", "response": None}, '"response" must be text, not null'),
        ({"prompt": 1, "response": "a"}, '"prompt" must be text, not a number'),
        ({"prompt": 1.5, "response": "a"}, '"prompt" must be text, not a number'),
        ({"prompt": True, "response": "a"}, '"prompt" must be text, not true/false'),
        ({"prompt": ["q"], "response": "a"}, "message 1: must be an object, not text"),
        ({"instruction": ["q"], "response": "a"}, '"instruction" must be text, not a list'),
        ({"prompt": {"q": 1}, "response": "a"}, '"prompt" must be text, not an object'),
        ({"prompt": "q", "response": "a", "system": 3}, '"system" must be text'),
        ({"prompt": "q", "response": "a", "system": ["s"]}, '"system" must be text'),
        ({"prompt": "q", "response": "a", "system": " "}, '"system" is empty'),
        ({"instruction": "q", "input": {"a": 1}, "output": "a"}, '"input" must be text'),
        ({"instruction": "q", "input": " ", "output": "a"}, '"input" is empty'),
        ({"prompt": "q\0", "response": "a"}, "U+0000"),
        ({"prompt": "q", "response": "a", "tools": "f"}, '"tools" is not valid JSON'),
        ({"prompt": "q", "response": "a", "history": "x"}, '"history" must be a list of pairs'),
        ({"prompt": "q", "response": "a", "history": [["q"]]}, "history 1 must be a pair"),
        (
            {"prompt": "q", "response": "a", "history": [["q", "a"], "qa"]},
            "history 2 must be a pair",
        ),
        ({"prompt": "q", "response": "a", "history": [["q", None]]}, '"history 1" must be text'),
        ({"prompt": "q\ud800", "response": "a"}, "half of a surrogate pair"),
        ({"prompt": "q", "response": "\udc00a"}, "half of a surrogate pair"),
        ({"instruction": "q", "input": "\ud83d", "output": "a"}, "half of a surrogate pair"),
    ],
)
def test_a_pair_that_cannot_be_meant_is_refused(fields: dict[str, Json], reason: str) -> None:
    assert reason in _reason(fields)


Q, A, S = _turn("user", "q"), _turn("assistant", "a"), _turn("system", "s")


@pytest.mark.parametrize("container", ["messages", "conversations"])
@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("q", " must be a list of messages, not text"),
        ([], " must be a list of messages, not an empty one"),
        ([Q, 3], "message 2: must be an object"),
        ([_turn("asistant", "a")], 'Did you mean "assistant"?'),
        ([Q, Q, A], "message 2 is from user where assistant is due"),
        ([Q], "ends without an answer"),
        ([Q, _turn("assistant", "a", train=False)], 'every answer says "train": false'),
    ],
)
def test_messages_that_cannot_be_meant_are_refused(
    container: str, turns: Json, reason: str
) -> None:
    assert reason in _reason({container: turns})


def test_a_system_field_stands_before_messages_that_have_none() -> None:
    for container in ("messages", "conversations"):
        found = _messages({container: [Q, A], "system": "s"})
        assert found == _messages({container: [S, Q, A]})
        assert 'has "system" and a system message' in _reason({container: [S, Q, A], "system": "s"})
        # Numbers in reasons are those of the row.
        assert "message 2 is from user" in _reason({container: [Q, Q, A], "system": "s"})


def test_history_comes_before_the_question() -> None:
    history: list[Json] = [["q1", "a1"], ["q2", "a2"]]
    told = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    for question in ("prompt", "instruction"):
        row: dict[str, Json] = {question: "q", "output": "a", "system": "s", "history": history}
        assert _messages(row) == [("system", "s"), *told, ("user", "q"), ("assistant", "a")]
        assert unread_fields(_row(row)) == set()
    last = to_sample(_row({"instruction": "q", "input": "i", "output": "a", "history": history}))
    assert last.messages[-2] == Message(role="user", content="q", input="i")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [Q], "completion": [A]},
        {"prompt": [Q], "completion": "a"},
        {"prompt": "q", "completion": [A]},
        {"prompt": "q", "response": [{"from": "gpt", "value": "a"}], "history": []},
    ],
)
def test_prompt_and_completion_may_be_messages(fields: dict[str, Json]) -> None:
    assert _messages(fields) == [("user", "q"), ("assistant", "a")]
    assert _messages({**fields, "system": "s"})[0] == ("system", "s")


def test_only_the_completion_is_trained_of_a_prompt_of_messages() -> None:
    prompt: list[Json] = [S, Q, A, Q, _turn("assistant", "b", train=True), Q]
    sample = to_sample(_row({"prompt": prompt, "completion": [A, Q, A]}))
    said = [message.train for message in sample.messages if message.role == "assistant"]
    assert said == [False, True, None, None]


def test_reasons_number_messages_through_prompt_and_completion() -> None:
    assert "message 3: " in _reason({"prompt": [S, Q], "completion": [3]})
    assert "message 3 is from user" in _reason({"prompt": [S, Q], "completion": [Q, A]})
    assert "message 2 is from assistant" in _reason({"prompt": [S], "completion": [A]})
    assert '"prompt" must be a list of messages' in _reason({"prompt": [], "completion": [A]})
    row: dict[str, Json] = {"prompt": [Q], "completion": [A], "history": [["q", "a"]]}
    assert 'has "history" beside a list of messages' in _reason(row)


def test_tools_stay_with_every_shape() -> None:
    tools: list[Json] = [{"name": "f", "parameters": {"default": None, "required": []}}]
    for fields in SHAPES:
        for written in (tools, json.dumps(tools)):
            sample = to_sample(_row({**fields, "tools": written}))
            assert json.dumps(list(sample.tools)) == json.dumps(tools)
        assert to_sample(_row({**fields, "tools": None})).tools == ()


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_empty_cells_of_a_table_decide_nothing(nothing: Json) -> None:
    names = {"system", "tools", "history", *ANSWERS, *(name for row in SHAPES for name in row)}
    for fields in SHAPES:
        padded = {**dict.fromkeys(names, nothing), **fields}
        assert to_sample(_row(padded)) == to_sample(_row(fields))
        assert unread_fields(_row(padded)) == set()


def test_a_prompt_beside_messages_is_named_and_not_read() -> None:
    row: dict[str, Json] = {"prompt": "q", "prompt_id": "x", "messages": [Q, A]}
    assert _messages(row) == [("user", "q"), ("assistant", "a")]
    assert unread_fields(_row(row)) == {"prompt", "prompt_id"}


def test_map_renames_before_anything_is_looked_at() -> None:
    mapping = {"question": "prompt", "gold": "response"}
    row: dict[str, Json] = {"question": "q", "gold": "a", "id": 3}
    assert _messages(row, mapping) == [("user", "q"), ("assistant", "a")]
    swapped = {"prompt": "response", "response": "prompt"}
    found = _messages({"prompt": "a", "response": "q"}, swapped)
    assert found == [("user", "q"), ("assistant", "a")]
    for shape in ("messages", "conversations"):
        row = {"chat": [Q, A], "sys": "s", "functions": "[]"}
        mapping = {"chat": shape, "sys": "system", "functions": "tools"}
        assert _messages(row, mapping) == _messages({"messages": [S, Q, A]})
        assert unread_fields(_row(row), mapping) == set()


def test_map_takes_a_field_out_of_the_way() -> None:
    row: dict[str, Json] = {"messages": [Q, A], "conversations": [Q, A, Q, A]}
    mapping = {"conversations": "other"}
    assert len(_messages(row, mapping)) == 2
    assert unread_fields(_row(row), mapping) == {"conversations"}


def test_a_null_is_no_field_for_map() -> None:
    pair: dict[str, Json] = {"question": "q", "prompt": None, "answer": "a"}
    assert _messages(pair, {"question": "prompt"}) == [("user", "q"), ("assistant", "a")]
    other: dict[str, Json] = {"question": None, "prompt": "q", "answer": "a"}
    assert _messages(other, {"question": "prompt"}) == [("user", "q"), ("assistant", "a")]
    null = _reason({"question": None, "answer": "a"}, {"question": "prompt"})
    assert '"prompt" must be text, not null' in null


def test_a_map_that_does_not_fit_the_row_is_refused() -> None:
    mapping = {"question": "prompt"}
    assert '"question", named by map, is missing' in _reason({"answer": "a"}, mapping)
    reason = _reason({"question": "q", "prompt": "p", "answer": "a"}, mapping)
    assert 'map renames "question" to "prompt", which the row has already' in reason
    assert "which the row has already" in _reason(
        {"a": "q", "b": "p", "answer": "x"}, {"a": "prompt", "b": "prompt"}
    )


def test_fields_that_no_shape_reads_are_named() -> None:
    pair: dict[str, Json] = {"prompt": "q", "response": "a", "system": "s", "id": 3, "score": 1}
    assert unread_fields(_row(pair)) == {"id", "score"}
    assert unread_fields(_row({"prompt": "q", "input": "i", "response": "a"})) == {"input"}
    assert unread_fields(_row({"instruction": "q", "input": "i", "output": "a"})) == set()
    assert unread_fields(_row({"ask": "q", "response": "a"}), {"ask": "prompt"}) == set()


@pytest.mark.parametrize(
    ("fields", "mapping"),
    [
        ({"messages": [Q, A], "response": "lost"}, {}),
        ({"messages": [Q, A], "prompt": "lost"}, {}),
        ({"conversations": [Q, A], "instruction": "lost"}, {}),
        ({"prompt": [Q], "completion": [A], "input": "lost"}, {}),
        ({"messages": [Q, A], "history": "lost"}, {}),
        ({"messages": [Q, A], "input": "lost"}, {}),
        ({"prompt": "q", "response": "a", "input": "lost"}, {}),
        ({"instruction": "q", "response": "a", "input": "lost"}, {"instruction": "prompt"}),
    ],
)
def test_a_text_that_no_example_will_hold_is_refused_or_named(
    fields: dict[str, Json], mapping: dict[str, str]
) -> None:
    try:
        to_sample(_row(fields), mapping)
    except RowError:
        return
    lost = {name for name, value in fields.items() if value == "lost"}
    assert unread_fields(_row(fields), mapping) == lost


def test_an_input_that_is_read_after_map_is_not_called_unread() -> None:
    fields: dict[str, Json] = {"ask": "q", "input": "i", "output": "a"}
    mapping = {"ask": "instruction"}
    assert to_sample(_row(fields), mapping).messages[0].input == "i"
    assert unread_fields(_row(fields), mapping) == set()


@pytest.mark.parametrize("key", ["\x1b[2J", "a\nb", "\x9b31m", "\u202eabc", "\ud800"])
def test_field_names_in_reasons_cannot_drive_a_terminal(key: str) -> None:
    odd: dict[str, Json] = {key: 1}
    turns: list[Json] = [_turn("user", "q", **odd), A]
    for reason in (_reason(odd), _reason({"messages": turns})):
        assert reason.isprintable(), ascii(reason)


BROKEN: list[Json] = [
    SECRET,
    None,
    3,
    "",
    SECRET + "\ud800",
    [SECRET],
    [[SECRET, SECRET]],
    [[SECRET, 3]],
    {SECRET: SECRET},
    f'[{{"a": "{SECRET}", "a": 1}}]',
    [{"role": SECRET, "content": SECRET}],
    [{"role": "user", "content": SECRET}],
    [{"role": "user", "content": [SECRET]}, {"role": "assistant", "content": SECRET}],
    [{"role": "user", "content": [{"type": SECRET, "text": SECRET}]}],
    [{"role": "user", "content": SECRET, "train": SECRET}],
    [{"role": "assistant", "content": SECRET}, SECRET],
    [{"from": "human", "value": SECRET}, {"from": "function_call", "value": SECRET}],
    [Q, {"role": "assistant", "tool_calls": [{"name": SECRET, "arguments": SECRET}]}],
    [Q, A, {"role": "tool", "content": SECRET, "tool_call_id": SECRET}],
]
NAMES = (
    *("prompt", "instruction", "input", "system", "messages", "question", "text", *ANSWERS),
    *("conversations", "tools", "history"),
)


@given(
    fields=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(BROKEN), max_size=5),
    mapping=st.sampled_from([{}, {"question": "prompt"}, {"text": "messages"}]),
)
def test_no_reason_quotes_content(fields: dict[str, Json], mapping: dict[str, str]) -> None:
    try:
        to_sample(_row(fields), mapping)
    except RowError as error:
        reason = str(error)
    else:
        reason = ""
    assert SECRET not in reason
    assert unread_fields(_row(fields), mapping) <= set(fields)


SHAPES: list[dict[str, Json]] = [
    {"prompt": "q", "response": "a"},
    {"instruction": "q", "output": "a"},
    {"messages": [Q, A]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
]


def test_whatever_combination_of_shapes_is_given_it_is_read_or_refused() -> None:
    values: dict[str, Json] = {
        "messages": [Q, A],
        "conversations": [Q, A],
        "prompt": "q",
        "instruction": "q",
        "output": "a",
    }
    for size in range(6):
        for names in itertools.combinations(values, size):
            fields = {name: values[name] for name in names}
            chats = {"messages", "conversations"} & set(names)
            asked = {"prompt", "instruction"} & set(names)
            is_pair = len(asked) == 1 and "output" in names and not chats
            if is_pair or (len(chats) == 1 and not (asked and "output" in names)):
                assert _messages(fields) == [("user", "q"), ("assistant", "a")]
            else:
                assert _reason(fields)
