"""The mask, made visible: which tokens are trained, in the terminal.

    print_mask(example, tokenizer, console)

Trained text is tinted (and set between ⟦ ⟧ where there is no colour); special tokens are shown as
they are, line breaks as ⏎.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from duiti.types import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def mask_text(example: Example, tokenizer: PreTrainedTokenizerBase, *, colour: bool) -> Text:
    """The example as text with its trained part marked."""
    text = Text()
    pairs = zip(example.input_ids.tolist(), example.labels.tolist(), strict=True)
    for is_trained, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        # Runs, not single tokens: a character can be split over several byte-level tokens.
        decoded = tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        shown = "".join(_visible(character) for character in str(decoded))
        if colour:
            text.append(shown, style="bold green" if is_trained else "dim")
        else:
            text.append(f"⟦{shown}⟧" if is_trained else shown)
    return text


def print_mask(example: Example, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print one example with its place and its share of trained tokens."""
    colour = console.is_terminal and not console.no_color
    share = f"{example.num_supervised} of {len(example)} tokens trained"
    console.print(Text(f"{example.origin}  {share}", style="bold" if colour else ""))
    console.print(mask_text(example, tokenizer, colour=colour), soft_wrap=True)


def _visible(character: str) -> str:
    """Line breaks as ⏎; other control characters by name, so that text cannot drive a terminal."""
    if character == "\n":
        return "⏎"
    return character if character.isprintable() else f"\\x{ord(character):02x}"
