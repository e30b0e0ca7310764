"""Which token ends an answer, asked of a template by rendering a conversation of our own.

    stop = Stops(renderer, control).of(message, Frame(has_tools=True))      # None: no token ends it

A known answer is rendered twice: finished, and followed by another turn. The token that both write
behind it is the stop (`<|im_end|>`; Phi-3 writes `<|endoftext|>` behind it only at the very end).
Where both write none in common, it is the first one behind the finished answer (gpt-oss says
`<|return|>` there and `<|end|>` in history), and where there is none either, the one that opens the
next turn, directly behind the answer (GLM-4 stops by `<|user|>` or `<|observation|>`).

Tool calls are asked apart, and so are conversations with tools or a system message: templates may
end their answers otherwise. What a wrong guess could do is bounded by `templates/spans.py`: an
answer is refused unless it contains the stop and no text follows that.
"""

from __future__ import annotations

from dataclasses import dataclass

from duiti.data.templates.calls import ANSWER, ASK, CALL, RESULT, SYSTEM, TOOL
from duiti.data.templates.control import Control, shared_length
from duiti.data.templates.render import Renderer
from duiti.errors import RowError
from duiti.types import Json, Message

_TEXT = ANSWER.content
"""How the probes' answers end: with this text, or with a call whose last argument it is."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a conversation has that may change how its answers end."""

    has_system: bool = False
    has_tools: bool = False


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
        self._known: dict[tuple[bool, Frame], Stop | None] = {}
        self._cues: dict[Frame, str] = {}

    def of(self, message: Message, frame: Frame) -> Stop | None:
        """The stop of an answer like this one; None where no token ends it.

        Raises:
            RowError: the template does not show such an answer.
        """
        key = bool(message.tool_calls), frame
        if key not in self._known:
            self._known[key] = self._ask(*key)
        return self._known[key]

    def cue(self, frame: Frame) -> str:
        """What a prompt ends with to call for an answer; empty where it cannot be told."""
        if frame not in self._cues:
            before, tools = _conversation(frame)
            try:
                prompt = self._renderer.prompt(before, tools)
                finished = self._renderer.transcript(before, tools)
            except RowError:
                prompt = finished = ""
            is_behind = prompt.startswith(finished)
            self._cues[frame] = prompt[len(finished) :] if is_behind else ""
        return self._cues[frame]

    def _ask(self, is_call: bool, frame: Frame) -> Stop | None:
        if self._renderer.spec.stop is not None:
            return Stop(self._renderer.spec.stop)
        if self._pattern is None:
            return None
        answer, reply = (CALL, RESULT) if is_call else (ANSWER, ASK)
        before, tools = _conversation(frame)
        finished = self._renderer.transcript([*before, answer], tools)
        end = finished.rfind(_TEXT)
        if end < 0:
            name = self._renderer.spec.name
            raise RowError(f"the template {name} does not show the text of an answer")
        continued = self._continued([*before, answer, reply], tools)
        prompt = self._renderer.prompt(before, tools)
        return self._from_tails(finished[end + len(_TEXT) :], continued, prompt)

    def _continued(self, messages: list[Message], tools: list[Json]) -> str:
        """What follows the answer when the conversation goes on; empty where it cannot."""
        try:
            text = self._renderer.prompt(messages, tools)
        except RowError:
            return ""
        end = text.rfind(_TEXT)
        return text[end + len(_TEXT) :] if end >= 0 else ""

    def _from_tails(self, finished: str, continued: str, prompt: str) -> Stop | None:
        assert self._pattern is not None
        shared = shared_length(finished, continued)
        in_both = [m for m in self._pattern.finditer(finished) if m.end() <= shared]
        if in_both:
            # The last one, as closing a call comes before closing the turn; but never behind the
            # tokenizer's own end, where generation stops.
            texts = [found.group() for found in in_both]
            eos = self._renderer.spec.special_tokens.get("eos_token")
            return Stop(eos if eos in texts else texts[-1])
        first = self._pattern.search(finished)
        # A template that always writes the cue for an answer ends none by it.
        if first and not prompt.endswith(finished[first.start() :]):
            return Stop(first.group())
        opener = self._pattern.search(continued)
        if opener is None or opener.group() == self._renderer.spec.special_tokens.get("bos_token"):
            return None
        before = continued[: opener.start()]
        if before.strip() != finished.strip():
            return None
        # White space in which the two differ; the rest depends on what the answer was.
        same = shared_length(finished, before)
        return Stop(opener.group(), True, finished[same:], before[same:])


def _conversation(frame: Frame) -> tuple[list[Message], list[Json]]:
    return [SYSTEM, ASK] if frame.has_system else [ASK], [TOOL] if frame.has_tools else []
