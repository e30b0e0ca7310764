"""What of a rendered conversation the model must produce: found by rendering, on any template.

    finder = TurnFinder(renderer, control, train_on="assistant")
    found = finder.find(sample)         # found.turns: one Turn per trained answer; found.notes

For the answer at message i, serving would send `render(messages[:i], add_generation_prompt=True)`;
the finished conversation reads `render(messages[:i+1])`. Where the second begins with the first,
what follows is what the model has to produce, up to its stop token. No generation tags, no search
for marker strings, no private copy of a template.

Where the prompt ends by opening the thinking, and the finished text shows only what came after it
(DeepSeek-R1), the model has to produce the thinking and its end before that text; where the prompt
has closed it, too, that text alone. Anything else is refused: there is no text that the model could
be trained to continue with.

Which token stops an answer is asked of the template once (`data/templates/stops.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from duiti.data.templates.calls import as_functions
from duiti.data.templates.control import Control
from duiti.data.templates.lossy import lost_in_answer, lost_in_prompt
from duiti.data.templates.render import Renderer
from duiti.data.templates.stops import Frame, Stop, Stops
from duiti.errors import RowError
from duiti.types import Json, Message, Sample, Turn

TrainOn = Literal["assistant", "last", "all"]


@dataclass(slots=True)
class Found:
    """The trained turns of a sample, and what the template did to its text."""

    turns: list[Turn] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    """Sentences without content, to be counted over the rows."""


_SAID = ("content", "reasoning_content", "thinking", "input")


class TurnFinder:
    """Finds turns on one template."""

    def __init__(self, renderer: Renderer, control: Control, *, train_on: TrainOn) -> None:
        self.renderer = renderer
        self._control = control
        self._train_on = train_on
        self._stops = Stops(renderer, control)

    def find(self, sample: Sample) -> Found:
        """The trained turns of a sample, in order.

        Raises:
            RowError: the template refuses the conversation, or an answer cannot be proven.
            TemplateFault: the template must not be used at all.
        """
        messages = self._control.treat(sample.messages)
        tools = self._control.treat_tools(sample.tools)
        try:
            found = self._find(messages, tools)
        except RowError:
            wrapped = as_functions(tools)
            if wrapped is None:
                raise
            found = self._find(messages, wrapped)
            found.notes.add("tools are handed over as functions, the one form the template reads")
        if self._control.softly_acts(sample.messages):
            found.notes.add("a message holds a token that the template writes too, and it acts")
        return found

    def _find(self, messages: Sequence[Message], tools: Sequence[Json]) -> Found:
        if any(m.tool_calls for m in messages) and self.renderer.call_shape is None:
            raise RowError(f"the template {self.renderer.spec.name} cannot write tool calls")
        dicts = [self.renderer.as_dict(message) for message in messages]
        frame = Frame(has_system=messages[0].role == "system", has_tools=bool(tools))
        found = Found()
        trained = trained_messages(messages, self._train_on)
        for i in trained:
            row = _Row(dicts[: i + 1], tools, messages[i], frame)
            prompt = self.renderer.render(dicts[:i], tools, cue=True)
            finished = self.renderer.render(row.dicts, tools, cue=False)
            produced = self._produced(row, prompt, finished, found.notes)
            stop = self._stops.of(messages[i], frame)
            answer = self._up_to_stop(produced, stop, row.number)
            found.turns.append(Turn(prompt, answer, weight=messages[i].weight))
            found.notes |= lost_in_answer(messages[i], prompt, answer)
        for i in trained[-1:]:
            found.notes |= lost_in_prompt(messages[:i], tools, found.turns[-1].prompt)
        if any("rewrites" in note for note in found.notes):
            self._refuse_arisen(dicts[: trained[-1] + 1], tools)
        return found

    def _refuse_arisen(self, dicts: Sequence[dict[str, Json]], tools: Sequence[Json]) -> None:
        """A template that rewrites text can make control tokens of it (`|lower`, `|replace`): then
        there are more of them than where the same messages say nothing."""
        pattern = self._control.pattern
        if pattern is None or self._control.mode == "allow":
            return
        silent = [{**item, **{key: "zqxtext" for key in _SAID if item.get(key)}} for item in dicts]
        texts = [self.renderer.render(each, tools, cue=False) for each in (dicts, silent)]
        said, written = (len(pattern.findall(text)) for text in texts)
        if said > written:
            raise RowError(
                f"the template {self.renderer.spec.name} makes a control token of a message's text"
            )

    def _produced(self, row: _Row, prompt: str, finished: str, notes: set[str]) -> str:
        """The text that follows the prompt in the finished conversation."""
        name = self.renderer.spec.name
        if finished.startswith(prompt):
            return self._without_cue(row, finished[len(prompt) :], notes)
        closed = _CLOSED.search(prompt)
        if closed is not None:
            if row.message.reasoning or "</think>" in row.message.content:
                raise RowError(
                    f"the template {name} closes the thinking in the prompt that serving sends, so"
                    f" an answer cannot be given with a thought (message {row.number})"
                )
            if finished.startswith(prompt[: closed.start()]):
                return finished[closed.start() :]
        opened = _OPENED.search(prompt)
        if opened is not None and finished.startswith(prompt[: opened.start()]):
            return self._behind_thought(row, prompt, finished, opened.start())
        produced = self._produced_alone(row, prompt, finished)
        if produced is None:
            raise RowError(
                f"the template {name} writes a finished answer (message {row.number}) differently"
                " from the prompt that serving sends for it, so what the model has to produce"
                " cannot be proven"
            )
        return produced

    def _behind_thought(self, row: _Row, prompt: str, finished: str, start: int) -> str:
        """What the model has to produce where its prompt has opened the thinking, and the finished
        text shows something else from there: the thought, its end, and what comes after."""
        produced = self._behind_no_thought(row, prompt)
        if produced is None:
            produced = _behind_thought(prompt[start:], finished[start:], row.message)
        if produced is None:
            raise RowError(
                f"the template {self.renderer.spec.name} opens the thinking in the prompt and"
                f" leaves it out of a finished answer (message {row.number}): give"
                " reasoning_content and content apart"
            )
        return produced

    def _without_cue(self, row: _Row, produced: str, notes: set[str]) -> str:
        """For a template whose prompt lacks the cue of an answer, which the finished text then has
        (DiffusionGemma, behind the result of a tool): the cue is never for the model to say."""
        pattern = self._control.pattern
        opening = pattern.match(produced) if pattern is not None else None
        cue = self._stops.cue(row.frame) if opening is not None else ""
        if opening is None or not cue.startswith(opening.group()):
            return produced
        if not produced.startswith(cue):
            raise RowError(
                f"the prompt that serving sends with the template {self.renderer.spec.name} lacks"
                f" the beginning of an answer (message {row.number})"
            )
        notes.add("the template's prompt lacks the cue of an answer, which is not trained")
        return produced[len(cue) :]

    def _behind_no_thought(self, row: _Row, prompt: str) -> str | None:
        """What the model has to produce for an answer without a thought where its prompt has opened
        the thinking: how this template would write a thought shows how it would write none."""
        if row.message.reasoning or "</think>" in row.message.content:
            return None
        thinking = {**row.dicts[-1], "thinking": _THOUGHT, "reasoning_content": _THOUGHT}
        finished = self.renderer.render([*row.dicts[:-1], thinking], row.tools, cue=False)
        opening = prompt + _THOUGHT
        return finished[len(opening) :] if finished.startswith(opening) else None

    def _produced_alone(self, row: _Row, prompt: str, finished: str) -> str | None:
        """For a template that rewrites what stands *before* an answer once it is given (gpt-oss
        takes earlier analysis away): what the answer reads like behind a question alone, if the
        finished text ends with just that, behind the same cue."""
        pattern = self._control.pattern
        ask = next((item for item in row.dicts if item["role"] == "user"), None)
        if ask is None or pattern is None:
            return None
        short = self.renderer.render([ask], row.tools, cue=True)
        whole = self.renderer.render([ask, row.dicts[-1]], row.tools, cue=False)
        produced = whole[len(short) :]
        cues = list(pattern.finditer(prompt))
        if not (whole.startswith(short) and produced and finished.endswith(produced) and cues):
            return None
        cue = prompt[cues[-1].start() :]
        return produced if finished.endswith(cue + produced) else None

    def _up_to_stop(self, produced: str, stop: Stop | None, number: int) -> str:
        name = self.renderer.spec.name
        if stop is None:
            raise RowError(
                f"the template {name} does not end an answer with a token of its own (message"
                f" {number}), so a model trained on it would not learn to stop"
            )
        if stop.is_next and produced.endswith(stop.tail):
            # What opens the next turn is what ends this one (GLM-4).
            return produced[: len(produced) - len(stop.tail)] + stop.before + stop.text
        answer, found, rest = produced.rpartition(stop.text)
        if not found:
            raise RowError(f"the template {name} lost the end of the answer (message {number})")
        if self._control.pattern is not None and self._control.pattern.sub("", rest).strip():
            raise RowError(
                f"the template {name} writes text behind the token that ends an answer (message"
                f" {number})"
            )
        return answer + found


@dataclass(frozen=True, slots=True)
class _Row:
    """A conversation up to an answer, as a template gets it."""

    dicts: Sequence[dict[str, Json]]
    """The answer is the last."""
    tools: Sequence[Json]
    message: Message
    """The answer."""
    frame: Frame

    @property
    def number(self) -> int:
        """Of the answer among the messages, from 1."""
        return len(self.dicts)


_THOUGHT = "zqxthought"
_OPENED = re.compile(r"<think>\s*\Z")
_CLOSED = re.compile(r"<think>\s*</think>\s*\Z")
"""The beginning of a thought, and an empty one, at the end of a prompt."""


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    """Indices of the answers that are trained. A message's own `train` decides before the setting.

    Raises:
        RowError: none is left, or a row asks for what `all` cannot give.
    """
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if train_on == "all":
        if any(messages[i].train is False or messages[i].weight != 1 for i in answers):
            raise RowError(
                'has "train" or "weight" on a message, and train_on: all trains the whole'
            )
        return answers[-1:]
    last = answers[-1:]
    chosen = [
        i
        for i in answers
        if messages[i].weight != 0
        and (
            messages[i].train is True
            or (messages[i].train is None and (train_on != "last" or i in last))
        )
    ]
    if not chosen:
        raise RowError("no answer of it is trained")
    return chosen


def _behind_thought(opening: str, rest: str, message: Message) -> str | None:
    """The thought, its end and the rest, which shows only what came after it. None: it shows
    something else. An answer without a thought closes it at once, as Qwen's templates write it."""
    if "</think>" in message.content:
        visible = message.content.split("</think>")[-1]
        if message.content.startswith(opening) and rest.startswith(visible):
            return message.content[len(opening) :] + rest[len(visible) :]
        return None
    if not rest.startswith(message.content):
        return None
    return f"{message.reasoning}\n</think>\n\n{rest}"
