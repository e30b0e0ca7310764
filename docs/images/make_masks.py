"""Draws the masks that the documentation shows: python docs/images/make_masks.py

Every picture is what duiti makes of a conversation with the embedded model's tokenizer: real
tokens, in order, each in its box. Trained ones are filled and underlined, so that nothing depends
on colours; the pictures bring their own ground, light or dark as the reader's system is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from transformers import AutoTokenizer

from duiti.data.jobs import make_encoder
from duiti.data.showing.island import parts
from duiti.data.showing.views import TokenView, token_views
from duiti.data.templates.template import Template, load_template
from duiti.tiny import model_path
from duiti.types import Message, Origin, Sample

MAX_WIDTH, MARGIN = 720, 20
CHARACTER, PAD, GAP = 7.6, 4, 2
BOX, LINE, HEAD = 24, 33, 28
STYLE = """
  .ground { fill: #ffffff; stroke: #d9dbd6 }
  text { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #5a626a }
  .head { font: 13px system-ui, sans-serif }
  .head { fill: #1d2125; font-weight: 600 }
  .given { fill: none; stroke: #c9cfd3 }
  .trained { fill: #d8efe3 }
  .bar { fill: #0b6b4c }
  .in { fill: #1d2125 }
  .escape { fill: #7a4fa3 }
  .weight { fill: #0b6b4c; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #1a1d20; stroke: #33393e }
    text { fill: #9ca5ad }
    .head, .in { fill: #e7e9eb }
    .given { stroke: #4a535b }
    .trained { fill: #16382c }
    .bar, .weight { fill: #62d3a7 }
    .escape { fill: #c5a1e6 }
  }
"""

# Shows what was thought in the newest turn only, as many reasoning models' templates do.
FORGETS_THINKING = r"""
{%- set seen = namespace(question=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{% set seen.question = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.reasoning_content and loop.index0 > seen.question -%}
{{- '<think>' + m.reasoning_content + '</think>\n' -}}
{%- endif -%}
{{- m.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""


def ask(content: str) -> Message:
    return Message(role="user", content=content)


def answer(
    content: str, *, reasoning: str = "", train: bool | None = None, weight: float = 1.0
) -> Message:
    return Message(
        role="assistant", content=content, reasoning=reasoning, train=train, weight=weight
    )


def pictures() -> dict[str, str]:
    """Each picture's file name and SVG."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    chatml = load_template("chatml", tokenizer)
    plain = load_template("human-assistant", tokenizer)
    conversation = (
        ask("When was Felix Corkett born?"),
        answer("Felix Corkett was born in the year 1928."),
        ask("伊朗在哪个大洲？"),
        answer("伊朗所在的大洲是亚洲。"),
    )
    choices = (
        ask("Name the genre of The Golden Clock."),
        answer("The genre is history.", train=False),
        ask("Tell me a hobby of Hana Yarlock."),
        answer("The favourite hobby is running.", weight=0.5),
        ask("伊朗在哪个大洲？"),
        answer("伊朗所在的大洲是亚洲。"),
    )
    thinking = (
        ask("What is 2 plus 3?"),
        answer("It is 5.", reasoning="2 and 3 make 5."),
        ask("And 4 more?"),
        answer("It is 9.", reasoning="5 and 4 make 9."),
    )
    forgets = Template("model", FORGETS_THINKING, tokenizer)
    return {
        "mask-chatml.svg": draw("Two answers in a ChatML conversation", chatml, conversation),
        "mask-human-assistant.svg": draw(
            "The same in plain text: Human and Assistant", plain, conversation
        ),
        "mask-choices.svg": draw(
            "An answer with train: false, one with weight: 0.5, and one as it comes",
            chatml,
            choices,
        ),
        "mask-unrolled.svg": draw(
            "A template that forgets earlier thinking: an example per answer", forgets, thinking
        ),
    }


def draw(title: str, template: Template, messages: Sequence[Message]) -> str:
    """The SVG of all examples that a conversation becomes."""
    encoder = make_encoder(template, date="2026-01-01")
    origin = Origin("conversation.jsonl", 1)
    encoded = encoder.encode(Sample(messages=tuple(messages), origin=origin))
    examples = [piece.example(origin) for piece in encoded.pieces]
    shapes: list[str] = []
    y, right = float(MARGIN), 0.0
    for number, example in enumerate(examples, start=1):
        name = f"Example {number}: " if len(examples) > 1 else ""
        share = f"{name}{example.num_supervised} of {len(example)} tokens are trained"
        shapes.append(_text(MARGIN, y + 12, share, "head"))
        y += HEAD
        views = token_views(example, template.tokenizer)
        drawn, end = _draw_example(views, y, shapes)
        y, right = end + MARGIN, max(right, drawn)
    width, height = right + MARGIN, y - (LINE - BOX) + 4
    description = f"{title}. Filled and underlined tokens are trained, the others are given."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)}'
            f' {_number(height)}" width="{_number(width)}" role="img" aria-labelledby="title">',
            f'<title id="title">{escape(description)}</title>',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{_number(width - 1)}"'
            f' height="{_number(height - 1)}" rx="10"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _draw_example(views: Sequence[TokenView], y: float, shapes: list[str]) -> tuple[float, float]:
    """Lay the tokens out in lines; where the longest ends, and the y below the last."""
    x, right, weight = float(MARGIN), 0.0, 1.0
    for view in views:
        found = parts(view.text)
        width = 2 * PAD + CHARACTER * sum(map(_columns, found))
        label = f"×{view.weight:g}" if view.weight not in (weight, 1) else ""
        weight = view.weight
        lead = CHARACTER * (len(label) + 1) if label else 0
        if x > MARGIN and x + lead + width > MAX_WIDTH - MARGIN:
            x, y = MARGIN, y + LINE
        if label:
            shapes.append(_text(x, y + 16, label, "weight"))
        shapes += _box(view, found, x + lead, y, width)
        x += lead + width + GAP
        right = max(right, x - GAP)
        if view.text.endswith("\n"):
            x, y = MARGIN, y + LINE
    return right, y + (LINE if x > MARGIN else 0)


def _box(view: TokenView, found: Sequence[str], x: float, y: float, width: float) -> list[str]:
    kind = "trained" if view.is_trained else "given"
    radius = 9 if view.is_special else 3
    shape = [
        f'<rect class="{kind}" x="{_number(x)}" y="{_number(y)}" width="{_number(width)}"'
        f' height="{BOX}" rx="{radius}"/>'
    ]
    if view.is_trained:
        shape.append(
            f'<rect class="bar" x="{_number(x)}" y="{_number(y + BOX + 1)}"'
            f' width="{_number(width)}" height="2.5"/>'
        )
    at = x + PAD
    for index, part in enumerate(found):
        if part.strip(" "):
            tone = "escape" if index % 2 else "in" if view.is_trained else ""
            lead = CHARACTER * (len(part) - len(part.lstrip(" ")))
            shape.append(_text(at + lead, y + 16, part.strip(" "), tone, fitted=True))
        at += CHARACTER * _columns(part)
    return shape


def _text(x: float, y: float, text: str, kind: str, *, fitted: bool = False) -> str:
    """A text; one that is fitted is as wide as its columns, whatever font the reader has."""
    fit = f' textLength="{_number(CHARACTER * _columns(text))}"' if fitted else ""
    tone = f' class="{kind}"' if kind else ""
    return f'<text x="{_number(x)}" y="{_number(y)}"{tone}{fit}>{escape(text)}</text>'


def _columns(text: str) -> float:
    """The width of a text in characters: East Asian ones take almost two."""
    return sum(1.75 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


if __name__ == "__main__":
    for name, svg in pictures().items():
        (Path(__file__).parent / name).write_text(svg, encoding="utf-8", newline="\n")
