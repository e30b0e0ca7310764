"""Parts say what a text would say; what has no place or no order is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.parts import Content, read_content
from duiti.errors import RowError
from duiti.types import Json, Role, ToolCall

CALL: dict[str, Json] = {"name": "f", "arguments": {"a": None}}
READ = ToolCall(name="f", arguments={"a": None})
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


def _part(kind: str, **fields: Json) -> dict[str, Json]:
    return {"type": kind, **fields}


@pytest.mark.parametrize("role", ROLES)
def test_a_text_is_itself_and_null_says_nothing(role: Role) -> None:
    assert read_content(" a\n", role) == Content(text=" a\n")
    assert read_content("", role) == read_content(None, role) == Content()


@given(pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_parts_are_joined_with_nothing_in_between(pieces: list[str]) -> None:
    parts: list[Json] = [_part("text", text=piece) for piece in pieces]
    assert read_content(parts, "user") == Content(text="".join(pieces))
    thoughts: list[Json] = [_part("reasoning", value=piece) for piece in pieces]
    found = read_content([*thoughts, *parts], "assistant")
    assert found == Content(text="".join(pieces), reasoning="".join(pieces))


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (_part("text", text="t"), Content(text="t")),
        (_part("text", value="t"), Content(text="t")),
        (_part("text", value="t", text=None, image=None, annotations=[]), Content(text="t")),
        (_part("reasoning", value="r"), Content(reasoning="r")),
        (_part("reasoning", reasoning="r"), Content(reasoning="r")),
        (_part("thinking", thinking="r", signature=""), Content(reasoning="r")),
        (_part("thinking", text="r"), Content(reasoning="r")),
        (_part("tool_call", value=CALL), Content(calls=(READ,))),
        (_part("tool_call", value=json.dumps(CALL)), Content(calls=(READ,))),
        (_part("tool_call", tool_call=CALL), Content(calls=(READ,))),
        (_part("tool_call", **CALL), Content(calls=(READ,))),
        (_part("tool_call", id=None, function=CALL), Content(calls=(READ,))),
    ],
)
def test_a_part_of_the_assistant_is_read_however_it_is_written(
    part: dict[str, Json], content: Content
) -> None:
    assert read_content([part], "assistant") == content


def test_reasoning_text_and_calls_are_kept_apart() -> None:
    parts: list[Json] = [
        _part("reasoning", value="r"),
        _part("text", value="t"),
        _part("tool_call", value=CALL),
        _part("tool_call", value={**CALL, "id": "x"}),
        _part("text", value=""),
    ]
    calls = (READ, ToolCall(name="f", arguments={"a": None}, id="x"))
    assert read_content(parts, "assistant") == Content(reasoning="r", text="t", calls=calls)


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ("  20 °C\n", "  20 °C\n"),
        ({"t": 20, "unit": "°C", "wind": None}, '{"t": 20, "unit": "°C", "wind": null}'),
        ([{"title": "Köln"}, {"title": "x"}], '[{"title": "Köln"}, {"title": "x"}]'),
        ([1, "type"], '[1, "type"]'),
        ([], "[]"),
        ({}, "{}"),
        ([{"type": None}], '[{"type": null}]'),
    ],
)
def test_a_result_is_a_text_or_the_json_of_an_object_or_list(result: Json, content: str) -> None:
    assert read_content(result, "tool") == Content(text=content)
    assert read_content([_part("tool_result", value=result)], "tool") == Content(text=content)


def test_a_result_may_name_its_call() -> None:
    part = _part("tool_result", content="20", name="f", tool_call_id="x")
    assert read_content([part], "tool") == Content(text="20", name="f", tool_call_id="x")
    texts: list[Json] = [_part("text", text="2"), _part("text", text="0")]
    assert read_content(texts, "tool") == Content(text="20")


@pytest.mark.parametrize(
    ("value", "role", "reason"),
    [
        (3, "user", '"content" must be text or a list of parts, not a number'),
        ({"a": 1}, "user", '"content" must be text or a list of parts, not an object'),
        (True, "assistant", '"content" must be text or a list of parts, not true/false'),
        (3, "tool", '"content" must be text, not a number'),
        (["a"], "user", "part 1: must be an object, not text"),
        ([{"text": "a"}], "user", 'part 1: has no "type"'),
        ([_part("txt", text="a")], "user", 'Did you mean "text"?'),
        ([_part("restaurant", name="a")], "tool", 'the "type" must be one of text'),
        ([_part("text", text="a"), _part("image_url", image_url={})], "user", "part 2: is of the "),
        ([_part("image")], "user", "is of the kind image, and only text is trained on"),
        ([_part("input_audio", input_audio={"data": ""})], "user", "is of the kind audio"),
        ([_part("video", video="x")], "user", "is of the kind video"),
        ([_part("file", file="x")], "user", "is of the kind file"),
        ([_part("text")], "user", '"text" must be text, not null'),
        ([_part("text", text=3)], "user", '"text" must be text, not a number'),
        ([_part("text", text="a", value="b")], "user", 'has both "text" and "value"'),
        ([_part("text", text="a", contnt="b")], "user", '"contnt" is not understood'),
        ([_part("text", text="a\0")], "user", "U+0000"),
        ([_part("reasoning", value="\ud800")], "assistant", "half of a surrogate pair"),
        (
            [_part("reasoning", value="r")],
            "user",
            "a reasoning belongs on a message from assistant",
        ),
        (
            [_part("tool_call", value=CALL)],
            "user",
            "a tool_call belongs on a message from assistant",
        ),
        ([_part("tool_result", value="a")], "user", "a tool_result belongs on a message from tool"),
        ([_part("tool_call")], "assistant", "part 1: call 1: "),
        ([_part("tool_call", value=CALL, name="g")], "assistant", '"name" is not understood'),
        ([_part("text", text="a"), _part("reasoning", text="r")], "assistant", "in this order"),
        ([_part("tool_call", value=CALL), _part("text", text="a")], "assistant", "part 2: "),
        ([_part("tool_result", text="a"), _part("text", text="b")], "tool", "its only part"),
        ({"a": float("nan")}, "tool", '"content"'),
        ([{"a": "\0"}], "tool", "U+0000"),
    ],
)
def test_content_that_cannot_be_meant_is_refused(value: Json, role: Role, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_content(value, role)
    assert reason in str(caught.value)
