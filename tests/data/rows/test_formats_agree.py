"""One conversation is one sample and one digest, in whatever shape its row is written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.formats import row_digests, to_sample, unread_fields
from duiti.types import Json, Message, Origin, Row, Sample, ToolCall

ORIGIN = Origin("f.jsonl", 7)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def _row(fields: Mapping[str, Json]) -> Row:
    return Row(fields, ORIGIN)


def _turn(role: str, content: Json, **more: Json) -> dict[str, Json]:
    return {"role": role, "content": content, **more}


TEXT = st.text(CHARACTERS, min_size=1).filter(lambda value: not value.isspace())
ARGUMENTS = st.dictionaries(
    st.text(CHARACTERS, max_size=3),
    st.none() | st.booleans() | st.integers() | st.text(CHARACTERS) | st.just([{"a": None}]),
    max_size=3,
)
CALLS = st.lists(st.builds(ToolCall, name=TEXT, arguments=ARGUMENTS), min_size=1, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> Sample:
    system = draw(st.lists(st.builds(Message, role=st.just("system"), content=TEXT), max_size=1))
    messages = system
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(TEXT)))
        for calls in draw(st.lists(CALLS, max_size=2)):
            silent = Message(role="assistant", content="", tool_calls=tuple(calls))
            messages.append(replace(silent, reasoning=draw(st.just("") | TEXT)))
            messages += [Message(role="tool", content=draw(st.text(CHARACTERS))) for _ in calls]
        answer = Message(role="assistant", content=draw(TEXT))
        messages.append(replace(answer, reasoning=draw(st.just("") | TEXT)))
    tools = draw(st.lists(ARGUMENTS, max_size=2))
    return Sample(messages=tuple(messages), origin=ORIGIN, tools=tuple(tools))


def _call_objects(message: Message) -> list[Json]:
    return [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]


def _as_openai(sample: Sample) -> dict[str, Json]:
    turns: list[Json] = []
    for message in sample.messages:
        turn = _turn(message.role, message.content or None, refusal=None)
        turn["tool_calls"] = [
            {"type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
            for call in _call_objects(message)
            if isinstance(call, dict)
        ]
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        turns.append(turn)
    return {"messages": turns, "tools": list(sample.tools)}


def _as_parts(sample: Sample) -> dict[str, Json]:
    turns: list[Json] = []
    for message in sample.messages:
        parts: list[Json] = [{"type": "reasoning", "value": message.reasoning}]
        half = len(message.content) // 2
        texts = (message.content[:half], message.content[half:])
        calls = _call_objects(message)
        turns.append(
            {
                "role": message.role,
                "content": (parts if message.reasoning else [])
                + [{"type": "text", "text": piece} for piece in texts]
                + [{"type": "tool_call", "value": json.dumps(call)} for call in calls],
            }
        )
    return {"messages": turns, "tools": json.dumps(sample.tools)}


def _as_sharegpt(sample: Sample) -> dict[str, Json]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    row: dict[str, Json] = {"tools": json.dumps(sample.tools)}
    turns: list[Json] = []
    for message in sample.messages:
        if message.role == "system":
            row["system"] = message.content
            continue
        turn: dict[str, Json] = {"from": names[message.role], "value": message.content}
        if message.tool_calls:
            turn = {"from": "function_call", "value": json.dumps(_call_objects(message))}
        if message.reasoning:
            turn["reasoning"] = message.reasoning
        turns.append(turn)
    return {**row, "conversations": turns}


def _swapped(sample: Sample) -> dict[str, Json]:
    row = _as_sharegpt(sample)
    return {"messages": row.pop("conversations"), **row}


def _as_pair(sample: Sample) -> dict[str, Json] | None:
    """Alpaca with history: no reasoning, no tools in use."""
    if any(message.reasoning or message.tool_calls for message in sample.messages):
        return None
    row: dict[str, Json] = {"tools": list(sample.tools)}
    texts = [message.content for message in sample.messages]
    if sample.messages[0].role == "system":
        row["system"] = texts.pop(0)
    pairs: list[Json] = [[asked, said] for asked, said in zip(texts[::2], texts[1::2], strict=True)]
    return {**row, "instruction": texts[-2], "output": texts[-1], "history": pairs[:-1]}


def _as_trl(sample: Sample) -> dict[str, Json] | None:
    """A prompt and a completion of messages: the same only if the prompt has no answers."""
    row = _as_openai(sample)
    turns = row.pop("messages")
    assert isinstance(turns, list)
    asked = [message.role for message in sample.messages].index("user") + 1
    return {**row, "prompt": turns[:asked], "completion": turns[asked:]}


WAYS: list[Callable[[Sample], dict[str, Json] | None]] = [
    _as_openai,
    _as_parts,
    _as_sharegpt,
    _swapped,
    _as_pair,
    _as_trl,
]


@given(sample=conversations())
def test_one_conversation_is_one_sample_in_every_shape(sample: Sample) -> None:
    digests = row_digests(sample)
    for write in WAYS:
        row = write(sample)
        if row is not None:
            found = to_sample(_row(row))
            assert found == sample, write
            assert row_digests(found) == digests
            assert unread_fields(_row(row)) == set()


CHAT = Sample(
    messages=(
        Message(role="user", content="q"),
        Message(role="assistant", content="a", reasoning="r"),
        Message(role="user", content="q2"),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments={"a": 1}),)),
        Message(role="tool", content="t"),
        Message(role="assistant", content="b"),
    ),
    origin=ORIGIN,
    tools=({"name": "f"},),
)


def _with(place: int, **changes: object) -> Sample:
    messages = list(CHAT.messages)
    messages[place] = replace(messages[place], **changes)  # type: ignore[arg-type]
    return replace(CHAT, messages=tuple(messages))


@pytest.mark.parametrize(
    "other",
    [
        replace(CHAT, tools=()),
        replace(CHAT, tools=({"name": "g"},)),
        replace(CHAT, messages=CHAT.messages[2:]),
        _with(0, content="q "),
        _with(1, content="ar", reasoning=""),
        _with(1, content="", reasoning="ra"),
        _with(1, content="a1"),
        _with(2, content="q2\n"),
        _with(3, tool_calls=(ToolCall(name="f", arguments={"a": 1.0}),)),
        _with(3, tool_calls=(ToolCall(name="f", arguments={"a": True}),)),
        _with(3, tool_calls=(ToolCall(name="f", arguments={"a": "1"}),)),
        _with(3, tool_calls=CHAT.messages[3].tool_calls * 2),
        _with(3, tool_calls=()),
        _with(3, content="x"),
        _with(4, content=""),
        _with(4, role="user"),
    ],
)
def test_a_difference_anywhere_before_the_last_answer_changes_both_digests(other: Sample) -> None:
    ours, theirs = row_digests(CHAT), row_digests(other)
    assert ours[:2] != theirs[:2]
    assert ours[2:] != theirs[2:]


def test_a_different_last_answer_changes_the_first_digest_only() -> None:
    ours = row_digests(CHAT)
    for other in (_with(5, content="c"), _with(5, reasoning="r"), _with(5, content="b ")):
        theirs = row_digests(other)
        assert ours[:2] != theirs[:2]
        assert ours[2:] == theirs[2:]
    assert all(0 <= part < 2**64 for part in ours)
    assert len(set(ours)) == 4


def test_what_is_trained_and_what_calls_are_numbered_does_not_change_a_digest() -> None:
    named = (replace(CHAT.messages[3].tool_calls[0], id="call_7f"),)
    for other in (
        _with(1, train=False, weight=0.0),
        _with(5, weight=0.5),
        _with(3, tool_calls=named),
        _with(4, name="f"),
        replace(CHAT, origin=Origin("other", 1)),
    ):
        assert row_digests(other) == row_digests(CHAT)


def test_results_that_answer_other_calls_change_a_digest() -> None:
    calls = tuple(ToolCall(name="f", arguments={"a": 1}, id=id_) for id_ in "xy")
    asked = _with(3, tool_calls=calls).messages[:4]
    last = CHAT.messages[-1]

    def digests(first: str, second: str) -> tuple[int, int, int, int]:
        results = [
            Message(role="tool", content=content, tool_call_id=id_)
            for content, id_ in (("1", first), ("2", second))
        ]
        return row_digests(Sample(messages=(*asked, *results, last), origin=ORIGIN))

    assert digests("x", "y") == digests("", "")
    assert digests("y", "x") != digests("x", "y")


def test_an_input_counts_as_what_follows_its_instruction() -> None:
    alpaca = to_sample(_row({"instruction": "q", "input": "i", "output": "a"}))
    pair = to_sample(_row({"prompt": "q\ni", "response": "a"}))
    assert row_digests(alpaca) == row_digests(pair)


def test_a_digest_is_that_of_a_text_in_which_lengths_stand_before_what_they_measure() -> None:
    tools = '[{"name":"é"}]'
    asked = f"{len(tools)}\n{tools}system 1 0 0\nsuser 2 0 0\né\n"
    said = 'assistant 0 1 15\nr[["f",{"a":1}]]'
    result = "tool 1 0 1\nt0"
    last = "assistant 1 0 0\na"
    head = (asked + said + result).encode()
    calls = (ToolCall(name="f", arguments={"a": 1}),)
    sample = Sample(
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content="é\n"),
            Message(role="assistant", content="", reasoning="r", tool_calls=calls),
            Message(role="tool", content="t"),
            Message(role="assistant", content="a"),
        ),
        origin=ORIGIN,
        tools=({"name": "é"},),
    )
    whole = blake2b(head + last.encode(), digest_size=16).digest()
    assert row_digests(sample) == unpack("<4Q", whole + blake2b(head, digest_size=16).digest())
