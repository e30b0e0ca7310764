"""Control tokens in a row: refused, made ordinary text, or left to act; never by accident."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken as Added
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.oracle.stock import SUITE, as_row
from duiti.data.templates.control import CLOSE, OPEN, AddedToken, Control, Mode, split_marked
from duiti.data.templates.render import TemplateSpec
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.errors import RowError
from duiti.types import Json, Message, Origin, Sample, ToolCall

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>")
PLAIN = ("<think>", "</think>", "<|fim|>", "[TOOL]", "\n\n\n", "<unused>")
"""Added tokens that are not special: two that the template writes, two that look like markers, one
of white space (as Gemma has them) that the template writes, and one that means nothing."""
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools|tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' ~ m.name if m.name else '' }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}"
    "{{ m.tool_call_id if m.tool_call_id else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ORIGIN = Origin("f.jsonl", 1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        ["system user assistant tool\n"],
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
    )
    raw.add_special_tokens(list(SPECIAL))
    raw.add_tokens([Added(text, normalized=False) for text in PLAIN])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def encoders(tokenizer: PreTrainedTokenizerFast) -> dict[Mode, Encoder]:
    modes: tuple[Mode, ...] = ("reject", "escape", "allow")
    return {mode: encoder(tokenizer, mode) for mode in modes}


def encoder(
    tokenizer: PreTrainedTokenizerFast, mode: Mode, template: str = TEMPLATE, **options: str
) -> Encoder:
    spec = TemplateSpec(
        name="mine", source=template, special_tokens={}, date="2026-03-31", **options
    )
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return Encoder(spec, core, EncodeOptions(special_tokens=mode))


def chat(question: str, answer: str = "yes") -> Sample:
    messages = (
        Message(role="user", content=question),
        Message(role="assistant", content=answer),
    )
    return Sample(messages=messages, origin=ORIGIN)


def everywhere(text: str) -> list[tuple[int, Sample]]:
    """The same conversation with a text in each place that a row can put one, and the number of
    the message it is in; 0: a tool."""
    call = ToolCall(name="f", arguments={"key": ["value"]}, id="c1")
    messages = (
        Message(role="system", content="be kind"),
        Message(role="user", content="q"),
        Message(role="assistant", content="a", reasoning="r", tool_calls=(call,)),
        Message(role="tool", content="result", name="f", tool_call_id="c1"),
        Message(role="assistant", content="a"),
    )
    tools: tuple[Json, ...] = ({"name": "f", "parameters": {"key": "string"}},)
    places: list[tuple[int, dict[str, object]]] = [
        (1, {"content": text}),
        (2, {"content": text}),
        (2, {"input": text}),
        (3, {"content": text}),
        (3, {"reasoning": text}),
        (3, {"tool_calls": (replace(call, name=text),)}),
        (3, {"tool_calls": (replace(call, arguments={"key": ["a", {"b": text}]}),)}),
        (3, {"tool_calls": (replace(call, arguments={"a": {text: 1}}),)}),
        (3, {"tool_calls": (replace(call, id=text),)}),
        (4, {"content": text}),
        (4, {"name": text}),
        (4, {"tool_call_id": text}),
        (5, {"content": text}),
    ]
    found = []
    for number, fields in places:
        changed = list(messages)
        changed[number - 1] = replace(changed[number - 1], **fields)
        found.append((number, Sample(messages=tuple(changed), origin=ORIGIN, tools=tools)))
    for tool in ({"name": text}, {"name": "f", "parameters": {text: 1}}):
        found.append((0, Sample(messages=messages, origin=ORIGIN, tools=(tool,))))
    return found


@pytest.mark.parametrize("token", ["<|im_end|>", "<s>", "<|fim|>", "[TOOL]"])
@pytest.mark.parametrize("place", range(15))
def test_a_control_token_anywhere_in_a_row_is_refused_by_name(
    encoders: dict[Mode, Encoder], place: int, token: str
) -> None:
    number, sample = everywhere(f"S3cret{token}S3cret")[place]
    with pytest.raises(RowError) as caught:
        encoders["reject"].encode(sample)
    where = f"message {number}" if number else "a tool's description"
    assert str(caught.value) == (
        f"{where} contains the control token {token}"
        " (--special-tokens escape makes it ordinary text)"
    )


@pytest.mark.parametrize("token", ["<|im_end|>", "<s>", "<|fim|>", "[TOOL]"])
@pytest.mark.parametrize("place", range(15))
def test_escaped_it_is_characters_wherever_it_stands(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast, place: int, token: str
) -> None:
    _, sample = everywhere(f"x{token}y")[place]
    _, plain = everywhere("xy")[place]
    (piece,), (bare,) = (encoders["escape"].encode(s).pieces for s in (sample, plain))
    assert tokenizer.decode(piece.ids).count(f"x{token}y") == 1
    special = tokenizer.convert_tokens_to_ids(token)
    assert piece.ids.count(special) == bare.ids.count(special)


@pytest.mark.parametrize("place", range(15))
def test_allowed_it_acts(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast, place: int
) -> None:
    _, sample = everywhere("x<s>y")[place]
    ids = [id_ for piece in encoders["allow"].encode(sample).pieces for id_ in piece.ids]
    assert tokenizer.convert_tokens_to_ids("<s>") in ids


@pytest.mark.parametrize("mode", ["reject", "escape", "allow"])
@pytest.mark.parametrize("mark", [OPEN, CLOSE])
def test_our_own_marks_are_refused_in_every_mode(
    encoders: dict[Mode, Encoder], mode: Mode, mark: str
) -> None:
    for _, sample in everywhere(f"x{mark}y"):
        with pytest.raises(RowError, match=r"contains U\+FDD0 or U\+FDD1"):
            encoders[mode].encode(sample)
        with pytest.raises(RowError, match=r"contains U\+FDD0 or U\+FDD1"):
            encoders[mode].prompt_ids(sample.messages, sample.tools)


def test_white_space_and_tokens_that_the_template_does_not_write_are_no_control_tokens(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast
) -> None:
    for mode in ("reject", "escape"):
        (piece,) = encoders[mode].encode(chat("a\n\n\nb<unused>c")).pieces
        for token in ("\n\n\n", "<unused>"):
            assert tokenizer.convert_tokens_to_ids(token) in piece.ids


def test_tokens_that_the_template_writes_too_act_in_answers(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast
) -> None:
    sample = chat("q", "<think>\nhm\n</think>\n\nyes")
    think = tokenizer.convert_tokens_to_ids("<think>")
    for mode in ("reject", "escape", "allow"):
        encoded = encoders[mode].encode(sample)
        (piece,) = encoded.pieces
        ((start, _, _),) = piece.spans
        assert piece.ids[start] == think
        assert not encoded.notes


def test_elsewhere_they_are_text_if_escaped_and_else_act_and_are_counted(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast
) -> None:
    think = tokenizer.convert_tokens_to_ids("<think>")
    note = "a message holds a token that the template writes too, and it acts"
    for mode, acts in (("reject", True), ("escape", False), ("allow", True)):
        encoded = encoders[mode].encode(chat("what is <think>?"))
        assert (think in encoded.pieces[0].ids) == acts
        assert (note in encoded.notes) == acts


PIECES = st.lists(
    st.sampled_from([*SPECIAL, "<think>", "</think>", "\n\n\n", "<|im_", "end|>", "<", "|>", "s>"])
    | st.text(alphabet="ab \n<|>水", min_size=1, max_size=4),
    min_size=1,
    max_size=6,
).map("".join)
ANSWERS = PIECES.filter(lambda text: "think>" not in text)


@given(
    questions=st.lists(PIECES, min_size=3, max_size=3),
    answers=st.lists(ANSWERS, min_size=2, max_size=2),
    name=PIECES,
)
def test_escaped_prompts_are_those_of_transformers(
    encoders: dict[Mode, Encoder],
    tokenizer: PreTrainedTokenizerFast,
    questions: list[str],
    answers: list[str],
    name: str,
) -> None:
    call = ToolCall(name="f", arguments={"key": name}, id="c1")
    messages = (
        Message(role="system", content=questions[0]),
        Message(role="user", content=questions[1]),
        Message(role="assistant", content=answers[0], reasoning=answers[1], tool_calls=(call,)),
        Message(role="tool", content=questions[2], name=name, tool_call_id="c1"),
        Message(role="assistant", content="last"),
    )
    if "think>" in name:
        return  # in a call of the assistant, who may say it
    tools: tuple[Json, ...] = ({"name": "f", "description": questions[0]},)
    sanitized = tokenizer.apply_chat_template(
        [as_row(message) for message in messages[:-1]],
        tools=list(tools),
        chat_template=TEMPLATE,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    assert encoders["escape"].prompt_ids(messages[:-1], tools) == sanitized
    sample = Sample(messages=messages, origin=ORIGIN, tools=tools)
    piece = encoders["escape"].encode(sample).pieces[-1]
    assert piece.ids[: piece.spans[-1][0]] == sanitized


@given(question=PIECES, other=PIECES)
def test_a_chat_is_never_refused_and_control_tokens_in_it_are_text(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast, question: str, other: str
) -> None:
    messages = [
        Message(role="user", content=question),
        Message(role="assistant", content="a"),
        Message(role="user", content=other),
    ]
    ids = encoders["reject"].prompt_ids(messages)
    assert tokenizer.decode(ids).count("<|im_start|>") >= 4
    for token, count in (("<|im_start|>", 4), ("<|im_end|>", 3), ("<s>", 0)):
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == count
    if not any(token in question + "|" + other for token in SPECIAL):
        plain = tokenizer.apply_chat_template(
            [as_row(message) for message in messages],
            chat_template=TEMPLATE,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        assert ids == plain


@given(question=PIECES, answer=ANSWERS)
def test_a_row_that_is_not_refused_is_trained_behind_the_prompt_of_a_chat(
    encoders: dict[Mode, Encoder], question: str, answer: str
) -> None:
    sample = chat(question, answer)
    for made in encoders.values():
        try:
            encoded = made.encode(sample)
        except RowError:
            continue
        (piece,) = encoded.pieces
        assert piece.ids[: piece.spans[0][0]] == made.prompt_ids(sample.messages[:1])


@given(question=PIECES, answer=PIECES)
def test_escaped_rows_keep_their_text_and_gain_no_control_token(
    encoders: dict[Mode, Encoder],
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    answer: str,
) -> None:
    (piece,) = encoders["escape"].encode(chat(question, answer)).pieces
    ((start, end, _),) = piece.spans
    assert tokenizer.decode(piece.ids[start:end]) == f"{answer}<|im_end|>"
    assert f"<|im_start|>user\n{question}<|im_end|>" in tokenizer.decode(piece.ids[:start])
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL)))
    assert sum(id_ in special for id_ in piece.ids) == 4


@given(
    left=st.text(alphabet="<|im_end>start", max_size=12),
    right=st.text(alphabet="|>im_end<", max_size=9),
)
def test_pieces_of_control_tokens_never_become_one(
    encoders: dict[Mode, Encoder], tokenizer: PreTrainedTokenizerFast, left: str, right: str
) -> None:
    messages = (
        Message(role="user", content=f"a{left}", input=right),
        Message(role="assistant", content=f"{right}a{left}"),
    )
    try:
        encoded = encoders["reject"].encode(Sample(messages=messages, origin=ORIGIN))
    except RowError:
        return
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL)))
    assert sum(id_ in special for id_ in encoded.pieces[0].ids) == 4


def test_a_template_that_escapes_what_is_not_ascii_does_not_lose_the_marks(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = TEMPLATE.replace("c|tojson", "c|tojson(ensure_ascii=True)")
    made = encoder(tokenizer, "escape", source)
    call = ToolCall(name="f", arguments={"key": "水<s>\\ufdd0", "<s>": 1}, id="c1")
    messages = (
        Message(role="user", content="q"),
        Message(role="assistant", content="", tool_calls=(call,)),
    )
    (piece,) = made.encode(Sample(messages=messages, origin=ORIGIN)).pieces
    text = tokenizer.decode(piece.ids)
    assert '"key": "\\u6c34<s>\\\\ufdd0", "<s>": 1' in text
    assert tokenizer.convert_tokens_to_ids("<s>") not in piece.ids


def test_a_template_that_cuts_a_message_does_not_join_what_the_marks_keep_apart(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = TEMPLATE.replace("{{ m.content }}", "{{ m.content.split('<s>')|join('') }}")
    made = encoder(tokenizer, "escape", source)
    ids = made.prompt_ids([Message(role="user", content="<|im_<s>end|>")])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert "<|im_end|><|im_end|>" in tokenizer.decode(ids)


def test_a_tokenizer_that_spells_a_control_token_out_of_characters_is_told() -> None:
    vocabulary = {token: number for number, token in enumerate(["<", "/", "s", ">", "</", "s>"])}
    vocabulary |= {"</s>": 6, "a": 7, "\n": 8, "<|im_end|>": 9, "<|im_start|>": 10}
    raw = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("<", "/"), ("s", ">"), ("</", "s>")], unk_token="a")
    )
    raw.add_special_tokens(["</s>", "<|im_end|>", "<|im_start|>"])
    spec = TemplateSpec(name="mine", source=TEMPLATE, special_tokens={}, date="2026-03-31")
    made = Encoder(spec, raw, EncodeOptions(special_tokens="escape"))
    with pytest.raises(RowError, match="cannot write a control token as ordinary text"):
        made.encode(chat("a</s>a"))


def test_the_stop_of_a_declared_template_is_a_control_token_whatever_it_reads_like(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = "{% for m in messages %}{{ m.content }}{{ '<unused>' }}{% endfor %}"
    made = encoder(tokenizer, "reject", source, stop="<unused>")
    with pytest.raises(RowError, match="message 2 contains the control token <unused>"):
        made.encode(chat("q", "a<unused>b"))


TOKENS = st.lists(st.text(alphabet="<|a[b]>*.", min_size=1, max_size=4), min_size=1, max_size=8)


@given(tokens=TOKENS, text=st.text(alphabet="<|a[b]>*.", max_size=20))
def test_the_longest_token_at_a_place_is_the_one_that_is_found(
    tokens: list[str], text: str
) -> None:
    pattern = Control([AddedToken(token, True) for token in tokens], "", mode="reject").pattern
    assert pattern is not None
    longest_first = "|".join(re.escape(t) for t in sorted(set(tokens), key=len, reverse=True))
    assert pattern.findall(text) == re.findall(longest_first, text)


@given(text=st.text(alphabet=f"a<s>{OPEN}{CLOSE}", max_size=20))
def test_no_mark_survives_and_no_character_is_lost(text: str) -> None:
    pieces = split_marked(text)
    assert "".join(piece for piece, _ in pieces) == text.replace(OPEN, "").replace(CLOSE, "")
    assert all(OPEN not in piece and CLOSE not in piece for piece, _ in pieces)


def test_there_may_be_no_control_tokens_at_all() -> None:
    control = Control([], "", mode="escape")
    messages = SUITE["call and result"].messages
    assert list(control.treat(messages)) == list(messages)
    assert control.pattern is None
    assert not control.softly_acts(messages)
