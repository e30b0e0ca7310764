"""Tools of a row: the functions that the assistant may call, and its calls of them.

    read_tools(fields["tools"])                 # a list of objects, or that list as a string
    read_calls(message["tool_calls"], "tool_calls")

A tool is kept exactly as the row describes it: nothing is added, dropped or renamed, at any depth.
A call is `{"name", "arguments"}`, or OpenAI's `{"id", "type": "function", "function": {…}}`; its
arguments are an object, or a string of JSON that says one. A call without parameters says `{}`.
"""

from __future__ import annotations

from duiti.data.rows.values import (
    check_fields,
    check_json,
    is_nothing,
    kind,
    label,
    parse_json,
    text,
)
from duiti.errors import RowError
from duiti.types import Json, ToolCall

_FLAT = ("id", "type", "name", "arguments")
_OUTER = ("id", "type", "function")
_INNER = ("name", "arguments")


def read_tools(value: Json) -> tuple[Json, ...]:
    """The tools of a row; none for null or an empty text.

    Raises:
        RowError: not a list of objects.
    """
    if is_nothing(value):
        return ()
    if isinstance(value, str):
        value = parse_json(value, "tools")
        if value is None:  # how a table writes that a row has none
            return ()
    else:
        check_json(value, "tools")
    if not isinstance(value, list):
        raise RowError(f'"tools" must be a list, or one as a string of JSON, not {kind(value)}')
    for number, tool in enumerate(value, start=1):
        if not isinstance(tool, dict):
            raise RowError(f"tool {number} must be an object, not {kind(tool)}")
    return tuple(value)


def read_calls(value: Json, name: str) -> tuple[ToolCall, ...]:
    """The calls that a field holds: one, a list of them, or either as a string of JSON.

    Raises:
        RowError: the reason why it means none, with the number of the call.
    """
    if isinstance(value, str):
        value = parse_json(value, name)
    items = value if isinstance(value, list) else [value]
    calls = []
    for number, item in enumerate(items, start=1):
        try:
            calls.append(_call(item))
        except RowError as error:
            raise RowError(f"call {number}: {error}") from None
    return tuple(calls)


def _call(value: Json) -> ToolCall:
    if not isinstance(value, dict):
        raise RowError(f"must be an object, not {kind(value)}")
    function = value.get("function")
    if function is None:
        check_fields(value, _FLAT)
        function = value
    elif isinstance(function, dict):
        check_fields(value, _OUTER)
        check_fields(function, _INNER)
    else:
        raise RowError(f'"function" must be an object, not {kind(function)}')
    if value.get("type") not in (None, "function"):
        raise RowError('the "type" of a call must be "function"')
    return ToolCall(
        name=text(function.get("name"), "name"),
        arguments=_arguments(function.get("arguments")),
        id=label(value, "id"),
    )


def _arguments(value: Json) -> dict[str, Json]:
    if value is None or value == "":
        raise RowError('has no "arguments": write {} for none')
    if isinstance(value, str):
        value = parse_json(value, "arguments")
    else:
        check_json(value, "arguments")
    if not isinstance(value, dict):
        raise RowError(f'"arguments" must be an object, not {kind(value)}')
    return value
