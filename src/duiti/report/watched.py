"""How the answers to the same few questions changed while the model was trained, as HTML.

    for question in show_watched(data.moments):
        question.prompt
        for label, answer in question.answers: ...       # `update 40`

Texts are cut short and of many measurements an even choice is shown, so that the page stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from duiti.report.folder import Moment
from duiti.report.samples import ink

MAX_QUESTIONS = 4
MAX_MOMENTS = 12
MAX_CHARACTERS = 400
"""Of a question, and of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A question, and its answers as training went on."""

    prompt: Markup
    answers: Sequence[tuple[int, Markup]]
    """Update, and what the model wrote behind it."""


def show_watched(moments: Sequence[Moment]) -> list[Watched]:
    """By question; first and last measurement are always among those that are shown."""
    prompts = dict.fromkeys(given.prompt for moment in moments for given in moment.answers)
    last, most = len(moments) - 1, min(len(moments), MAX_MOMENTS)
    chosen = [moments[round(i * last / max(1, most - 1))] for i in range(most)]
    return [
        Watched(
            prompt=_cut(prompt),
            answers=[
                (moment.step, _cut(given.answer))
                for moment in chosen
                for given in moment.answers
                if given.prompt == prompt
            ],
        )
        for prompt in list(prompts)[:MAX_QUESTIONS]
    ]


def _cut(text: str) -> Markup:
    return ink(text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "…")
