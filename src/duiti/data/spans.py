"""What of a rendered conversation the model must produce: found by rendering, on any template.

    finder = TurnFinder(renderer, control, rules)
    found = finder.find(sample)         # found.turns: one Turn per trained answer; found.notes

For the answer at message i, serving would send `render(messages[:i], add_generation_prompt=True)`;
the finished conversation reads `render(messages[:i+1])`. Where the second begins with the first,
what follows is what the model has to produce, up to its stop token. No generation tags, no search
for marker strings, no private copy of a template.

Where the prompt ends by opening the thinking, and the finished text shows only what came after it
(DeepSeek-R1), the model has to produce the thinking and its end before that text. Anything else is
refused: there is no text that the model could be trained to continue with.

Which token stops an answer is asked of the template once (`data/stops.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from duiti.data.control import Control
from duiti.data.render import Renderer
from duiti.data.stops import Stop, Stops, shared_length
from duiti.errors import RowError
from duiti.types import Json, Message, Sample, Turn

TrainOn = Literal["assistant", "last", "all"]


@dataclass(slots=True)
class Found:
    """The trained turns of a sample, and what the template did to its text."""

    turns: list[Turn] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    """Sentences without content, to be counted over the rows."""


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
        stops = [self._stops.of(message) for message in messages]  # settles the shape of calls
        dicts = [self.renderer.as_dict(message) for message in messages]
        found = Found()
        trained = trained_messages(messages, self._train_on)
        for i in trained:
            prompt = self.renderer.render(dicts[:i], tools, cue=True)
            finished = self.renderer.render(dicts[: i + 1], tools, cue=False)
            produced = self._produced(dicts[: i + 1], tools, prompt, finished, messages[i])
            answer = _up_to_stop(produced, stops[i], self.renderer.spec.name, i + 1)
            found.turns.append(Turn(prompt, answer, weight=messages[i].weight))
            if lost := _lost_in_answer(messages[i], answer):
                found.notes.add(lost)
        for i in trained[-1:]:
            found.notes |= _lost_in_prompt(messages[:i], found.turns[-1].prompt)
        if self._control.softly_acts(sample.messages):
            found.notes.add("a message holds a token that the template writes too, and it acts")
        return found

    def _produced(
        self,
        dicts: Sequence[dict[str, Json]],
        tools: Sequence[Json],
        prompt: str,
        finished: str,
        message: Message,
    ) -> str:
        """The text that follows the prompt in the finished conversation."""
        if finished.startswith(prompt):
            return finished[len(prompt) :]
        name, number = self.renderer.spec.name, len(dicts)
        if not prompt.rstrip().endswith("<think>"):
            produced = self._produced_alone(dicts, tools, prompt, finished)
            if produced is not None:
                return produced
            raise RowError(
                f"the template {name} writes a finished answer (message {number}) differently from"
                " the prompt that serving sends for it, so what the model has to produce cannot be"
                " proven"
            )
        produced = None
        if not message.reasoning and "</think>" not in message.content:
            # How this template would write a thought shows how it would write none.
            thinking = {**dicts[-1], "thinking": _THOUGHT, "reasoning_content": _THOUGHT}
            with_thought = self.renderer.render([*dicts[:-1], thinking], tools, cue=False)
            if with_thought.startswith(prompt + _THOUGHT):
                produced = with_thought[len(prompt + _THOUGHT) :]
        if produced is None:
            shared = shared_length(prompt, finished)
            produced = _behind_thought(prompt[shared:], finished[shared:], message)
        if produced is None:
            raise RowError(
                f"the template {name} opens the thinking in the prompt and leaves it out of a"
                f" finished answer (message {number}): give reasoning_content and content apart"
            )
        return produced

    def _produced_alone(
        self, dicts: Sequence[dict[str, Json]], tools: Sequence[Json], prompt: str, finished: str
    ) -> str | None:
        """For a template that rewrites what stands *before* an answer once it is given (gpt-oss
        takes earlier analysis away): what the answer reads like behind a question alone, if the
        finished text ends with just that, behind the same cue."""
        pattern = self._control.pattern
        ask = next((item for item in dicts if item["role"] == "user"), None)
        if ask is None or pattern is None:
            return None
        short = self.renderer.render([ask], tools, cue=True)
        whole = self.renderer.render([ask, dicts[-1]], tools, cue=False)
        produced = whole[len(short) :]
        cues = list(pattern.finditer(prompt))
        if not (whole.startswith(short) and produced and finished.endswith(produced) and cues):
            return None
        cue = prompt[cues[-1].start() :]
        return produced if finished.endswith(cue + produced) else None


_THOUGHT = "zqxthought"


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
    """What the model has to produce where its prompt has opened the thinking, and the finished text
    shows only what came after it: the thinking, its end, and that text. None: it shows something
    else. An answer without a thought closes the thinking at once, as Qwen's templates write it."""
    if opening.strip() != "<think>":
        return None
    if "</think>" in message.content:
        visible = message.content.split("</think>")[-1]
        if message.content.startswith(opening) and rest.startswith(visible):
            return message.content[len(opening) :] + rest[len(visible) :]
        return None
    if not rest.startswith(message.content):
        return None
    return f"{message.reasoning}\n</think>\n\n{rest}"


def _up_to_stop(produced: str, stop: Stop | None, name: str, number: int) -> str:
    if stop is None:
        raise RowError(
            f"the template {name} does not end an answer with a token of its own (message"
            f" {number}), so a model trained on it would not learn to stop"
        )
    end = produced.rfind(stop.text)
    if end >= 0:
        return produced[: end + len(stop.text)]
    if stop.is_next and produced.endswith(stop.tail):
        # What opens the next turn is what ends this one (GLM-4).
        return produced[: len(produced) - len(stop.tail)] + stop.before + stop.text
    raise RowError(f"the template {name} lost the end of the answer (message {number})")


def _lost_in_answer(message: Message, answer: str) -> str | None:
    """What the template did to an answer's text, if anything."""
    if message.reasoning and message.reasoning.strip() not in answer:
        return "the template leaves out the reasoning of an answer"
    if message.content in answer:
        return None
    if message.content.strip() in answer:
        return "the template strips white space around an answer"
    return "the template rewrites the text of an answer"


def _lost_in_prompt(messages: Sequence[Message], prompt: str) -> set[str]:
    """What the template did to the text of the messages before an answer."""
    notes = set()
    for message in messages:
        if message.role == "assistant" or message.content in prompt:
            continue
        if message.content.strip() in prompt:
            notes.add(f"the template strips white space around a {message.role} message")
        elif _as_json(message.content) not in prompt:
            notes.add(f"the template rewrites or leaves out a {message.role} message")
    return notes


def _as_json(text: str) -> str:
    """As gpt-oss writes tool results: inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
