"""Every shape a row can have, every reason to refuse one, and no reason that quotes a row."""

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.formats import ANSWERS, to_sample, unread_fields
from duiti.errors import RowError
from duiti.types import Json, Message, Origin, Row

ORIGIN = Origin("f.jsonl", 7)
SECRET = "Zq7xSecretXq9"


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


@given(content=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_content_is_taken_over_to_the_character(content: str) -> None:
    if not content.strip():
        assert "is empty" in _reason({"prompt": content, "response": "a"})
    else:
        found = _messages({"prompt": content, "response": content})
        assert found == [("user", content), ("assistant", content)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "has no prompt, instruction or messages (fields: none)"),
        ({"text": "x"}, 'has no prompt, instruction or messages (fields: "text")'),
        ({"promt": "x"}, 'Did you mean "prompt"?'),
        ({"question": "q", "answer": "a"}, "--map question=prompt"),
        ({"input": "q", "output": "a"}, "--map input=prompt"),
        ({"prompt": "q"}, 'has "prompt" but no answer'),
        ({"prompt": "q", "respones": "a"}, 'Did you mean "response"?'),
        ({"instruction": "q", "input": "i"}, 'has "instruction" but no answer'),
        ({"prompt": "q", "response": "a", "output": "b"}, "has response and output"),
        ({"prompt": "q", "instruction": "q", "output": "b"}, 'both "prompt" and "instruction"'),
        ({"messages": [], "prompt": "q"}, 'both "messages" and a prompt'),
        ({"messages": [], "instruction": "q"}, 'both "messages" and a prompt'),
        ({"prompt": "", "response": "a"}, '"prompt" is empty'),
        ({"prompt": " \n", "response": "a"}, '"prompt" is empty'),
        ({"prompt": "q", "response": ""}, '"response" is empty'),
        ({"prompt": None, "response": "a"}, '"prompt" must be text, not null'),
        ({"prompt": "q", "response": None}, '"response" must be text, not null'),
        ({"prompt": 1, "response": "a"}, '"prompt" must be text, not a number'),
        ({"prompt": 1.5, "response": "a"}, '"prompt" must be text, not a number'),
        ({"prompt": True, "response": "a"}, '"prompt" must be text, not true/false'),
        ({"prompt": ["q"], "response": "a"}, '"prompt" must be text, not a list'),
        ({"prompt": {"q": 1}, "response": "a"}, '"prompt" must be text, not an object'),
        ({"prompt": "q", "response": "a", "system": 3}, '"system" must be text'),
        ({"prompt": "q", "response": "a", "system": []}, '"system" must be text'),
        ({"instruction": "q", "input": {}, "output": "a"}, '"input" must be text'),
        ({"prompt": "q\ud800", "response": "a"}, "half of a surrogate pair"),
        ({"prompt": "q", "response": "\udc00a"}, "half of a surrogate pair"),
        ({"instruction": "q", "input": "\ud83d", "output": "a"}, "half of a surrogate pair"),
    ],
)
def test_a_pair_that_cannot_be_meant_is_refused(fields: dict[str, Json], reason: str) -> None:
    assert reason in _reason(fields)


Q, A, S = _turn("user", "q"), _turn("assistant", "a"), _turn("system", "s")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, '"messages" must be a list'),
        ("q", '"messages" must be a list'),
        ({}, '"messages" must be a list'),
        ([], '"messages" must be a list'),
        ([Q, 3], "message 2 is not an object"),
        ([Q, _turn("bot", "a")], "message 2: the role must be one of"),
        ([_turn("asistant", "a")], 'Did you mean "assistant"?'),
        ([{"content": "q"}, A], "message 1: the role must be one of"),
        ([_turn("user", "q", name="x"), A], 'message 1: the field "name" is not understood'),
        ([Q, _turn("assistant", "a", train="no")], '"train" must be true or false'),
        ([Q, _turn("assistant", "a", train=0)], '"train" must be true or false'),
        ([_turn("user", "q", train=True), A], '"train" belongs on an assistant message'),
        ([Q, _turn("assistant", None)], "must be text, not null"),
        ([Q, _turn("assistant", "")], "is empty"),
        ([Q, {"role": "assistant"}], "must be text, not null"),
        ([_turn("user", "\ud800"), A], "half of a surrogate pair"),
        ([A], "message 1 is from assistant where user is due"),
        ([Q, Q, A], "message 2 is from user where assistant is due"),
        ([Q, A, A], "message 3 is from assistant where user is due"),
        ([S, S, Q, A], "message 2 is from system where user is due"),
        ([S, Q, S, A], "message 3 is from system where assistant is due"),
        ([S, A], "message 2 is from assistant where user is due"),
        ([S], "ends without an answer"),
        ([Q], "ends without an answer"),
        ([S, Q, A, Q], "ends without an answer"),
        ([Q, _turn("assistant", "a", train=False)], 'every answer says "train": false'),
    ],
)
def test_messages_that_cannot_be_meant_are_refused(messages: Json, reason: str) -> None:
    assert reason in _reason({"messages": messages})


def test_a_null_field_of_a_message_counts_as_missing() -> None:
    turns: list[Json] = [_turn("user", "q", name=None), _turn("assistant", "a", tool_calls=None)]
    assert len(_messages({"messages": turns})) == 2


def test_map_renames_before_anything_is_looked_at() -> None:
    mapping = {"question": "prompt", "gold": "response"}
    row: dict[str, Json] = {"question": "q", "gold": "a", "id": 3}
    assert _messages(row, mapping) == [("user", "q"), ("assistant", "a")]
    swapped = {"prompt": "response", "response": "prompt"}
    found = _messages({"prompt": "a", "response": "q"}, swapped)
    assert found == [("user", "q"), ("assistant", "a")]
    assert _messages({"chat": [Q, A]}, {"chat": "messages"}) == [("user", "q"), ("assistant", "a")]


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
        ({"messages": [Q, A], "system": "lost"}, {}),
        ({"messages": [Q, A], "response": "lost"}, {}),
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
    {SECRET: SECRET},
    [{"role": SECRET, "content": SECRET}],
    [{"role": "user", "content": SECRET}],
    [{"role": "user", "content": [SECRET]}, {"role": "assistant", "content": SECRET}],
    [{"role": "user", "content": SECRET, "train": SECRET}],
    [{"role": "assistant", "content": SECRET}, SECRET],
]
NAMES = ("prompt", "instruction", "input", "system", "messages", "question", "text", *ANSWERS)


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


def test_whatever_combination_of_shapes_is_given_it_is_read_or_refused() -> None:
    values: dict[str, Json] = {"messages": [Q, A], "prompt": "q", "instruction": "q", "output": "a"}
    for size in range(5):
        for names in itertools.combinations(values, size):
            fields = {name: values[name] for name in names}
            questions = {"messages", "prompt", "instruction"} & set(names)
            is_whole = len(questions) == 1 and ("messages" in names or "output" in names)
            if is_whole:
                assert _messages(fields) == [("user", "q"), ("assistant", "a")]
            else:
                assert _reason(fields)
