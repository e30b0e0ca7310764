"""A conversation is read however it is written; an order that no template can write is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.messages import CALLERS, ROLES, check_order, read_messages
from duiti.errors import RowError
from duiti.types import Json, Message, ToolCall

CALL: dict[str, Json] = {"name": "f", "arguments": {"a": 1}}
READ = ToolCall(name="f", arguments={"a": 1})


def _turn(role: str, content: Json = None, **more: Json) -> dict[str, Json]:
    return {"role": role, "content": content, **more}


def _one(turn: Json) -> Message:
    (message,) = read_messages([turn], "messages")
    return message


def _reason(turns: Json) -> str:
    with pytest.raises(RowError) as caught:
        check_order(read_messages(turns, "messages"))
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(set(ROLES) - set(CALLERS)))
def test_every_name_of_a_role_is_read_in_either_style(name: str) -> None:
    read = Message(role=ROLES[name], content=" a\n")
    assert _one({"role": name, "content": " a\n"}) == read
    assert _one({"from": name, "value": " a\n"}) == read
    assert _one({"from": name, "content": " a\n", "value": None, "role": None}) == read
    assert _one({"role": name, "content": [{"type": "text", "text": " a\n"}]}) == read


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("value", [CALL, [CALL], json.dumps(CALL), json.dumps([CALL])])
def test_the_content_of_a_caller_is_its_calls(name: str, value: Json) -> None:
    read = Message(role="assistant", content="", tool_calls=(READ,))
    assert _one({"from": name, "value": value}) == read


@pytest.mark.parametrize("silence", [None, "", []])
def test_an_assistant_who_calls_may_be_silent(silence: Json) -> None:
    read = Message(role="assistant", content="", tool_calls=(READ,))
    assert _one(_turn("assistant", silence, tool_calls=[CALL])) == read
    assert _one(_turn("assistant", silence, function_call=CALL)) == read
    assert _one({"role": "assistant", "tool_calls": json.dumps([CALL])}) == read


def test_an_assistant_may_reason_speak_and_call() -> None:
    read = Message(role="assistant", content=" t", reasoning="r\n", tool_calls=(READ,))
    for field in ("reasoning_content", "reasoning", "thinking"):
        assert _one(_turn("assistant", " t", tool_calls=[CALL], **{field: "r\n"})) == read
    parts: list[Json] = [
        {"type": "reasoning", "value": "r\n"},
        {"type": "text", "value": " t"},
        {"type": "tool_call", "value": json.dumps(CALL)},
    ]
    assert _one(_turn("assistant", parts)) == read
    assert _one(_turn("assistant", parts, reasoning="r\n", tool_calls=[CALL])) == read


def test_what_is_null_or_empty_is_absent() -> None:
    empty: dict[str, Json] = {
        "train": None,
        "weight": None,
        "reasoning_content": "",
        "tool_calls": [],
        "function_call": None,
        "name": "",
        "tool_call_id": None,
        "refusal": None,
        "annotations": [],
    }
    for role in ("system", "user", "assistant", "tool"):
        assert _one(_turn(role, "a", **empty)) == _one(_turn(role, "a"))


def test_a_result_names_its_call_and_may_be_empty() -> None:
    named = _one(_turn("tool", "20", name="f", tool_call_id="x"))
    assert named == Message(role="tool", content="20", name="f", tool_call_id="x")
    part: dict[str, Json] = {"type": "tool_result", "value": "20", "name": "f"}
    assert _one(_turn("tool", [part], tool_call_id="x", name="f")) == named
    assert _one(_turn("function", {"t": 20}, name="f")).content == '{"t": 20}'
    for nothing in (None, "", " "):
        assert _one({"from": "observation", "value": nothing}).content == (nothing or "")


@pytest.mark.parametrize(
    ("say", "train", "weight"),
    [
        ({}, None, 1.0),
        ({"train": True}, True, 1.0),
        ({"train": False}, False, 0.0),
        ({"weight": 0}, False, 0.0),
        ({"weight": 0.0, "train": False}, False, 0.0),
        ({"weight": 1}, None, 1.0),
        ({"weight": 0.5}, None, 0.5),
        ({"weight": 3, "train": True}, True, 3.0),
    ],
)
def test_a_weight_of_0_is_the_same_as_not_trained(
    say: dict[str, Json], train: bool | None, weight: float
) -> None:
    found = _one(_turn("assistant", "a", **say))
    assert (found.train, found.weight) == (train, weight)
    assert type(found.weight) is float


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (3, "must be an object, not a number"),
        (["user", "a"], "must be an object, not a list"),
        ({}, "the role must be one of system, user, assistant, tool"),
        (_turn("bot", "a"), "the role must be one of system, user, assistant, tool"),
        ({"content": "q"}, "the role must be one of system, user, assistant, tool"),
        ({"role": ["user"], "content": "q"}, "the role must be one of"),
        (_turn("User", "q"), 'Did you mean "user"?'),
        (_turn("asistant", "a"), 'Did you mean "assistant"?'),
        ({"from": "humn", "value": "a"}, 'Did you mean "human"?'),
        (
            {"rle": "user", "content": "a"},
            'the field "rle" is not understood. Did you mean "role"?',
        ),
        ({"role": "user", "contnt": "a"}, 'Did you mean "content"?'),
        (_turn("user", "q", id=3), 'the field "id" is not understood'),
        ({"role": "user", "from": "human", "value": "a"}, 'has both "role" and "from"'),
        ({"role": "user", "content": "a", "value": "a"}, 'has both "content" and "value"'),
        (_turn("user", "q", name="x"), '"name" belongs on a message from tool'),
        (
            _turn("assistant", "q", tool_call_id="x"),
            '"tool_call_id" belongs on a message from tool',
        ),
        (_turn("user", "q", train=True), '"train" belongs on a message from assistant'),
        (_turn("user", "q", weight=0), '"weight" belongs on a message from assistant'),
        (_turn("tool", "q", reasoning="r"), '"reasoning" belongs on a message from assistant'),
        (_turn("user", "q", tool_calls=[CALL]), '"tool_calls" belongs on a message from assistant'),
        (_turn("system", ""), '"content" is empty'),
        (_turn("user", " \n"), '"content" is empty'),
        (_turn("user"), '"content" is empty'),
        (_turn("user", [{"type": "text", "text": ""}]), '"content" is empty'),
        (_turn("user", 3), '"content" must be text or a list of parts, not a number'),
        (_turn("user", "\ud800"), "half of a surrogate pair"),
        (_turn("user", "a\0"), "U+0000"),
        (_turn("assistant"), '"content" is empty'),
        (_turn("assistant", "", tool_calls=[]), '"content" is empty'),
        (_turn("assistant", "", reasoning="r"), "reasons but gives no answer"),
        (_turn("assistant", "\n", reasoning="r"), '"content" is empty'),
        (_turn("assistant", "a", reasoning=["r"]), '"reasoning" must be text, not a list'),
        (_turn("assistant", "a", thinking="\0"), "U+0000"),
        (_turn("assistant", "a", reasoning="r", thinking="s"), "has reasoning in two places"),
        (
            _turn("assistant", "a", tool_calls=[CALL], function_call={**CALL, "name": "g"}),
            "calls in",
        ),
        (_turn("assistant", "a", tool_calls=[{"name": "f"}]), 'call 1: has no "arguments"'),
        (_turn("function_call", "Sure!"), '"content" is not valid JSON'),
        (_turn("function_call", []), "holds no call"),
        (_turn("tool", "a", name=3), '"name" must be text, not a number'),
        (
            _turn("tool", [{"type": "tool_result", "value": "a", "name": "f"}], name="g"),
            "a name in",
        ),
        (_turn("assistant", "a", train="no"), '"train" must be true or false'),
        (_turn("assistant", "a", train=0), '"train" must be true or false'),
        (_turn("assistant", "a", weight=True), '"weight" must be a number, not true/false'),
        (_turn("assistant", "a", weight="1"), '"weight" must be a number, not text'),
        (_turn("assistant", "a", weight=-1), '"weight" must be 0, or from'),
        (_turn("assistant", "a", weight=float("nan")), '"weight" must be 0, or from'),
        (_turn("assistant", "a", weight=float("inf")), '"weight" must be 0, or from'),
        (_turn("assistant", "a", weight=10**400), '"weight" must be 0, or from'),
        (_turn("assistant", "a", weight=1e-60), '"weight" must be 0, or from'),
        (_turn("assistant", "a", weight=0, train=True), "contradict each other"),
        (_turn("assistant", "a", weight=1, train=False), "contradict each other"),
    ],
)
def test_a_message_that_cannot_be_meant_is_refused_by_number(turn: Json, reason: str) -> None:
    for turns in ([turn], [_turn("user", "q"), turn]):
        found = _reason(turns)
        assert found.startswith(f"message {len(turns)}: "), found
        assert reason in found


@pytest.mark.parametrize("value", [None, "q", {}, [], 3])
def test_what_is_no_list_of_messages_is_refused(value: Json) -> None:
    assert '"messages" must be a list of messages, not ' in _reason(value)


S, Q, A = _turn("system", "s"), _turn("user", "q"), _turn("assistant", "a")
C = _turn("assistant", tool_calls=[CALL, CALL])
T = _turn("tool", "t")


@pytest.mark.parametrize(
    "turns",
    [
        [Q, A],
        [S, Q, A],
        [Q, A, Q, A],
        [Q, C],
        [Q, C, T, A],
        [S, Q, C, T, T, A, Q, A],
        [Q, C, T, C, T, A],
        [Q, C, Q, A],
        [Q, _turn("assistant", "a", train=False), Q, A],
    ],
)
def test_an_order_that_templates_can_write_is_taken(turns: list[Json]) -> None:
    check_order(read_messages(turns, "messages"))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([A], "message 1 is from assistant where user or system is due"),
        ([T], "message 1 is from tool where user or system is due"),
        ([Q, Q, A], "message 2 is from user where assistant is due"),
        ([Q, A, A], "message 3 is from assistant where user is due"),
        ([Q, C, A], "message 3 is from assistant where tool or user is due"),
        ([Q, T, A], "message 2 is from tool where assistant is due (no message before it calls"),
        ([Q, A, T, A], "message 3 is from tool where user is due (no message before it calls"),
        ([Q, C, T, Q, A], "message 4 is from user where assistant or tool is due"),
        ([S, S, Q, A], "message 2 is from system where user is due"),
        ([S, Q, S, A], "message 3 is from system where assistant is due"),
        ([S, A], "message 2 is from assistant where user is due"),
        ([S], "ends without an answer: message 1 is from system"),
        ([Q], "ends without an answer: message 1 is from user; add the assistant's answer to it"),
        ([S, Q, A, Q], "ends without an answer: message 4 is from user"),
        ([Q, C, T], "ends without an answer: message 3 is from tool"),
        ([Q, _turn("assistant", "a", train=False)], 'every answer says "train": false'),
        ([Q, _turn("assistant", "a", weight=0)], 'every answer says "train": false'),
    ],
)
def test_any_other_order_is_refused(turns: list[Json], reason: str) -> None:
    assert reason in _reason(turns)


def _calls(*ids: str) -> dict[str, Json]:
    return _turn("assistant", tool_calls=[{**CALL, "id": id_} for id_ in ids])


def _results(*ids: str) -> list[Json]:
    return [_turn("tool", "t", tool_call_id=id_) for id_ in ids]


def test_a_result_answers_a_call_of_the_turn_before_it() -> None:
    for results in (_results("x", "y"), _results("y", "x"), _results("x"), _results("", "y")):
        check_order(read_messages([Q, _calls("x", "y"), *results, A], "messages"))
    bad = "no call of the turn before it has its tool_call_id"
    assert f"message 4: {bad}" in _reason([Q, _calls("x"), *_results("x", "z"), A])
    assert f"message 3: {bad}" in _reason([Q, C, *_results("x"), A])
    later: list[Json] = [Q, _calls("x"), *_results("x"), _calls("y"), *_results("x"), A]
    assert f"message 5: {bad}" in _reason(later)
    assert "message 2: two of its calls have the same id" in _reason([Q, _calls("x", "x")])


def _follows(before: str, role: str) -> bool:
    if role == "tool":
        return before in ("call", "tool")
    if role in ("assistant", "call"):
        return before in ("user", "tool")
    return before in ({"user": ("", "system", "assistant", "call"), "system": ("",)}[role])


@given(roles=st.lists(st.sampled_from(["system", "user", "assistant", "call", "tool"]), min_size=1))
def test_exactly_the_orders_that_the_rules_allow_are_taken(roles: list[str]) -> None:
    turns: list[Json] = [
        {"system": S, "user": Q, "assistant": A, "call": C, "tool": T}[r] for r in roles
    ]
    is_fine = roles[-1] in ("assistant", "call") and all(map(_follows, ["", *roles], roles))
    if is_fine:
        check_order(read_messages(turns, "messages"))
    else:
        assert "message " in _reason(turns)
