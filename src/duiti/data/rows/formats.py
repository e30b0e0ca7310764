"""Rows to samples: what the fields of a row mean. Each row is looked at on its own.

    sample = to_sample(row, {"question": "prompt", "answer": "response"})

| shape | fields |
|---|---|
| prompt/response | `prompt`, one of `response`, `completion`, `output`, `answer`; or + `history` |
| the same, of messages | either or both are lists of messages; only the answer's are trained |
| alpaca | `instruction`, optional `input` and `history`, + one of the same answers |
| messages | `messages`: list of `{role, content}`; what else they hold is in `messages` (module) |
| ShareGPT | `conversations`: list of `{from, value}`, read as messages are |

Each may have `system` (a text) and `tools` (a list of objects, or one as a string of JSON);
`history` is a list of pairs `[question, answer]`. A shape counts when its field holds something: a
null is no field, and the empty cells of a table decide nothing. A `prompt` without an answer beside
`messages` is not read. A row that fits no shape, or two, raises `RowError` with what was found and
what to do. Fields that no shape knows are left alone; `unread_fields` names them so that they can
be reported.

To add a shape: a `_from_…` function, a line in `to_sample` and `_READ_BY`, a row in this table and
one in the docs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, TypeVar

from duiti.data.rows.messages import as_context, check_order, read_messages
from duiti.data.rows.tools import read_tools
from duiti.data.rows.values import is_nothing, kind, near, text
from duiti.errors import RowError, shown_name
from duiti.types import Json, Message, Row, Sample

Shape = Literal["messages", "conversations", "prompt", "instruction"]

ANSWERS = ("response", "completion", "output", "answer")
_COMMON = ("system", "tools")
_READ_BY: dict[Shape, frozenset[str]] = {
    "messages": frozenset({"messages", *_COMMON}),
    "conversations": frozenset({"conversations", *_COMMON}),
    "prompt": frozenset({"prompt", "history", *ANSWERS, *_COMMON}),
    "instruction": frozenset({"instruction", "input", "history", *ANSWERS, *_COMMON}),
}
"""The fields that each shape reads, by the field that makes a row of that shape."""
KNOWN_FIELDS = frozenset[str]().union(*_READ_BY.values())
_CHATS: tuple[Shape, ...] = ("messages", "conversations")
_PAIR: Shape = "prompt"
_Name = TypeVar("_Name", bound=str)
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_FOUR = struct.Struct("<4Q")
_QUESTIONS = ("question", "query", "input")
"""What others call a prompt."""


def to_sample(row: Row, mapping: Mapping[str, str] | None = None) -> Sample:
    """The sample that a row means, after renaming its fields by `mapping` (old name → new name).

    Raises:
        RowError: the reason why it means none.
    """
    fields = _rename(row.fields, mapping) if mapping else row.fields
    shape = _shape(fields)
    if shape == "prompt":
        messages = _from_prompt(fields)
    elif shape == "instruction":
        name = _answer(fields, shape)
        messages = _from_pair(fields, name, question=shape, extra="input")
    else:
        messages = read_messages(fields[shape], shape)
        check_order(messages)
    if not is_nothing(system := fields.get("system")):
        if messages[0].role == "system":
            raise RowError('has "system" and a system message: which one is meant?')
        messages.insert(0, Message(role="system", content=text(system, "system")))
    tools = read_tools(fields.get("tools"))
    return Sample(messages=tuple(messages), origin=row.origin, tools=tools)


def unread_fields(row: Row, mapping: Mapping[str, str] | None = None) -> set[str]:
    """Names of fields that hold something and that no shape reads."""
    fields = row.fields
    if not mapping:
        shape = next(iter(_shapes(fields)), _PAIR)
        names = fields.keys() - _READ_BY[shape]
        return {name for name in names if not is_nothing(fields[name])}
    new = {name: mapping.get(name, name) for name in fields if not is_nothing(fields[name])}
    shape = next(iter(_shapes({new[name]: fields[name] for name in new})), _PAIR)
    return {name for name in new if new[name] not in _READ_BY[shape]}


def row_digests(sample: Sample) -> tuple[int, int, int, int]:
    """Four uint64 by which conversations are compared: two of the whole (128 bits of BLAKE2b), two
    of all before the last answer.

    Equal for equal conversations, however their rows write them, and whatever is trained of them:
    `train` and `weight` do not count, nor do the ids of calls as such, only which result is whose;
    an alpaca row's `input` counts as what follows its instruction on a new line.
    """
    messages = sample.messages
    last = len(messages) - 1
    while last > 0 and messages[last].role != "assistant":
        last -= 1
    tools = _JSON(sample.tools) if sample.tools else ""
    head = blake2b(f"{len(tools)}\n{tools}{_canonical(messages[:last])}".encode(), digest_size=16)
    whole = head.copy()
    whole.update(_canonical(messages[last:]).encode())
    return _FOUR.unpack(whole.digest() + head.digest())


def _rename(fields: Mapping[str, Json], mapping: Mapping[str, str]) -> Mapping[str, Json]:
    for old in mapping:
        if old not in fields:
            raise RowError(f'the field "{old}", named by map, is missing')
    kept = {name: value for name, value in fields.items() if name not in mapping}
    for old, new in mapping.items():
        if fields[old] is None:
            kept.setdefault(new, None)
        elif kept.get(new) is not None:
            raise RowError(f'map renames "{old}" to "{new}", which the row has already')
        else:
            kept[new] = fields[old]
    return kept


def _shape(fields: Mapping[str, Json]) -> Shape:
    found = _shapes(fields)
    if not found:
        raise RowError(_no_shape(fields))
    if len(found) > 1:
        both = f'"{found[0]}" and "{found[1]}"'
        raise RowError(f"has both {both}: which one is meant? Rename the other with map")
    return found[0]


def _shapes(fields: Mapping[str, Json]) -> list[Shape]:
    found = _present(fields, _READ_BY)
    if len(found) > 1 and found[0] in _CHATS:
        has_answer = any(not is_nothing(fields.get(name)) for name in ANSWERS)
        found = found if has_answer else [shape for shape in found if shape in _CHATS]
    return found


def _present(fields: Mapping[str, Json], names: Iterable[_Name]) -> list[_Name]:
    """Those of some names for one thing that a row uses: two, only where both hold something."""
    found = [name for name in names if fields.get(name) is not None]
    if len(found) < 2:
        return found
    return [name for name in found if not is_nothing(fields[name])] or found[:1]


def _answer(fields: Mapping[str, Json], question: str) -> str:
    found = _present(fields, ANSWERS)
    if len(found) > 1:
        raise RowError(f"has {' and '.join(found)}: which one is the answer? Rename one with map")
    if found:
        return found[0]
    null = next((name for name in ANSWERS if name in fields), None)
    if null:
        raise RowError(f'"{null}" must be text, not null')
    typo = next((hint for name in fields if (hint := near(name, ANSWERS))), "")
    raise RowError(f'has "{question}" but no answer ({", ".join(ANSWERS)}).{typo}')


def _from_pair(
    fields: Mapping[str, Json], answer: str, *, question: str, extra: str = ""
) -> list[Message]:
    messages = _history(fields.get("history"))
    context = ""
    if extra and not is_nothing(value := fields.get(extra)):  # alpaca files write "" for none
        context = text(value, extra)
    asked = text(fields[question], question)
    messages.append(Message(role="user", content=asked, input=context))
    messages.append(Message(role="assistant", content=text(fields[answer], answer)))
    return messages


def _history(value: Json) -> list[Message]:
    if is_nothing(value):
        return []
    if not isinstance(value, list):
        raise RowError(f'"history" must be a list of pairs, not {kind(value)}')
    messages = []
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history {number} must be a pair [question, answer]")
        asked, answer = (text(item, f"history {number}") for item in pair)
        messages.append(Message(role="user", content=asked))
        messages.append(Message(role="assistant", content=answer))
    return messages


def _from_prompt(fields: Mapping[str, Json]) -> list[Message]:
    name = _answer(fields, "prompt")
    prompt, answer = fields["prompt"], fields[name]
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return _from_pair(fields, name, question="prompt")
    if not is_nothing(fields.get("history")):
        raise RowError('has "history" beside a list of messages: put its turns into "prompt"')
    if isinstance(prompt, list):
        messages = [as_context(message) for message in read_messages(prompt, "prompt")]
    else:
        messages = [Message(role="user", content=text(prompt, "prompt"))]
    if isinstance(answer, list):
        messages += read_messages(answer, name, first=len(messages) + 1)
    else:
        messages.append(Message(role="assistant", content=text(answer, name)))
    check_order(messages)
    return messages


def _no_shape(fields: Mapping[str, Json]) -> str:
    null = next((name for name in _READ_BY if name in fields), None)
    if null:
        due = "a list of messages" if null in _CHATS else "text"
        return f'"{null}" must be {due}, not null'
    names = list(fields)[:8]
    shown = ", ".join(shown_name(name) for name in names) or "none"
    question = next((name for name in _QUESTIONS if name in fields), None)
    if question:
        return f'has no "prompt" (fields: {shown}); if "{question}" is it: --map {question}=prompt'
    hint = next((hint for name in names if (hint := near(name, tuple(_READ_BY)))), "")
    chat = next((name for name in names if name.isidentifier() and _is_chat(fields[name])), "")
    if chat and not hint and len(chat) <= 40:
        hint = f" If the conversation is in it: --map {chat}=messages"
    return f"has no prompt, instruction, messages or conversations (fields: {shown}).{hint}"


def _is_chat(value: Json) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _canonical(messages: Sequence[Message]) -> str:
    """Messages as one text that no other messages give: every length stands before its text."""
    written, ids, results = "", [""], 0
    for message in messages:
        content = f"{message.content}\n{message.input}" if message.input else message.content
        more = ""
        if message.tool_calls:
            ids, results = [call.id for call in message.tool_calls], 0
            more = _JSON([[call.name, call.arguments] for call in message.tool_calls])
        elif message.role == "tool":
            id_ = message.tool_call_id
            more = str(ids.index(id_) if id_ and id_ in ids else results)
            results += 1
        reasoning = message.reasoning
        sizes = f"{message.role} {len(content)} {len(reasoning)} {len(more)}\n"
        written += f"{sizes}{content}{reasoning}{more}"
    return written
