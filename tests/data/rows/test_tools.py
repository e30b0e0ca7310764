"""Tools are kept as the row describes them; a call is read however it is written."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.tools import read_calls, read_tools
from duiti.errors import RowError
from duiti.types import Json, ToolCall

WEATHER: dict[str, Json] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": None,
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": None, "default": ""}, "day": {}},
            "required": [],
        },
    },
}
ARGUMENTS: dict[str, Json] = {"city": "Köln", "day": None, "around": [1, 2.5, {}], "z": "", "a": []}
CALL: dict[str, Json] = {"name": "weather", "arguments": ARGUMENTS}


def test_nothing_in_a_tool_is_dropped_or_added() -> None:
    before = json.dumps([WEATHER])
    assert json.dumps(read_tools([WEATHER])) == before
    assert json.dumps(read_tools(before)) == before


@pytest.mark.parametrize("value", [None, "", [], "[]", "null"])
def test_a_row_may_have_no_tools(value: Json) -> None:
    assert read_tools(value) == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (WEATHER, '"tools" must be a list, or one as a string of JSON, not an object'),
        ("{}", '"tools" must be a list, or one as a string of JSON, not an object'),
        (3, '"tools" must be a list, or one as a string of JSON, not a number'),
        ("weather", '"tools" is not valid JSON'),
        ('[{"a": 1, "a": 2}]', "a key is given twice"),
        ('[{"a": NaN}]', "NaN is not JSON"),
        ([WEATHER, "weather"], "tool 2 must be an object, not text"),
        ("[[]]", "tool 1 must be an object, not a list"),
        ([{"a": "\0"}], "U+0000"),
        ([{"a": ["\ud800"]}], "half of a surrogate pair"),
        ([{"a": float("inf")}], '"tools"'),
    ],
)
def test_tools_that_mean_nothing_are_refused(value: Json, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_tools(value)
    assert reason in str(caught.value)


OTHER_WAYS: list[Json] = [
    CALL,
    [CALL],
    json.dumps(CALL),
    json.dumps([CALL]),
    {**CALL, "id": None, "type": None},
    {**CALL, "id": "", "type": "function", "index": None},
    {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
    {"function": CALL},
    {"type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}},
]


@pytest.mark.parametrize("value", OTHER_WAYS)
def test_a_call_is_the_same_however_it_is_written(value: Json) -> None:
    before = copy.deepcopy(value)
    (call,) = read_calls(value, "tool_calls")
    assert call == ToolCall(name="weather", arguments=ARGUMENTS)
    # In order, and with what is empty or null in it.
    assert json.dumps(call.arguments) == json.dumps(ARGUMENTS)
    assert value == before


def test_calls_keep_their_order_and_ids() -> None:
    two: list[Json] = [{**CALL, "id": "b"}, {"id": "a", "function": {"name": "f", "arguments": {}}}]
    assert read_calls(two, "tool_calls") == (
        ToolCall(name="weather", arguments=ARGUMENTS, id="b"),
        ToolCall(name="f", arguments={}, id="a"),
    )
    assert read_calls([], "tool_calls") == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("weather(city)", '"tool_calls" is not valid JSON'),
        (3, "call 1: must be an object, not a number"),
        ([CALL, None], "call 2: must be an object, not null"),
        ({**CALL, "function": "weather"}, 'call 1: "function" must be an object, not text'),
        ({**CALL, "type": "tool"}, 'the "type" of a call must be "function"'),
        ({**CALL, "type": ["function"]}, 'the "type" of a call must be "function"'),
        ({**CALL, "function": CALL}, 'the field "name" is not understood'),
        ({**CALL, "argumens": {"a": 1}}, 'Did you mean "arguments"?'),
        ({"function": {**CALL, "id": "x"}}, 'the field "id" is not understood'),
        ({"arguments": {}}, 'call 1: "name" must be text, not null'),
        ({"name": " ", "arguments": {}}, '"name" is empty'),
        ({"name": "f", "arguments": {}, "id": 3}, '"id" must be text, not a number'),
        ({"name": "f"}, 'has no "arguments": write {} for none'),
        ({"name": "f", "arguments": None}, 'has no "arguments": write {} for none'),
        ({"name": "f", "arguments": ""}, 'has no "arguments": write {} for none'),
        ({"name": "f", "arguments": "city"}, '"arguments" is not valid JSON'),
        ({"name": "f", "arguments": '"{}"'}, '"arguments" must be an object, not text'),
        ({"name": "f", "arguments": ["city"]}, '"arguments" must be an object, not a list'),
        ({"name": "f", "arguments": '{"a": 1, "a": 2}'}, "a key is given twice"),
        ({"name": "f", "arguments": '{"a": Infinity}'}, "Infinity is not JSON"),
        ({"name": "f", "arguments": {"a": float("nan")}}, "NaN"),
        ({"name": "f", "arguments": {"a": "\udfff"}}, "half of a surrogate pair"),
        ({"name": "f\0", "arguments": {}}, "U+0000"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(value: Json, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_calls(value, "tool_calls")
    assert reason in str(caught.value)


SECRET = "Zq7xSecretXq9"


@given(
    value=st.sampled_from(
        [
            SECRET,
            [SECRET],
            f'{{"{SECRET}": 1, "{SECRET}": 2}}',
            {"name": [SECRET]},
            {"name": SECRET, "arguments": SECRET},
            {"name": "f", "arguments": f'{{"{SECRET}": {SECRET}}}'},
            {"name": SECRET, "type": SECRET},
            {"name": SECRET, "arguments": {"a": SECRET + "\0"}},
        ]
    )
)
def test_no_reason_quotes_a_call_or_a_tool(value: Json) -> None:
    for read in (read_tools, lambda held: read_calls(held, "x")):
        with pytest.raises(RowError) as caught:
            read(value)
        assert SECRET not in str(caught.value)
