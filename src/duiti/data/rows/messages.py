"""A list of messages as OpenAI, ShareGPT and TRL write it: who says what, and in which order.

    messages = read_messages(fields["messages"], "messages")
    check_order(messages)

| a message has | under these names | on |
|---|---|---|
| a role | `role` or `from`, by any name in `ROLES` (`developer` is system) | all |
| content | `content` or `value`: text, or a list of typed parts | all |
| reasoning | `reasoning_content`, `reasoning` or `thinking`, or in parts | assistant |
| calls | `tool_calls`, the older `function_call`, or in parts | assistant |
| a say in the loss | `train`: true or false; `weight`: 0 is the same as false | assistant |
| the call it answers | `tool_call_id` and `name` | tool |

A message from `function_call` or `tool_call` is an assistant's whose whole content is calls.
What parts are and how they join is in `parts`, what a call is in `tools`. Only an assistant who
calls a tool may be silent, and the result of a tool may be empty. A field that is null is absent;
one that nothing reads is refused unless it holds nothing. Text is taken over to the character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from duiti.data.rows.parts import NO_CONTENT, read_content
from duiti.data.rows.tools import read_calls
from duiti.data.rows.values import check_fields, either, is_nothing, kind, label, near, text
from duiti.errors import RowError
from duiti.types import Json, Message, Role, ToolCall

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Who speaks, by every name that is read."""

CALLERS = ("function_call", "tool_call")
"""Names of an assistant whose whole content is calls, as JSON."""

MIN_WEIGHT, MAX_WEIGHT = 1e-37, 3e38
"""Of a weight that is not 0. Weights are kept as float32, which has no more."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
_OWNERS: dict[str, Role] = {
    **dict.fromkeys(("train", "weight", *_REASONING, "tool_calls", "function_call"), "assistant"),
    **dict.fromkeys(("name", "tool_call_id"), "tool"),
}
_FIELDS = ("role", "from", "content", "value", *_OWNERS)
_PLAIN = {name: role for name, role in ROLES.items() if name not in CALLERS}
_T = TypeVar("_T", str, tuple[ToolCall, ...])
_DUE: dict[str, tuple[Role, ...]] = {
    "": ("user", "system"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool", "user"),
    "tool": ("assistant", "tool"),
}
"""Who may speak after whom; `call` is an assistant who calls a tool."""


def read_messages(value: Json, name: str, *, first: int = 1) -> list[Message]:
    """The messages of a list, in order; `first` is the number by which reasons call the first.

    Raises:
        RowError: the reason why one means nothing, with its number.
    """
    if not isinstance(value, list) or not value:
        found = "an empty one" if value == [] else kind(value)
        raise RowError(f'"{name}" must be a list of messages, not {found}')
    messages = []
    for number, turn in enumerate(value, start=first):
        try:
            messages.append(_message(turn))
        except RowError as error:
            raise RowError(f"message {number}: {error}") from None
    return messages


def check_order(messages: Sequence[Message], *, first: int = 1) -> None:
    """Refuse a conversation that no template can write, or that ends without an answer."""
    before, ids = "", frozenset[str]()
    for number, message in enumerate(messages, start=first):
        role: str = message.role
        if role not in _DUE[before]:
            due = " or ".join(_DUE[before])
            hint = " (no message before it calls a tool)" if role == "tool" else ""
            raise RowError(f"message {number} is from {role} where {due} is due{hint}")
        if message.tool_calls:
            role, ids = "call", _ids(message, number)
        elif message.tool_call_id and message.tool_call_id not in ids:
            raise RowError(f"message {number}: no call of the turn before it has its tool_call_id")
        before = role
    if before not in ("assistant", "call"):
        raise RowError(
            f"ends without an answer: message {first + len(messages) - 1} is from {before};"
            " add the assistant's answer to it, or leave it out"
        )
    if all(message.train is False for message in messages if message.role == "assistant"):
        raise RowError('every answer says "train": false or "weight": 0')


def _ids(message: Message, number: int) -> frozenset[str]:
    ids = [call.id for call in message.tool_calls if call.id]
    if len(set(ids)) < len(ids):
        raise RowError(f"message {number}: two of its calls have the same id")
    return frozenset(ids)


def as_context(message: Message) -> Message:
    """The message, not trained unless it says so, by `"train": true` or a weight (it stands in a
    prompt)."""
    if message.role != "assistant" or message.train is not None or message.weight != 1:
        return message
    return replace(message, train=False, weight=0.0)


def _message(turn: Json) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"must be an object, not {kind(turn)}")
    if len(turn) == 2:  # a role and a text: nearly all there are
        named, content = turn.get("role"), turn.get("content")
        if named is None:
            named, content = turn.get("from"), turn.get("value")
        if isinstance(named, str) and isinstance(content, str) and named in _PLAIN:
            role = _PLAIN[named]
            said = text(content, "content", may_be_empty=role == "tool")
            return Message(role=role, content=said)
    return _any_message(turn)


def _any_message(turn: dict[str, Json]) -> Message:
    check_fields(turn, _FIELDS)
    named = either(turn, "role", "from")
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        known = "system, user, assistant, tool"
        raise RowError(f"the role must be one of {known}.{near(named, tuple(ROLES))}")
    for field, held in turn.items():
        owner = _OWNERS.get(field, role)
        if owner != role and not is_nothing(held):
            raise RowError(f'"{field}" belongs on a message from {owner}')
    value = either(turn, "content", "value")
    if role == "tool":
        return _result(turn, value)
    if role == "assistant":
        return _answer(turn, value, is_call=named in CALLERS)
    return Message(role=role, content=text(read_content(value, role).text, "content"))


def _answer(turn: dict[str, Json], value: Json, *, is_call: bool) -> Message:
    content = NO_CONTENT if is_call else read_content(value, "assistant")
    calls = content.calls
    if is_call:
        calls = read_calls(value, "content")
        if not calls:
            raise RowError("holds no call")
    for field in ("tool_calls", "function_call"):
        if not is_nothing(held := turn.get(field)):
            calls = _only(calls, read_calls(held, field), "calls")
    reasoning = content.reasoning
    for field in _REASONING:
        reasoning = _only(reasoning, label(turn, field), "reasoning")
    if reasoning and not content.text and not calls:
        raise RowError("reasons but gives no answer")
    train, weight = _say_in_loss(turn)
    return Message(
        role="assistant",
        content=text(content.text, "content", may_be_empty=bool(calls)),
        reasoning=reasoning,
        tool_calls=calls,
        train=train,
        weight=weight,
    )


def _result(turn: dict[str, Json], value: Json) -> Message:
    content = read_content(value, "tool")
    return Message(
        role="tool",
        content=text(content.text, "content", may_be_empty=True),
        name=_only(content.name, label(turn, "name"), "a name"),
        tool_call_id=_only(content.tool_call_id, label(turn, "tool_call_id"), "a tool_call_id"),
    )


def _only(first: _T, second: _T, what: str) -> _T:
    """What a message says in one of two places, or the same in both."""
    if first and second and first != second:
        raise RowError(f"has {what} in two places: which one is meant?")
    return first or second


def _say_in_loss(turn: dict[str, Json]) -> tuple[bool | None, float]:
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError('"train" must be true or false')
    if weight is None:
        return train, 0.0 if train is False else 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RowError(f'"weight" must be a number, not {kind(weight)}')
    if weight != 0 and not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise RowError(f'"weight" must be 0, or from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}')
    if train is not None and train != (weight > 0):
        raise RowError('"train" and "weight" contradict each other')
    return (False, 0.0) if weight == 0 else (train, float(weight))
