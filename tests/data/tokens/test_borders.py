"""A text cut at borders has the pre-tokens of the whole text, for any pattern that is accepted."""

import json
import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import (
    ByteLevel,
    Digits,
    Metaspace,
    PreTokenizer,
    Punctuation,
    Sequence,
    Split,
)

from duiti.data.tokens.borders import SOLID, Borders, find_borders
from duiti.data.tokens.patterns import Unsafe
from duiti.types import Json

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
ATOMS = ["a", "b", "1", "'", " ", r"\s", r"\p{L}", r"\p{N}", "[^ab]", r"[^\s\p{L}]", r"[\r\n]", "B"]
QUANTIFIERS = ["", "", "", "?", "*", "+", "+", "{1,2}", "{0,2}", "?+", "++", "*+", "+?"]
ITEMS = st.one_of(
    st.builds("{}{}".format, st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)),
    st.sampled_from([r"\s+(?!\S)", r"\s(?!a)", r"\n+(?! )"]),
)
BRANCHES = st.lists(ITEMS, min_size=1, max_size=3).map("".join)
GROUPS = st.builds(
    "{}{}){}".format,
    st.sampled_from(["(?:", "(?i:", "(?>"]),
    st.lists(BRANCHES, min_size=1, max_size=2).map("|".join),
    st.sampled_from(QUANTIFIERS),
)
PATTERNS = st.builds(
    "{}{}".format,
    st.lists(
        st.one_of(BRANCHES, GROUPS, st.builds("{}{}".format, GROUPS, BRANCHES)), min_size=1
    ).map(lambda branches: "|".join(branches[:3])),
    st.sampled_from(["", r"|\s+", r"|\s+(?!\S)|\s+", r"|\s+|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"]),
)
TEXTS = st.text(alphabet="abAB1.'   \n\té中，ſ\u0301", max_size=16)


def spelled(pre_tokenizer: PreTokenizer) -> Json:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    found: Json = json.loads(tokenizer.to_str())["pre_tokenizer"]
    return found


def chain(*patterns: str, use_regex: bool = False, behavior: str = "isolated") -> PreTokenizer:
    splits = [Split(Regex(pattern), behavior, invert=behavior == "removed") for pattern in patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=use_regex)])


def pre_tokens(pre_tokenizer: PreTokenizer, texts: list[str]) -> list[str]:
    return [token for text in texts for token, _ in pre_tokenizer.pre_tokenize_str(text)]


def has_borders(pre_tokenizer: PreTokenizer, borders: Borders, text: str) -> bool:
    whole = pre_tokens(pre_tokenizer, [text])
    cuts = [borders.words.findall(text), borders.pieces.findall(text)]
    return all("".join(cut) == text and pre_tokens(pre_tokenizer, cut) == whole for cut in cuts)


@settings(max_examples=300)
@given(
    patterns=st.lists(PATTERNS, min_size=1, max_size=2),
    use_regex=st.booleans(),
    behavior=st.sampled_from(["isolated", "removed"]),
    texts=st.lists(TEXTS, min_size=5, max_size=20),
)
def test_what_is_accepted_splits_at_every_border(
    patterns: list[str], use_regex: bool, behavior: str, texts: list[str]
) -> None:
    pre_tokenizer = chain(*patterns, use_regex=use_regex, behavior=behavior)
    try:
        borders = find_borders(spelled(pre_tokenizer))
    except Unsafe:  # about five of six
        return
    assert [text for text in texts if not has_borders(pre_tokenizer, borders, text)] == []


@pytest.mark.parametrize("individual_digits", [True, False])
@given(text=TEXTS)
def test_digits_split_at_every_border(individual_digits: bool, text: str) -> None:
    pre_tokenizer = Sequence(
        [Digits(individual_digits), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    assert has_borders(pre_tokenizer, find_borders(spelled(pre_tokenizer)), text)


def test_words_and_pieces_of_a_text() -> None:
    borders = find_borders(spelled(chain(CL100K)))
    text = "It's 12.5%,  not\n\n x2."
    assert borders.words.findall(text) == ["It's", " 12.5%,", "  not\n\n x2."]
    pieces = borders.pieces.findall(text)
    assert pieces == ["It", "'s", " 12", ".", "5", "%,", "  not", "\n\n x", "2", "."]


def test_letters_of_both_cases_hang_on_an_apostrophe() -> None:
    pattern = r"(?i:'s)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s+"
    assert find_borders(spelled(chain(pattern))).pieces.findall("a'S't") == ["a", "'S", "'", "t"]


def test_nothing_solid_is_white_space_to_the_library_before_or_behind_nfc() -> None:
    points = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    solid = [c for c in points if re.match(f"[{SOLID}]", c)]
    assert len(solid) > 130_000
    last = {unicodedata.normalize("NFC", c)[-1] for c in solid} | set(solid)
    text = "".join(sorted(last))
    assert Split(Regex(r"\s"), "removed").pre_tokenize_str(text) == [(text, (0, len(text)))]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [("a?+", "aa", ["a", "a"]), ("a*+a|b", "aab", ["aa", "b"]), ("(?>a|ab)c", "abc", ["abc"])],
)
def test_the_library_reads_possessive_quantifiers_and_atomic_groups_as_assumed(
    pattern: str, text: str, expected: list[str]
) -> None:
    assert pre_tokens(Split(Regex(pattern), "isolated"), [text]) == expected


@pytest.mark.parametrize(
    ("pre_tokenizer", "reason"),
    [
        (Metaspace(), "ByteLevel"),
        (Sequence([ByteLevel(add_prefix_space=False), Digits()]), "ByteLevel"),
        (ByteLevel(add_prefix_space=True), "space before"),
        (ByteLevel(add_prefix_space=False, use_regex=False), "does not split"),
        (Sequence([Punctuation(), ByteLevel(add_prefix_space=False)]), "Punctuation"),
        (Sequence([Split(" ", "isolated"), ByteLevel(add_prefix_space=False)]), "Split"),
        (chain(r"\s+|\S+", behavior="merged_with_next"), "joins"),
        (chain(r"\s*\S*"), "nothing"),
        (chain(r"\S+ \S+|\s+"), "over a space"),
        (chain(r"[^\r\n]+|\s+"), "over a space"),
        (chain(r"\S+|\s+(?!\S)"), "every space"),
        (chain(r"\S+(?!\s)|\s+"), "ahead"),
        (chain(r"\b\S+|\s+"), "not understood"),
    ],
)
def test_what_cannot_be_proven_is_refused(pre_tokenizer: PreTokenizer, reason: str) -> None:
    with pytest.raises(Unsafe, match=reason):
        find_borders(spelled(pre_tokenizer))


def test_no_pre_tokenizer_is_refused() -> None:
    with pytest.raises(Unsafe, match="no pre-tokenizer"):
        find_borders(None)
