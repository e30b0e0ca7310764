"""The mask is shown as it is, and no text in it can drive the terminal."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from duiti.data.encode import Encoder
from duiti.data.preview import mask_text, print_mask
from duiti.data.template import load_template
from duiti.types import Example, Message, Origin, Rejected, Sample

ESCAPES = "\x1b[2J \x1b]0;title\x07 \x9b31m \r \x08 \x00 \x7f \u202e \u2028 \ufeff \u200b"


def _example(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> Example:
    encoder = Encoder(tokenizer, load_template("human-assistant", tokenizer))
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    (found,) = encoder.encode([Sample(messages=messages, origin=Origin("f.jsonl", 3))])
    assert not isinstance(found, Rejected)
    return found[0]


def _printed(tokenizer: PreTrainedTokenizerFast, example: Example, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system="standard")
    print_mask(example, tokenizer, console)
    return out.getvalue()


def test_the_trained_part_stands_between_brackets(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "水?\nNow", "H2O 🙂")
    text = mask_text(example, tokenizer, colour=False).plain
    assert text == "Human: 水?⏎Now⏎Assistant:⟦ H2O 🙂<|endoftext|>⟧"
    printed = _printed(tokenizer, example, terminal=False)
    share = f"f.jsonl:3  {example.num_supervised} of {len(example)} tokens trained\n"
    assert printed == f"{share}{text}\n"


def test_colour_says_the_same_as_brackets(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "one", "two")
    text = mask_text(example, tokenizer, colour=True)
    tinted = [text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style)]
    assert tinted == [" two<|endoftext|>"]


def test_markup_in_a_message_is_only_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "[bold red]x[/bold red] :smile: [link=http://a]y[/link]"
    assert text in _printed(tokenizer, _example(tokenizer, text, "a"), terminal=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_escape_sequences_are_shown_not_sent(
    tokenizer: PreTrainedTokenizerFast, terminal: bool
) -> None:
    plain = _printed(tokenizer, _example(tokenizer, "q", "a"), terminal=terminal)
    printed = _printed(tokenizer, _example(tokenizer, ESCAPES, ESCAPES), terminal=terminal)
    # Only rich's own colours may be there, as often as in a harmless example.
    assert printed.count("\x1b") == plain.count("\x1b")
    assert "\\x1b[2J" in printed
    for character in ESCAPES.replace(" ", "").replace("\x1b", ""):
        if not character.isprintable():
            assert character not in printed


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: "<|" not in text  # a control token would be refused
)


@given(text=TEXT)
def test_what_is_shown_is_printable(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    shown = mask_text(_example(tokenizer, text, text), tokenizer, colour=False).plain
    assert shown.isprintable()


@given(ids=st.lists(st.integers(0, 446), min_size=1, max_size=20))
def test_any_ids_can_be_shown(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int32)
    example = Example(input_ids=array, labels=array, origin=Origin("f", 1))
    assert mask_text(example, tokenizer, colour=False).plain.isprintable()
