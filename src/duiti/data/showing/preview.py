"""The mask, made visible: which tokens are trained, in the terminal.

    print_mask(example, tokenizer, console)

With colour, trained text is tinted, special tokens stand out of their background and a line break
is ⏎ and a new line. Without, trained text stands between ⟦ and ⟧ (such a bracket in the text itself
is escaped), and an example that goes to a file is one line. A weight in the loss other than 1 is
written before what it weighs, as ×0.5. `token_views` gives the same token by token.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from duiti.data.showing.views import (
    TokenView,
    special_ids,
    texts_of,
    token_bytes,
    token_views,
    visible,
)
from duiti.types import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenView", "mask_text", "print_mask", "token_views"]

_BRACKETS = str.maketrans({"⟦": "\\u27e6", "⟧": "\\u27e7"})


def mask_text(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    colour: bool,
    breaks: bool | None = None,
) -> Text:
    """The example as text with its trained part marked.

    Args:
        colour: tint what is trained; else put it between ⟦ and ⟧.
        breaks: go to a new line behind each ⏎; None: where there is colour.
    """
    breaks = colour if breaks is None else breaks
    text = Text()
    for (is_trained, weight), run in groupby(_runs(example, tokenizer), key=lambda run: run[:2]):
        tint = "bold green" if is_trained else "dim"
        mark = f"×{weight:g} " if weight != 1 else ""
        if colour:
            text.append(mark, "italic cyan")
        elif is_trained:
            text.append(f"⟦{mark}")
        for _, _, is_special, shown in run:
            if colour:
                text.append(_laid_out(shown, breaks), f"{tint} reverse" if is_special else tint)
            else:
                text.append(_laid_out(shown.translate(_BRACKETS), breaks))
        if is_trained and not colour:
            text.append("⟧")
    return text


def print_mask(example: Example, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print one example with its place and its share of trained tokens."""
    colour = console.is_terminal and not console.no_color
    share = f"{example.num_supervised} of {len(example)} tokens trained"
    console.print(Text(f"{visible(str(example.origin))}  {share}", style="bold" if colour else ""))
    text = mask_text(example, tokenizer, colour=colour, breaks=console.is_terminal)
    console.print(text, soft_wrap=True)


def _runs(
    example: Example, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[bool, float, bool, str]]:
    """Trained or not, weight, special or not, and text of tokens in a row that have them in common.

    Not token by token: a character that is split over several is whole within a run."""
    ids = example.input_ids.tolist()
    special = special_ids(tokenizer)
    trained = (example.labels != IGNORE_INDEX).tolist()
    weights = [1.0] * len(ids) if example.weights is None else example.weights.tolist()
    keys = [
        (is_trained, weight if is_trained else 1.0, token in special)
        for token, is_trained, weight in zip(ids, trained, weights, strict=True)
    ]
    runs = [
        (key, b"".join(piece for _, piece in run))
        for key, run in groupby(
            zip(keys, token_bytes(ids, tokenizer), strict=True), key=lambda pair: pair[0]
        )
    ]
    texts = texts_of([piece for _, piece in runs])
    return [(*key, text) for (key, _), text in zip(runs, texts, strict=True)]


def _laid_out(text: str, breaks: bool) -> str:
    """The text with nothing invisible in it; a new line behind each ⏎ where breaks are wanted."""
    lines = [visible(line) for line in text.split("\n")]
    return ("⏎\n" if breaks else "⏎").join(lines)
