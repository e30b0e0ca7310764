"""Content of a message: text, or a list of typed parts.

    content = read_content(message["content"], "assistant")     # .text, .reasoning, .calls

| `type` of a part | what it holds stands in | on |
|---|---|---|
| `text` | `text` or `value` | all |
| `reasoning`, `thinking` | `reasoning`, `thinking`, `text` or `value` | assistant |
| `tool_call` | `tool_call` or `value`, or in the part itself as the fields of a call | assistant |
| `tool_result` | `content`, `text` or `value`; optional `name`, `tool_call_id` | tool |

Parts of one kind are joined with nothing in between. A `Message` has no place for their order, so
they must stand in the one in which templates write them: reasoning, text, calls. Images, audio and
the like are refused. The result of a tool may also be an object or a list: it becomes the text that
`json.dumps(…, ensure_ascii=False)` gives; a list of objects that all have a `type` is one of parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from duiti.data.rows.tools import read_calls
from duiti.data.rows.values import check_fields, check_json, either, kind, label, near, text
from duiti.errors import RowError
from duiti.types import Json, Role, ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the parts of a message say."""

    text: str = ""
    """Parts of text, or the result of a tool."""
    reasoning: str = ""
    """Parts of reasoning."""
    calls: tuple[ToolCall, ...] = ()
    """Parts that are calls."""
    name: str = ""
    """Of the function, where a result names it."""
    tool_call_id: str = ""
    """Of the call, where a result names it."""


NO_CONTENT = Content()

_OWNERS: dict[str, Role | None] = {
    "text": None,
    "reasoning": "assistant",
    "thinking": "assistant",
    "tool_call": "assistant",
    "tool_result": "tool",
}
_NOT_TEXT = ("image", "audio", "video", "file")


def read_content(value: Json, role: Role) -> Content:
    """What a message's content says; null says nothing.

    Raises:
        RowError: the reason why it is no content for that role.
    """
    if value is None:
        return NO_CONTENT
    if isinstance(value, str):
        return Content(text=value)
    if role == "tool" and not _is_parts(value):
        return Content(text=_result_text(value))
    if not isinstance(value, list):
        raise RowError(f'"content" must be text or a list of parts, not {kind(value)}')
    return _join(value, role)


def _join(parts: list[Json], role: Role) -> Content:
    found, place = [], 0
    for number, part in enumerate(parts, start=1):
        try:
            content = _part(part, role)
        except RowError as error:
            raise RowError(f"part {number}: {error}") from None
        before, place = place, _place(content, place)
        if place < before:
            reason = "reasoning, text and calls must stand in this order"
            raise RowError(f"part {number}: {reason}")
        found.append(content)
    if len(found) == 1:
        return found[0]
    if any(isinstance(part, dict) and part.get("type") == "tool_result" for part in parts):
        raise RowError("a tool_result must be its only part: give each a message of its own")
    return Content(
        text="".join(content.text for content in found),
        reasoning="".join(content.reasoning for content in found),
        calls=tuple(call for content in found for call in content.calls),
    )


def _place(content: Content, before: int) -> int:
    """Where a part stands in the order of templates; one that holds nothing stands anywhere."""
    if content.calls:
        return 2
    if content.text:
        return 1
    return 0 if content.reasoning else before


def _part(part: Json, role: Role) -> Content:
    if not isinstance(part, dict):
        raise RowError(f"must be an object, not {kind(part)}")
    type_ = part.get("type")
    if not isinstance(type_, str) or type_ not in _OWNERS:
        raise RowError(_no_type(type_))
    owner = _OWNERS[type_]
    if owner and owner != role:
        raise RowError(f"a {type_} belongs on a message from {owner}")
    if type_ == "text":
        return Content(text=_text(part, "text", "value"))
    if type_ == "tool_call":
        return Content(calls=_calls(part))
    if type_ == "tool_result":
        check_fields(part, ("type", "content", "text", "value", "name", "tool_call_id"))
        return Content(
            text=_result_text(either(part, "content", "text", "value")),
            name=label(part, "name"),
            tool_call_id=label(part, "tool_call_id"),
        )
    return Content(reasoning=_text(part, "reasoning", "thinking", "text", "value"))


def _no_type(value: Json) -> str:
    if not isinstance(value, str):
        return 'has no "type"'
    for word in _NOT_TEXT:
        if word in value:
            return f"is of the kind {word}, and only text is trained on"
    known = tuple(_OWNERS)
    return f'the "type" must be one of {", ".join(known)}.{near(value, known)}'


def _text(part: dict[str, Json], *names: str) -> str:
    check_fields(part, ("type", *names))
    return text(either(part, *names), names[0], may_be_empty=True)


def _calls(part: dict[str, Json]) -> tuple[ToolCall, ...]:
    value = either(part, "tool_call", "value")
    if value is None:
        return read_calls({name: held for name, held in part.items() if name != "type"}, "value")
    check_fields(part, ("type", "tool_call", "value"))
    return read_calls(value, "tool_call")


def _is_parts(value: Json) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)
    )


def _result_text(value: Json) -> str:
    if isinstance(value, dict | list):
        check_json(value, "content")
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else text(value, "content", may_be_empty=True)
