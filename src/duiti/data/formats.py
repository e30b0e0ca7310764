"""Rows to samples: what the fields of a row mean. Each row is looked at on its own.

    sample = to_sample(row, {"question": "prompt", "answer": "response"})

| shape | fields |
|---|---|
| prompt/response | `prompt`, one of `response`, `completion`, `output`, `answer`; or + `system` |
| alpaca | `instruction`, optional `input`, + one of the same answers; optional `system` |
| messages | `messages`: list of `{role, content}`, optional `train: false` on an assistant turn |

Roles must alternate user, assistant, …, with at most one system message, first, and the last turn
the assistant's. A row that fits no shape raises `RowError` with what was found and what was
missing. Fields that no shape knows are left alone; `unread_fields` names them so that they can be
reported. To add a shape: a `_from_…` function, a line in `to_sample`, a row in this table and one
in the docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from duiti.errors import RowError, did_you_mean, shown_name
from duiti.types import Json, Message, Role, Row, Sample

ANSWERS = ("response", "completion", "output", "answer")
_READ_BY = {
    "messages": frozenset({"messages"}),
    "prompt": frozenset({"prompt", "system", *ANSWERS}),
    "instruction": frozenset({"instruction", "input", "system", *ANSWERS}),
}
"""The fields that each shape reads, by the field that makes a row of that shape."""
KNOWN_FIELDS = frozenset[str]().union(*_READ_BY.values())
_MESSAGE_FIELDS = frozenset({"role", "content", "train"})
_ROLES = ("system", "user", "assistant")


def to_sample(row: Row, mapping: Mapping[str, str] | None = None) -> Sample:
    """The sample that a row means, after renaming its fields by `mapping` (old name → new name).

    Raises:
        RowError: the reason why it means none.
    """
    fields = _rename(row.fields, mapping or {})
    if "messages" in fields:
        if "prompt" in fields or "instruction" in fields:
            raise RowError('has both "messages" and a prompt: which one is meant?')
        messages = _from_messages(fields["messages"])
    elif "prompt" in fields:
        if "instruction" in fields:
            raise RowError('has both "prompt" and "instruction": which one is meant?')
        messages = _pair(fields, question="prompt", extra="")
    elif "instruction" in fields:
        messages = _pair(fields, question="instruction", extra="input")
    else:
        raise RowError(_no_shape(fields))
    _check_order(messages)
    return Sample(messages=tuple(messages), origin=row.origin)


def unread_fields(row: Row, mapping: Mapping[str, str] | None = None) -> set[str]:
    """Names of fields that no shape reads."""
    renamed = {name: (mapping or {}).get(name, name) for name in row.fields}
    shape = next((kind for kind in _READ_BY if kind in renamed.values()), "prompt")
    return {name for name, new in renamed.items() if new not in _READ_BY[shape]}


def _rename(fields: Mapping[str, Json], mapping: Mapping[str, str]) -> Mapping[str, Json]:
    if not mapping:
        return fields
    missing = [old for old in mapping if old not in fields]
    if missing:
        raise RowError(f'the field "{missing[0]}", named by map, is missing')
    kept = {name: value for name, value in fields.items() if name not in mapping}
    for old, new in mapping.items():
        if new in kept:
            raise RowError(f'map renames "{old}" to "{new}", which the row has already')
        kept[new] = fields[old]
    return kept


def _pair(fields: Mapping[str, Json], *, question: str, extra: str) -> list[Message]:
    found = [name for name in ANSWERS if name in fields]
    if not found:
        typo = next((h for name in fields if (h := did_you_mean(name, ANSWERS))), "")
        raise RowError(f'has "{question}" but no answer ({", ".join(ANSWERS)}).{typo}')
    if len(found) > 1:
        raise RowError(f"has {' and '.join(found)}: which one is the answer? Rename one with map")
    messages = []
    if fields.get("system") not in (None, ""):
        messages.append(Message(role="system", content=_text(fields["system"], "system")))
    # Alpaca files write a missing input as "" or null.
    context = _text(fields[extra], extra) if fields.get(extra) not in (None, "") else ""
    content = _text(fields[question], question)
    messages.append(Message(role="user", content=content, input=context))
    messages.append(Message(role="assistant", content=_text(fields[found[0]], found[0])))
    return messages


def _from_messages(value: Json) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise RowError('"messages" must be a list with at least a question and an answer')
    return [_message(turn, number) for number, turn in enumerate(value, start=1)]


def _message(value: Json, number: int) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"message {number} is not an object")
    role = value.get("role")
    if role not in _ROLES:
        hint = did_you_mean(role, _ROLES) if isinstance(role, str) else ""
        raise RowError(f"message {number}: the role must be one of {', '.join(_ROLES)}.{hint}")
    unknown = sorted(
        name for name in value if name not in _MESSAGE_FIELDS and value[name] is not None
    )
    if unknown:
        raise RowError(f"message {number}: the field {shown_name(unknown[0])} is not understood")
    train = value.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError(f'message {number}: "train" must be true or false')
    if train is not None and role != "assistant":
        raise RowError(f'message {number}: "train" belongs on an assistant message')
    content = _text(value.get("content"), f"message {number}: content")
    return Message(role=cast(Role, role), content=content, train=train)


def _text(value: Json, name: str) -> str:
    if not isinstance(value, str):
        kind = {dict: "an object", list: "a list", bool: "true/false", type(None): "null"}
        raise RowError(f'"{name}" must be text, not {kind.get(type(value), "a number")}')
    if not value.strip():
        raise RowError(f'"{name}" is empty')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f'"{name}" has half of a surrogate pair, which is no character') from None
    return value


def _check_order(messages: list[Message]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            place = number + 1 + len(messages) - len(turns)
            raise RowError(f"message {place} is from {message.role} where {expected} is due")
    if not turns or turns[-1].role != "assistant":
        raise RowError("ends without an answer: the last message must be the assistant's")
    if all(message.train is False for message in turns if message.role == "assistant"):
        raise RowError('every answer says "train": false')


def _no_shape(fields: Mapping[str, Json]) -> str:
    names = list(fields)[:8]
    shown = ", ".join(shown_name(name) for name in names) or "none"
    question = next((name for name in ("question", "query", "input") if name in fields), None)
    if question:
        return f'has no "prompt" (fields: {shown}); if "{question}" is it: --map {question}=prompt'
    asks = sorted(set(_READ_BY))
    hint = next((h for name in names if (h := did_you_mean(name, asks))), "")
    return f"has no prompt, instruction or messages (fields: {shown}).{hint}"
