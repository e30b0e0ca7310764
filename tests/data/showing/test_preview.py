"""The mask is shown as it is, and no text in it can drive the terminal."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from duiti.data.showing.preview import mask_text, print_mask
from duiti.types import IGNORE_INDEX, Example, Origin

EOS = "<|endoftext|>"
ESCAPES = "\x1b[2J \x1b]0;title\x07 \x9b31m \r \x08 \x00 \x7f \u202e \u2028 \ufeff \u200b \u3164"


def _example(
    tokenizer: PreTrainedTokenizerFast, *parts: str, weights: tuple[float, ...] = ()
) -> Example:
    """Context and trained text in turns, as `Human: …` and what the model answers."""
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    labels = [
        list(part) if number % 2 else [IGNORE_INDEX] * len(part) for number, part in enumerate(ids)
    ]
    scales = [[weight] * len(part) for part, weight in zip(ids, weights, strict=False)]
    return Example(
        input_ids=np.array([id_ for part in ids for id_ in part], dtype=np.int32),
        labels=np.array([id_ for part in labels for id_ in part], dtype=np.int32),
        origin=Origin("f.jsonl", 3),
        weights=np.array([x for part in scales for x in part], np.float32) if weights else None,
    )


def _printed(
    tokenizer: PreTrainedTokenizerFast, example: Example, *, terminal: bool, colour: bool = True
) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=terminal,
        no_color=not colour,
        width=200,
        color_system="standard",
        legacy_windows=False,
    )
    print_mask(example, tokenizer, console)
    return out.getvalue()


def _styled(tokenizer: PreTrainedTokenizerFast, example: Example, word: str) -> list[str]:
    text = mask_text(example, tokenizer, colour=True)
    return [text.plain[span.start : span.end] for span in text.spans if word in str(span.style)]


def test_the_trained_part_stands_between_brackets(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "Human: 水?\nNow\nAssistant:", f" H2O 🙂{EOS}")
    text = mask_text(example, tokenizer, colour=False).plain
    assert text == "Human: 水?⏎Now⏎Assistant:⟦ H2O 🙂<|endoftext|>⟧"
    printed = _printed(tokenizer, example, terminal=False)
    share = f"f.jsonl:3  {example.num_supervised} of {len(example)} tokens trained\n"
    assert printed == f"{share}{text}\n"


def test_a_terminal_goes_to_a_new_line_at_each_break(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "a\n\nb", "c\nd")
    shown = mask_text(example, tokenizer, colour=True).plain
    assert shown == "a⏎\n⏎\nbc⏎\nd"
    no_colour = _printed(tokenizer, example, terminal=True, colour=False)
    assert no_colour.splitlines()[1:] == ["a⏎", "⏎", "b⟦c⏎", "d⟧"]
    assert "\x1b" not in no_colour


def test_colour_says_the_same_as_brackets(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "one", f" two{EOS}", "\nthree", " four")
    assert "".join(_styled(tokenizer, example, "green")) == f" two{EOS} four"
    plain = mask_text(example, tokenizer, colour=False).plain
    assert plain == f"one⟦ two{EOS}⟧⏎three⟦ four⟧"


def test_special_tokens_stand_out_and_their_text_in_a_message_does_not(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = _example(tokenizer, "<|im_start|>user", f"<|im_end ok{EOS}")
    assert _styled(tokenizer, example, "reverse") == ["<|im_start|>", EOS]


def test_a_weight_is_written_before_what_it_weighs(tokenizer: PreTrainedTokenizerFast) -> None:
    example = _example(tokenizer, "q", "a", "q", "b", weights=(1, 1, 1, 0.5))
    assert mask_text(example, tokenizer, colour=False).plain == "q⟦a⟧q⟦×0.5 b⟧"
    assert mask_text(example, tokenizer, colour=True).plain == "qaq×0.5 b"


def test_markup_in_a_message_is_only_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "[bold red]x[/bold red] :smile: [link=http://a]y[/link]"
    assert text in _printed(tokenizer, _example(tokenizer, text, "a"), terminal=False)


def test_a_bracket_in_a_message_cannot_pass_for_the_mark(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    shown = mask_text(_example(tokenizer, "⟦fake⟧", "a"), tokenizer, colour=False).plain
    assert shown == "\\u27e6fake\\u27e7⟦a⟧"


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
        if not character.isprintable() or character == "\u3164":
            assert character not in printed


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(text=TEXT)
def test_what_is_shown_is_printable(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    shown = mask_text(_example(tokenizer, text, text), tokenizer, colour=False).plain
    assert shown.isprintable()


@given(ids=st.lists(st.integers(0, 446), min_size=1, max_size=20))
def test_any_ids_can_be_shown(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int32)
    example = Example(input_ids=array, labels=array, origin=Origin("f", 1))
    assert mask_text(example, tokenizer, colour=False).plain.isprintable()
