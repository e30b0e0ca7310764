"""The text of each token: joined they are the decoded whole; nothing in them stays invisible."""

import itertools
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from duiti.data.showing.views import segments, show_example, texts_of, token_views, visible
from duiti.types import IGNORE_INDEX, Example, Origin

TOKENIZERS = ["tokenizer", "bos_tokenizer", "metaspace_tokenizer", "legacy_metaspace_tokenizer"]
FRAGMENT = re.compile("⟨[0-9A-F]{2}( [0-9A-F]{2})*⟩")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="⟨⟩"))


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def _example(ids: list[int], trained_from: int = 0) -> Example:
    array = np.array(ids, dtype=np.int32)
    labels = array.copy()
    labels[:trained_from] = IGNORE_INDEX
    return Example(input_ids=array, labels=labels, origin=Origin("f", 1))


@given(parts=st.lists(st.one_of(TEXT, st.sampled_from(["<|endoftext|>", "<|im_start|>", " "]))))
def test_texts_joined_are_the_decoded_whole(
    any_tokenizer: PreTrainedTokenizerFast, parts: list[str]
) -> None:
    ids = any_tokenizer("".join(parts))["input_ids"]
    joined = "".join(view.text for view in token_views(_example(ids), any_tokenizer))
    whole = any_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert FRAGMENT.sub("", joined) == whole


@given(ids=st.lists(st.integers(0, 446), max_size=30))
def test_any_ids_have_one_text_each(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    views = token_views(_example(ids), tokenizer)
    assert [view.id for view in views] == ids
    assert all(view.text for view in views)


def test_a_split_character_is_with_its_last_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("🙂!")["input_ids"]
    texts = [view.text for view in token_views(_example(ids), tokenizer)]
    assert texts == ["⟨F0⟩", "⟨9F⟩", "⟨99⟩", "🙂", "!"]


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([b"a\xe6", b"\xb0", b"\xb4b"], ["a⟨E6⟩", "⟨B0⟩", "水b"]),
        ([b"\xe6\xb0", b"\xb4\xe6", b"\xb0\xb4"], ["⟨E6 B0⟩", "水⟨E6⟩", "水"]),
        ([b"\xe6", b"a", b"\xff\xfe"], ["⟨E6⟩", "a", "⟨FF FE⟩"]),  # no UTF-8 at all
        ([b"\xed\xa0", b"\x80"], ["⟨ED A0⟩", "⟨80⟩"]),  # a surrogate is no character
        ([b"", "水".encode(), b""], ["", "水", ""]),
    ],
)
def test_bytes_become_text_piece_by_piece(pieces: list[bytes], texts: list[str]) -> None:
    assert texts_of(pieces) == texts


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_no_byte_is_lost_or_shown_twice(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    plain = FRAGMENT.sub("", "".join(texts_of(pieces)))
    assert plain == data.decode("utf-8", "ignore")


def test_marks_follow_labels_weights_and_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("hi<|endoftext|>", add_special_tokens=False)["input_ids"]
    example = _example(ids, trained_from=len(ids) - 1)
    weights = np.full(len(ids), 0.25, dtype=np.float32)
    weighted = Example(
        input_ids=example.input_ids, labels=example.labels, origin=example.origin, weights=weights
    )
    *context, stop = token_views(weighted, tokenizer)
    assert {view[2:] for view in context} == {(False, False, 1.0)}
    assert stop[1:] == ("<|endoftext|>", True, True, 0.25)


def test_a_long_example_shows_its_two_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("a b c d e f g h")["input_ids"]
    shown = show_example(_example(ids), tokenizer, max_tokens=5)
    assert [view.id for view in shown.tokens] == ids[:3] + ids[-2:]
    assert (shown.num_tokens, shown.num_supervised) == (len(ids), len(ids) - 1)
    whole = show_example(_example(ids), tokenizer, max_tokens=len(ids))
    assert [view.id for view in whole.tokens] == ids


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 水 é 🙂", "plain 水 é 🙂"),
        ("a\nb\tc\r", "a⏎b\\tc\\r"),
        ("\u202eevil\u202c", "\\u202eevil\\u202c"),  # bidi override
        ("\u2066x\u2069\u200f", "\\u2066x\\u2069\\u200f"),  # bidi isolates and a mark
        ("a\u200bb\ufeff\u00ad\u2060", "a\\u200bb\\ufeff\\xad\\u2060"),  # zero width
        ("\x00\x1b[0m\x9b", "\\x00\\x1b[0m\\x9b"),
        ("\u3164\u2800\ufe0f", "\\u3164\\u2800\\ufe0f"),  # letters and marks without ink
        ("\U000e0041\U000e0101", "\\U000e0041\\U000e0101"),  # tags, variation selectors
        ("\xa0\u3000\u2028", "\\xa0\\u3000\\u2028"),  # spaces that are not U+0020
        ("\udce6", "\\udce6"),  # a byte of a file name that is no UTF-8
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(text=st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    for character in visible(text):
        assert unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert unicodedata.bidirectional(character) not in {
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN", "B"
        }  # fmt: skip


@given(text=st.text())
def test_segments_are_visible_and_invisible_in_turns(text: str) -> None:
    found = segments(text)
    assert "".join(found) == visible(text)
    assert all(segments(part) == [part] for part in found[::2])
    assert all(part for part in found[1:])
    assert len("".join(found[::2])) <= len(text)
