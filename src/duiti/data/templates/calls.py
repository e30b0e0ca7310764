"""Tool calls, as a template can read them: found by showing it one of our own.

    shape = find_shape(renderer)        # None: the template writes no tool calls
    values = shape.call(tool_call)

Templates differ: some take the arguments of a call as an object, some as a string of JSON; some
want a message that only calls to have empty content, some to have none. A shape is right if the
call shows in the text, and not as Python would print it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from duiti.errors import RowError
from duiti.types import Json, Message, ToolCall

Render: TypeAlias = "Callable[[Sequence[Message], Sequence[Json], CallShape], str]"
"""The text of finished turns, tool calls handed over in a given shape."""

ASK = Message(role="user", content="zqxwhat")
SYSTEM = Message(role="system", content="zqxrule")
ANSWER = Message(role="assistant", content="zqxtext")
CALL = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(name="zqxname", arguments={"zqxkey": "zqxtext"}, id="zqx000001"),),
)
RESULT = Message(role="tool", content="zqxresult", name="zqxname", tool_call_id="zqx000001")
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "zqxname",
        "description": "zqxuse",
        "parameters": {
            "type": "object",
            "properties": {"zqxkey": {"type": "string", "description": "zqxuse"}},
            "required": ["zqxkey"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class CallShape:
    """How tool calls are handed to a template."""

    arguments_as_text: bool = False
    """`arguments` as a string of JSON instead of an object."""
    has_content: bool = True
    """An assistant turn without text has `content: ""`, rather than no content."""

    def call(self, call: ToolCall) -> dict[str, Json]:
        """A call as `tool_calls` of a message hold it."""
        arguments = call.arguments
        if self.arguments_as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        function: dict[str, Json] = {"name": call.name, "arguments": arguments}
        values: dict[str, Json] = {"type": "function", "function": function}
        return {"id": call.id, **values} if call.id else values


_SHAPES = [
    CallShape(arguments_as_text=text, has_content=content)
    for text in (False, True)
    for content in (True, False)
]
_FRAMES: list[tuple[list[Message], list[Json]]] = [
    ([ASK], [TOOL]),
    ([ASK], []),
    ([SYSTEM, ASK], [TOOL]),
    ([SYSTEM, ASK], []),
]
"""Some templates write calls only where there are tools, or a system message."""


def find_shape(render: Render) -> CallShape | None:
    """The first shape in which a template shows a call; None: it shows none."""
    for shape in _SHAPES:
        for before, tools in _FRAMES:
            try:
                text = render([*before, CALL], tools, shape)
            except RowError:
                continue
            if _shows(text):
                return shape
    return None


def _shows(text: str) -> bool:
    behind = text[text.rfind(ASK.content) :]
    call = CALL.tool_calls[0]
    assert isinstance(call.arguments, Mapping)
    words = (call.name, *call.arguments, *map(str, call.arguments.values()))
    return all(word in behind for word in words) and repr(call.arguments) not in behind


def as_functions(tools: Sequence[Json]) -> Sequence[Json] | None:
    """Flat descriptions of tools as servers hand them over, `{"type": "function", "function": …}`;
    None where none is flat."""
    if not any(isinstance(tool, dict) and "function" not in tool for tool in tools):
        return None
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "function" not in tool
        else tool
        for tool in tools
    ]
