"""Which token ends an answer, asked of a template by rendering a conversation of our own.

    stop = Stops(renderer, control).of(message)         # None: the template ends it with no token

A known answer is rendered twice: finished, and followed by another turn. The token that both write
behind it is the stop (`<|im_end|>`; Phi-3 writes `<|endoftext|>` behind it only at the very end).
Where both write none in common, it is the first one behind the finished answer (gpt-oss says
`<|return|>` there and `<|end|>` in history), and where there is none either, the one that opens the
next turn, directly behind the answer (GLM-4 stops by `<|user|>` or `<|observation|>`).

Tool calls are asked apart: they may end otherwise, and templates differ in how they can read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from duiti.data.control import Control
from duiti.data.render import CallShape, Renderer
from duiti.errors import RowError
from duiti.types import Message, ToolCall

_ASK = Message(role="user", content="zqxwhat")
_ANSWER = Message(role="assistant", content="zqxtext")
_CALL = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(name="zqxname", arguments={"zqxkey": "zqxtext"}, id="zqx000001"),),
)
_RESULT = Message(role="tool", content="zqxresult", name="zqxname", tool_call_id="zqx000001")
_SHAPES = [
    CallShape(arguments_as_text=text, has_content=content)
    for text in (False, True)
    for content in (True, False)
]


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of an answer."""

    text: str
    """Of the stop token."""
    is_next: bool = False
    """It opens the next turn; the finished text does not show it."""
    tail: str = ""
    """Where `is_next`: what the finished text has behind the answer, in place of …"""
    before: str = ""
    """… what stands between answer and stop."""


class Stops:
    """The stops of one template; each is asked for once."""

    def __init__(self, renderer: Renderer, control: Control) -> None:
        self._renderer = renderer
        self._pattern = control.pattern
        self._known: dict[bool, Stop | None] = {}

    def of(self, message: Message) -> Stop | None:
        """The stop of an answer like this one; None where no token ends it, or it does not matter.

        Raises:
            RowError: the message calls tools, and the template has no way to write that.
        """
        if message.role != "assistant":
            return None
        is_call = bool(message.tool_calls)
        if is_call not in self._known:
            self._known[is_call] = self._ask_calls() if is_call else self._ask(_ANSWER, _ASK)
        found = self._known[is_call]
        if is_call and found is None:
            raise RowError(f"the template {self._renderer.spec.name} cannot write tool calls")
        return found

    def _ask_calls(self) -> Stop | None:
        """Also settles in which shape the template reads tool calls: the first that it shows."""
        usual = self._renderer.shape
        for shape in _SHAPES:
            self._renderer.shape = shape
            found = self._ask(_CALL, _RESULT)
            if found is not None:
                return found
        self._renderer.shape = usual
        return None

    def _ask(self, answer: Message, reply: Message) -> Stop | None:
        declared = self._renderer.spec.stop
        if declared is not None:
            return Stop(declared) if not answer.tool_calls else None
        if self._pattern is None:
            return None
        try:
            finished = self._renderer.transcript([_ASK, answer])
        except RowError:
            return None
        if answer.tool_calls and not ("zqxname" in finished and "zqxkey" in finished):
            return None
        end = finished.rfind("zqxtext")
        if end < 0:
            name = self._renderer.spec.name
            raise RowError(f"the template {name} does not show the text of an answer")
        tail = finished[end + len("zqxtext") :]
        return self._from_tails(tail, self._continued(answer, reply))

    def _continued(self, answer: Message, reply: Message) -> str:
        """What follows the answer when the conversation goes on; empty where it cannot."""
        try:
            text = self._renderer.prompt([_ASK, answer, reply])
        except RowError:
            return ""
        end = text.rfind("zqxtext")
        return text[end + len("zqxtext") :] if end >= 0 else ""

    def _from_tails(self, finished: str, continued: str) -> Stop | None:
        assert self._pattern is not None
        shared = shared_length(finished, continued)
        in_both = [m for m in self._pattern.finditer(finished) if m.end() <= shared]
        if in_both:
            return Stop(in_both[-1].group())
        if first := self._pattern.search(finished):
            return Stop(first.group())
        opener = self._pattern.search(continued)
        if opener is None:
            return None
        before = continued[: opener.start()]
        is_next = before.strip() == finished.strip()
        return Stop(opener.group(), True, finished, before) if is_next else None


def shared_length(one: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
