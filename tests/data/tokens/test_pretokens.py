"""Ids are the library's, whatever the text, whatever was encoded before."""

import json
from collections.abc import Callable, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from duiti.data.tokens import pretokens
from duiti.data.tokens.pretokens import FastEncoder, why_not

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def chain(*patterns: str, behavior: str = "isolated") -> pre_tokenizers.Sequence:
    is_removed = behavior == "removed"
    splits = [pre_tokenizers.Split(Regex(p), behavior, invert=is_removed) for p in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, last])


PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen": chain(QWEN),
    "llama3": chain(LLAMA3),
    "cl100k": chain(CL100K),
    "o200k": chain(O200K),
    "deepseek": chain(*DEEPSEEK),
    "drops control characters": chain(DEEPSEEK[2], behavior="removed"),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
CORPUS = [
    "I'm sure we'LL don't they've, it's 12 or 345; x=1+2, y=3.50!\n\n  Then\t\tall  of it...\r\n",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72 the then there these other",
    "水的化学式是什么？水的化学式是 H2O。中文，English、かな カナ 한글",
    "e\u0301 é ſ K İı 😀👩\u200d💻 <|im_start|>user\n<tool_call>",
]
ADDED = [
    AddedToken("<|end|>", normalized=False, special=True),
    AddedToken("<|end|>x", normalized=False, special=True),
    AddedToken("<think>", normalized=False),
    AddedToken("<tool", normalized=True),
    AddedToken("<tool_call>", normalized=False),
    AddedToken("é!", normalized=True),
    AddedToken("    ", normalized=True),
    AddedToken("[M]", normalized=False, lstrip=True),
    AddedToken("the", normalized=False, single_word=True),
]
WHITE = (
    " " * 9
    + "\n\n\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u2028\u2029\u200b\u3000\ufeff"
)
MARKS = "\u0301\u0308\u0338\u0327\u200d\ufe0f"
LETTERS = "abXYsStTrReEvVmMlLdDéſİıK\u212b\u1100\u1161\u11a8中文かカ한ǅʰ\u0958"
OTHERS = "0123٣²Ⅷ''''\u2019.,;:!?()<>=-+/*#$%&\"，。！？“”（）😀👩\U00020000\ue000\u0378\x00\x7f"
PARTS = st.one_of(
    st.text(alphabet=WHITE + MARKS + LETTERS + OTHERS, max_size=12),
    st.sampled_from(
        [" ", "  ", "\n", " the", " 's", "'LL", "48/2", "!!!\n", "<think>\u0338", "e\u0301!"]
    ),
    st.sampled_from([*(token.content for token in ADDED), *CORPUS]),
    st.text(max_size=6),
)
TEXTS = st.lists(st.lists(PARTS, max_size=8).map("".join), min_size=1, max_size=6)


def trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    is_nfc: bool = False,
    corpus: Sequence[str] = CORPUS,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["", "with NFC and added tokens"])
