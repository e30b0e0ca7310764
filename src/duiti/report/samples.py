"""Questions with the answers before and after, as HTML: bounded, escaped, differences marked.

    shown = show_samples(data.samples, budget=400_000)
    shown.articles; len(shown.articles) < len(data.samples)     # those that did not fit

Long texts are cut, and what was cut is counted. Where all samples do not fit, texts are cut shorter
first; then the last samples are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from duiti.data.showing.one_file import environment
from duiti.data.showing.views import segments
from duiti.report.differences import differences
from duiti.report.folder import Sample, TokenLoss

LIMITS = ((4000, 400), (2000, 200), (1000, 120), (500, 60), (200, 30))
"""Characters of a text and tokens of an answer, from the most to the least."""
HEAT = (0.05, 0.3, 1.0, 2.5, 5.0)
"""Nats from which a token is shown one step warmer."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSamples:
    """What of the samples is shown."""

    articles: Sequence[Markup]
    has_losses: bool
    has_tokens: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer beside the one that was expected."""

    name: str
    html: Markup
    says: str
    """`the same`, `other words throughout`, or empty where marks show the differences."""
    is_same: bool
    loss: float | None


def show_samples(samples: Sequence[Sample], *, budget: int) -> ShownSamples:
    """As many samples as fit into so many bytes."""
    articles: list[Markup] = []
    for characters, tokens in LIMITS:
        articles = [
            _article(sample, number, characters, tokens)
            for number, sample in enumerate(samples, start=1)
        ]
        if sum(map(_num_bytes, articles)) <= budget:
            break
    room = budget
    for number, article in enumerate(articles):
        room -= _num_bytes(article)
        if room < 0:
            articles = articles[:number]
            break
    return ShownSamples(
        articles=articles,
        has_losses=any(sample.gain is not None for sample in samples),
        has_tokens=any(sample.tokens for sample in samples),
    )


def ink(text: str, *, show_breaks: bool = False) -> Markup:
    """A text whose invisible characters are escapes of their own; line breaks stay line breaks."""
    found = []
    for index, part in enumerate(segments(text)):
        if index % 2 == 0:
            found.append(str(escape(part)))
            continue
        lines = [f"<i>{escape(line)}</i>" if line else "" for line in part.split("⏎")]
        found.append(("<i>⏎</i>\n" if show_breaks else "\n").join(lines))
    return Markup("".join(found))


def heat(loss: float | None) -> int:
    """How warm a token is shown, from 0 to 5."""
    return 0 if loss is None else sum(loss >= edge for edge in HEAT)


def _article(sample: Sample, number: int, characters: int, tokens: int) -> Markup:
    cut = [text[:characters] for text in (sample.prompt, sample.expected)]
    answers = [
        _answer("before", sample.base, sample, characters, sample.base_loss),
        _answer("after", sample.tuned, sample, characters, sample.tuned_loss),
    ]
    html = environment(_HERE).get_template("sample.html").render(
        number=number,
        prompt=ink(cut[0]),
        prompt_left=len(sample.prompt) - len(cut[0]),
        expected=ink(cut[1]),
        expected_left=len(sample.expected) - len(cut[1]),
        answers=answers,
        gain=sample.gain,
        tokens=_tokens(sample.tokens[:tokens]),
        tokens_left=max(0, len(sample.tokens) - tokens),
    )  # fmt: skip
    return Markup(html)


def _answer(name: str, text: str, sample: Sample, characters: int, loss: float | None) -> Answer:
    expected = sample.expected
    is_same = text.strip() == expected.strip()
    cut = text[:characters]
    pieces = differences(cut, expected=expected[:characters])
    left = f"… {len(text) - len(cut):,} more characters" if len(text) > len(cut) else ""
    says = "as expected" if is_same else "other words throughout" if pieces is None else ""
    html = ink(cut)
    if pieces is not None and not is_same:
        marks = {"extra": "ins", "missing": "del"}
        html = Markup("").join(
            ink(piece.text)
            if piece.kind == "same"
            else Markup("<{0}>{1}</{0}>").format(
                Markup(marks[piece.kind]), ink(piece.text, show_breaks=True)
            )
            for piece in pieces
        )
    if left:
        html += Markup('<span class="note">{}</span>').format(left)
    if not text:
        says = "an empty answer"
    return Answer(name=name, html=html, says=says, is_same=is_same, loss=loss)


def _tokens(tokens: Sequence[TokenLoss]) -> list[tuple[Markup, int, int, str]]:
    """Text, warmth before and after, and the numbers."""
    return [
        (
            ink(token.text[:60], show_breaks=True) or Markup("<i>⟨⟩</i>"),
            heat(token.before),
            heat(token.after),
            f"{_nats(token.before)} → {_nats(token.after)}",
        )
        for token in tokens
    ]


def _nats(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.2f}"


def _num_bytes(text: str) -> int:
    return len(text.encode())
