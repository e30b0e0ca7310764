"""What of a rendered conversation the model must produce: found by rendering, on any template.

    turns = find_turns(template, sample)        # one Turn per trained answer

For the answer at message i, serving would send `render(messages[:i], add_generation_prompt=True)`;
the finished conversation reads `render(messages[:i+1])`. Where the second begins with the first,
what follows is what the model has to produce, up to its stop token. No generation tags, no search
for marker strings, no private copy of a template. Where it does not begin so, there is no text that
the model could be trained to continue with, and the row is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duiti.data.template import Template
from duiti.errors import RowError
from duiti.types import Sample, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_turns(template: Template, sample: Sample, control: re.Pattern[str] | None) -> list[Turn]:
    """The trained turns of a sample, in order.

    Args:
        control: matches the tokenizer's control tokens (`control_tokens(tokenizer)`); a message
            that contains one is refused, as it would become a real one.

    Raises:
        RowError: the template refuses the conversation, or the answer cannot be found in it.
    """
    if control is not None:
        for number, message in enumerate(sample.messages, start=1):
            if found := control.search(message.content) or control.search(message.input):
                raise RowError(f"message {number} contains the control token {found.group()}")
    turns = []
    for i, message in enumerate(sample.messages):
        if message.role != "assistant" or message.train is False:
            continue
        prompt = template.prompt(sample.messages[:i])
        finished = template.transcript(sample.messages[: i + 1])
        if not finished.startswith(prompt):
            raise RowError(
                f"the template {template.name} writes a finished answer (message {i + 1})"
                " differently from the prompt that serving sends for it, so the prefix property"
                " does not hold"
            )
        produced = finished[len(prompt) :]
        turns.append(Turn(prompt, _up_to_stop(produced, template, control), is_trained=True))
    return turns


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern that matches the text of any special token; None where there are none."""
    texts = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content}
    if not texts:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


def _up_to_stop(produced: str, template: Template, control: re.Pattern[str] | None) -> str:
    if template.stop is not None:
        end = produced.rfind(template.stop)
        if end < 0:
            raise RowError(f"the template {template.name} lost the end of the answer")
        return produced[: end + len(template.stop)]
    # The content holds no control token, so the first one behind it is the stop token.
    found = control.search(produced) if control is not None else None
    if found is None or produced[found.end() :].strip():
        raise RowError(
            f"the template {template.name} does not end an answer with one stop token,"
            " so a model trained on it would not learn to stop"
        )
    return produced[: found.end()]