def pair(name: str, request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and the same without added tokens."""
    tokenizer = trained(PRE_TOKENIZERS[name], is_nfc=bool(request.param))
    plain = Tokenizer.from_str(tokenizer.to_str())
    if request.param:
        tokenizer.add_tokens(ADDED)
    return tokenizer, plain


def encoder_of(tokenizer: Tokenizer) -> FastEncoder:
    assert why_not(tokenizer) == ""
    encoder = FastEncoder.from_tokenizer(tokenizer)
    assert encoder is not None
    return encoder


def library(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


@given(texts=TEXTS)
def test_ids_are_those_of_the_library(pair: tuple[Tokenizer, Tokenizer], texts: list[str]) -> None:
    encoder = encoder_of(pair[0])
    for _ in range(2):  # the second time from the caches
        assert [encoder.encode(text) for text in texts] == library(pair[0], texts)
        assert [encoder.encode_ordinary(text) for text in texts] == library(pair[1], texts)
    assert encoder.disagreements == 0  # of the ids it found itself


def test_ids_of_every_part_of_unicode_are_those_of_the_library(
    pair: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokens, "WORTHLESS", 1)  # never leave it to the library
    points = [*range(0x500), *range(0x500, 0x30000, 97), 0xFFFFF, 0x10FFFF]
    shape = "a{0} b{0}{0} '{0}s {0}t 1{0} 2{0}3\n{0} .{0}, {0}中{0}，{0}"
    texts = [shape.format(chr(point)) for point in points if not 0xD800 <= point < 0xE000]
    encoder = encoder_of(pair[0])
    assert [encoder.encode(text) for text in texts] == library(pair[0], texts)
    assert encoder.disagreements == 0


def test_an_accent_is_joined_to_its_letter_before_the_text_is_cut_there() -> None:
    pattern = r"'[^\x00-\x7f]|\p{L}|[^\s\p{L}]|\s+"
    tokenizer = trained(chain(pattern), is_nfc=True, corpus=["'é"] * 9)
    encoder = encoder_of(tokenizer)
    texts = ["'e\u0301", "'e", "'é"]
    assert [encoder.encode(text) for text in texts] == library(tokenizer, texts)
    assert encoder.disagreements == 0
    assert encoder.encode("'e\u0301") == [tokenizer.token_to_id("'Ã©")]


def test_a_word_that_shrinks_beside_one_that_grows_is_learnt_right() -> None:
    tokenizer = trained(PRE_TOKENIZERS["gpt2"], is_nfc=True, corpus=[])
    encoder = encoder_of(tokenizer)
    texts = ["\u212ax \u0344x", "\u212ax", "a \u0344x"]  # 2 bytes less, 2 bytes more
    assert [encoder.encode(text) for text in texts] == library(tokenizer, texts)
    assert encoder.disagreements == 0


def test_memory_is_bounded_and_forgetting_changes_no_ids(
    pair: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokens, "CACHED_TEXTS", 7)
    texts = [f"{text} {number}" for text in CORPUS for number in range(40)]
    encoder = encoder_of(pair[0])
    for _ in range(2):
        assert [encoder.encode(text) for text in texts] == library(pair[0], texts)
    assert encoder.disagreements == 0
    assert encoder.num_cached <= 2 * 2 * 7


def test_long_texts_without_a_border_are_not_remembered() -> None:
    encoder = encoder_of(trained(PRE_TOKENIZERS["qwen"]))
    for number in range(100):
        encoder.encode(chr(0x4E00 + number) * 1000)
    assert encoder.num_cached == 0


def test_where_nothing_comes_again_the_library_works_alone_most_of_the_time() -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    encoder = encoder_of(tokenizer)
    words = ["".join(letters) for letters in product("bcdfghklmn", repeat=5)]
    texts = [" ".join(words[at : at + 20]) for at in range(0, len(words), 20)]
    assert [encoder.encode(text) for text in texts] == library(tokenizer, texts)
    assert encoder.disagreements == 0
    assert encoder.num_cached < 0.5 * len(words)


def test_ids_that_are_known_are_not_asked_of_the_library_again() -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    encoder = encoder_of(tokenizer)
    for _ in range(pretokens.CHECKED_FIRST):
        before = encoder.encode(CORPUS[0])
    tokenizer.add_tokens(["sure"])
    assert encoder.encode(CORPUS[0]) == before != library(tokenizer, CORPUS[:1])[0]


def test_one_disagreement_leaves_everything_to_the_library() -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    encoder = encoder_of(tokenizer)
    encoder.encode("we are sure")
    assert not encoder.is_disabled
    tokenizer.add_tokens(["sure"])
    texts = ["so sure", "we are sure", "sure"]
    assert [encoder.encode(text) for text in texts] == library(tokenizer, texts)
    assert encoder.disagreements == 1
    assert encoder.is_disabled


def test_lone_surrogates_fail_as_they_do_in_the_library() -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    encoder = encoder_of(tokenizer)
    for encode in (tokenizer.encode, encoder.encode, encoder.encode_ordinary):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            encode("a \ud800 b")


def test_model_settings_that_do_not_matter_with_all_bytes_are_supported() -> None:
    tokenizer = trained(PRE_TOKENIZERS["gpt2"])
    made = json.loads(tokenizer.to_str())
    made["model"] |= {"unk_token": "a", "byte_fallback": True, "ignore_merges": True}
    made["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    encoder = encoder_of(tokenizer)
    assert [encoder.encode(text) for text in CORPUS] == library(tokenizer, CORPUS)
    assert encoder.disagreements == 0


def test_a_start_token_is_not_added(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    core = bos_tokenizer.backend_tokenizer
    encoder = encoder_of(core)
    assert [encoder.encode(text) for text in CORPUS] == library(core, CORPUS)
    assert encoder.disagreements == 0


def with_padding(tokenizer: Tokenizer) -> None:
    tokenizer.enable_padding()


def with_truncation(tokenizer: Tokenizer) -> None:
    tokenizer.enable_truncation(8)


def with_lower_case(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def with_dropout(tokenizer: Tokenizer) -> None:
    tokenizer.model.dropout = 0.1


def with_word_ends(tokenizer: Tokenizer) -> None:
    tokenizer.model.end_of_word_suffix = "</w>"


def with_special_tokens_as_text(tokenizer: Tokenizer) -> None:
    tokenizer.encode_special_tokens = True


def with_a_text_twice(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A $A")


def with_a_late_token_that_takes_white_space(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("é", normalized=True, rstrip=True)])


def with_a_prefix_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def with_few_bytes(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.BPE(vocab={"a": 0, "b": 1}, merges=[])


def with_word_piece(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.WordPiece(vocab={"a": 0}, unk_token="a")


def with_unigram(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.Unigram([("a", 0.0)])


def with_word_level(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.WordLevel(vocab={"a": 0}, unk_token="a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_padding, "pads"),
        (with_truncation, "truncates"),
        (with_lower_case, "NFC"),
        (with_dropout, "random"),
        (with_word_ends, "where in a word"),
        (with_special_tokens_as_text, "special tokens"),
        (with_a_text_twice, "post-processor"),
        (with_a_late_token_that_takes_white_space, "after normalizing"),
        (with_a_prefix_space, "space before"),
        (with_few_bytes, "256 bytes"),
        (with_word_piece, "BPE"),
        (with_unigram, "BPE"),
        (with_word_level, "BPE"),
    ],
)
def test_an_unsupported_tokenizer_has_no_encoder_and_a_reason(
    change: Callable[[Tokenizer], None], reason: str
) -> None:
    tokenizer = trained(PRE_TOKENIZERS["qwen"])
    change(tokenizer)
    assert FastEncoder.from_tokenizer(tokenizer) is None
    assert reason in why_not(tokenizer)


def test_a_tokenizer_like_llama_2_has_no_encoder(
    metaspace_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert FastEncoder.from_tokenizer(metaspace_tokenizer.backend_tokenizer) is None
