"""Added tokens are found where the library finds them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from duiti.data.tokens.added_tokens import AddedTokens

ADDED = [
    AddedToken("<|end|>", normalized=False, special=True),
    AddedToken("<|end|>>", normalized=False),
    AddedToken("<tool", normalized=False),
    AddedToken("<tool_call>", normalized=True),
    AddedToken("end|>", normalized=True),
    AddedToken("é", normalized=True),
    AddedToken("e\u0301!", normalized=True),
    AddedToken("ſ", normalized=False),
    AddedToken("    ", normalized=True),
]
PARTS = [*(token.content for token in ADDED), "e", "\u0301", "\u0338", "!", " ", "<", "|", ">", "a"]


@pytest.fixture(scope="module", params=["no normalizer", "NFC"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Every byte is a token, no merges: ids show what was found."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if request.param == "NFC":
        found.normalizer = normalizers.NFC()
    found.add_tokens(ADDED)
    return found


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_tokens_stand_where_the_library_finds_them(tokenizer: Tokenizer, text: str) -> None:
    added = AddedTokens(tokenizer)
    plain = Tokenizer(tokenizer.model)
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    ids: list[int] = []
    for part in added.split(text):
        ids += array("i", part) if isinstance(part, bytes) else plain.encode(part).ids
    assert ids == tokenizer.encode(text).ids
    assert not added.is_odd(text)


@pytest.mark.parametrize("how", ["lstrip", "rstrip", "single_word"])
def test_a_text_with_a_token_that_looks_around_is_odd(how: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("<mask>", **{how: True})])
    added = AddedTokens(tokenizer)
    assert added.is_odd("a <mask>")
    assert not added.is_odd("a <mas k>")
