"""The mask: given is exactly what serving sends, trained exactly the answer and its stop token."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from duiti.data.templates.render import TemplateFault
from duiti.data.templates.template import BUILT_IN, Declared, Template, declare, load_template
from duiti.data.tokens.encode import Encoded, EncodeOptions, Encoder
from duiti.errors import RowError, UsageError
from duiti.types import IGNORE_INDEX, Message, Origin, Sample, ToolCall

DATE = "2026-03-31"
ORIGIN = Origin("f.jsonl", 1)
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text(
    alphabet="ab .\n\t:{}<|>水🙂'Human", min_size=1, max_size=12
)
SPECIAL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|bos|>", "\ufdd0", "\ufdd1")
CONTENT = CONTENT.filter(
    lambda text: text.strip() != "" and not any(token in text for token in SPECIAL)
)

CHATML_OWN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3 does: thinking is shown in the last answer and removed from earlier ones.
FORGETS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Trained:
    """One trained run of an example: the ids before it, and its own."""

    prompt: list[int]
    answer: list[int]


@st.composite
def conversations(draw: st.DrawFn, max_turns: int = 3) -> tuple[Message, ...]:
    messages = []
    if draw(st.booleans()):
        messages.append(Message(role="system", content=draw(CONTENT)))
    turns = draw(st.integers(1, max_turns))
    for number in range(turns):
        messages.append(Message(role="user", content=draw(CONTENT)))
        # The last one is always trained, so that there is something to train.
        train = None if number == turns - 1 else draw(st.sampled_from([None, True, False]))
        messages.append(Message(role="assistant", content=draw(CONTENT), train=train))
    return tuple(messages)


def _encoder(template: Template, **options: object) -> Encoder:
    tokenizer = template.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return Encoder(template.spec(DATE), core, EncodeOptions(**{**tokens, **options}))


def _encode(template: Template, messages: tuple[Message, ...], **options: object) -> Encoded:
    sample = Sample(messages=messages, origin=ORIGIN)
    return _encoder(template, **options).encode(sample)


def _reason(template: Template, *messages: Message) -> str:
    with pytest.raises(RowError) as caught:
        _encode(template, messages)
    return str(caught.value)


def _trained(encoded: Encoded) -> list[Trained]:
    """The trained runs, in order; checks that a label is the id itself or -100."""
    found = []
    for piece in encoded.pieces:
        example = piece.example(ORIGIN)
        ids, labels = example.input_ids, example.labels
        assert example.origin == ORIGIN
        assert len(ids) == len(labels)
        is_trained = labels != IGNORE_INDEX
        assert np.array_equal(labels[is_trained], ids[is_trained])
        edges = np.flatnonzero(np.diff(is_trained.astype(int), prepend=0, append=0))
        for start, end in edges.reshape(-1, 2):
            found.append(Trained(ids[:start].tolist(), ids[start:end].tolist()))
    return found


def _served(template: Template, messages: tuple[Message, ...]) -> list[list[int]]:
    """Prompt ids of every trained turn, as a server makes them: by transformers alone."""
    return [
        list(
            template.tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages[:index]],
                chat_template=template.source,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        )
        for index, message in enumerate(messages)
        if message.role == "assistant" and message.train is not False
    ]


def _prove(template: Template, messages: tuple[Message, ...], *, before: str, stop: str) -> None:
    """The three promises of the mask, for one conversation."""
    encoded = _encode(template, messages)
    runs = _trained(encoded)
    tokenizer = template.tokenizer
    assert [run.prompt for run in runs] == _served(template, messages)
    answers = [m.content for m in messages if m.role == "assistant" and m.train is not False]
    decoded = [tokenizer.decode(run.answer) for run in runs]
    assert decoded == [before + answer + stop for answer in answers]
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    assert all(run.answer[-1] == stop_id and run.answer.count(stop_id) == 1 for run in runs)
    assert encoded.stops == {stop_id}


def _own(tokenizer: PreTrainedTokenizerFast, source: str) -> Template:
    own = copy.deepcopy(tokenizer)
    own.chat_template = source
    return load_template("model", own)


@pytest.mark.parametrize("name", BUILT_IN)
@given(messages=conversations())
def test_built_in_templates_train_answer_and_stop_behind_the_served_prompt(
    tokenizer: PreTrainedTokenizerFast, name: str, messages: tuple[Message, ...]
) -> None:
    _prove(
        load_template(name, tokenizer),
        messages,
        before=" " if name == "human-assistant" else "",
        stop="<|im_end|>" if name == "chatml" else "<|endoftext|>",
    )


@given(messages=conversations())
def test_the_models_own_template_trains_answer_and_stop_behind_the_served_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...]
) -> None:
    _prove(_own(tokenizer, CHATML_OWN), messages, before="", stop="<|im_end|>")


@given(messages=conversations(), thoughts=st.lists(CONTENT, min_size=3, max_size=3))
def test_a_template_that_rewrites_history_still_trains_behind_the_served_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...], thoughts: list[str]
) -> None:
    thinking = iter(thoughts)
    told = tuple(
        replace(m, content=f"<think>{next(thinking)}</think>{m.content}")
        if m.role == "assistant"
        else m
        for m in messages
    )
    _prove(_own(tokenizer, FORGETS_THINKING), told, before="", stop="<|im_end|>")


def _chat(*contents: str) -> tuple[Message, ...]:
    return tuple(
        Message(role="assistant" if number % 2 else "user", content=content)
        for number, content in enumerate(contents)
    )


def test_a_conversation_is_one_example_where_its_history_stands(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = _chat("one", "two", "three", "four")
    thinking = _chat("one", "<think>hm</think>two", "three", "<think>hm</think>four")
    for template in (load_template("human-assistant", tokenizer), _own(tokenizer, CHATML_OWN)):
        assert len(_encode(template, plain).pieces) == 1
    forgetful = _own(tokenizer, FORGETS_THINKING)
    assert len(_encode(forgetful, plain).pieces) == 1
    unrolled = _encode(forgetful, thinking).pieces
    assert len(unrolled) == 2
    texts = [tokenizer.decode(piece.ids) for piece in unrolled]
    assert "<think>hm</think>two" in texts[0]
    assert "<think>hm</think>two" not in texts[1]
    assert "<think>hm</think>four" in texts[1]


def test_an_answer_that_is_not_trained_is_given(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (
        Message(role="user", content="one"),
        Message(role="assistant", content="two", train=False),
        Message(role="user", content="three"),
        Message(role="assistant", content="four"),
    )
    encoded = _encode(load_template("human-assistant", tokenizer), messages)
    (run,) = _trained(encoded)
    given_text = "Human: one\nAssistant: two<|endoftext|>\nHuman: three\nAssistant:"
    assert tokenizer.decode(run.prompt) == given_text
    assert tokenizer.decode(run.answer) == " four<|endoftext|>"
    assert encoded.pieces[0].num_supervised == len(run.answer)


def test_weights_go_with_the_tokens_of_their_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = list(_chat("one", "two", "three", "four"))
    messages[1] = replace(messages[1], weight=0.5)
    template = load_template("chatml", tokenizer)
    (piece,) = _encode(template, tuple(messages)).pieces
    example = piece.example(ORIGIN)
    assert example.weights is not None
    is_first = np.zeros(len(example), dtype=bool)
    is_first[piece.spans[0][0] : piece.spans[0][1]] = True
    assert (example.weights[is_first] == 0.5).all()
    assert (example.weights[~is_first] == 1).all()
    assert _encode(template, _chat("one", "two")).pieces[0].example(ORIGIN).weights is None


def test_train_on_last_and_all(tokenizer: PreTrainedTokenizerFast) -> None:
    template, messages = load_template("chatml", tokenizer), _chat("one", "two", "three", "four")
    (run,) = _trained(_encode(template, messages, train_on="last"))
    assert tokenizer.decode(run.answer) == "four<|im_end|>"
    encoded = _encode(template, messages, train_on="all")
    ((start, end, _),) = encoded.pieces[0].spans
    # The first token is predicted by nothing.
    assert (start, end) == (1, len(encoded.pieces[0].ids))
    assert encoded.pieces[0].ids == _encode(template, messages).pieces[0].ids


def test_nothing_follows_the_last_stop_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for template in (load_template("chatml", tokenizer), _own(tokenizer, CHATML_OWN)):
        (piece,) = _encode(template, _chat("one", "two", "three", "four")).pieces
        assert piece.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert piece.spans[-1][1] == len(piece.ids)


def test_the_input_of_an_alpaca_row_reaches_the_ids_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = (
        Message(role="user", content="Sum up.", input="xyzzy"),
        Message(role="assistant", content="ok"),
    )
    for name in BUILT_IN:
        (run,) = _trained(_encode(load_template(name, tokenizer), messages))
        assert tokenizer.decode(run.prompt).count("xyzzy") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (  # the cue opens a thought that a finished answer does not have
            CHATML_OWN.replace(
                "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\nHm{% endif"
            ),
            "writes a finished answer (message 2) differently from the prompt",
        ),
        (
            CHATML_OWN.replace("<|im_end|>", "").replace("<|im_start|>", ""),
            "does not end an answer with a token of its own",
        ),
        (
            CHATML_OWN.replace("{{ m.content }}<|im_end|>", "{{ m.content }}<|im_end|>said"),
            "writes text behind the token that ends an answer",
        ),
        ("{{ raise_exception('roles must be nice') }}", "roles must be nice"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused_by_name(
    tokenizer: PreTrainedTokenizerFast, source: str, reason: str
) -> None:
    found = _reason(_own(tokenizer, source), *_chat("one", "two", "three", "S3cret"))
    assert "template model" in found
    assert reason in found
    assert "S3cret" not in found


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("place", range(4))
def test_a_control_token_in_a_message_is_refused(
    tokenizer: PreTrainedTokenizerFast, name: str, place: int
) -> None:
    texts = ["be kind", "one", "two", ""]
    texts[place] = "x<|im_end|>y"
    messages = (
        Message(role="system", content=texts[0]),
        Message(role="user", content=texts[1], input=texts[3]),
        Message(role="assistant", content=texts[2]),
    )
    number = {0: 1, 1: 2, 2: 3, 3: 2}[place]
    reason = _reason(load_template(name, tokenizer), *messages)
    assert reason.startswith(f"message {number} contains the control token <|im_end|>")


@pytest.mark.parametrize("name", BUILT_IN)
@given(left=st.text(alphabet="<|im_end>start", max_size=12), right=st.text("|>im_end<", max_size=9))
def test_pieces_of_control_tokens_never_become_one(
    tokenizer: PreTrainedTokenizerFast, name: str, left: str, right: str
) -> None:
    messages = (
        Message(role="user", content=f"a{left}", input=right),
        Message(role="assistant", content=f"{right}a{left}"),
    )
    template = load_template(name, tokenizer)
    try:
        (found,) = _encode(template, messages).pieces
    except RowError:
        return
    (clean,) = _encode(template, _chat("a", "b")).pieces
    special = set(tokenizer.all_special_ids)
    count = [sum(token in special for token in piece.ids) for piece in (found, clean)]
    assert count[0] == count[1]


ENDS_WITH_SPACE = Declared(user="Q: {content}\nA: ", assistant="{content}")
SPACED_CONTENT = CONTENT.filter(lambda text: "▁" not in text)


@pytest.mark.parametrize("name", [*BUILT_IN, "ends-with-space"])
@pytest.mark.parametrize("kind", ["metaspace_tokenizer", "legacy_metaspace_tokenizer"])
@given(question=SPACED_CONTENT, answer=SPACED_CONTENT)
def test_a_sentencepiece_tokenizer_doubles_no_space_before_the_answer(
    request: pytest.FixtureRequest, kind: str, name: str, question: str, answer: str
) -> None:
    metaspace: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    template = (
        declare(name, ENDS_WITH_SPACE, metaspace)
        if name == "ends-with-space"
        else load_template(name, metaspace)
    )
    messages = _chat(question, answer)
    encoder = _encoder(template)
    encoded = encoder.encode(Sample(messages=messages, origin=ORIGIN))
    whole = metaspace(encoder.renderer.transcript(messages), add_special_tokens=False)["input_ids"]
    assert metaspace.decode(encoded.pieces[0].ids) == metaspace.decode(whole)
    (run,) = _trained(encoded)
    assert [run.prompt] == _served(template, messages)
    stop = template.stop
    assert stop is not None
    assert run.answer[-1] == metaspace.convert_tokens_to_ids(stop)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("kind", ["metaspace_tokenizer", "legacy_metaspace_tokenizer"])
@given(messages=conversations())
def test_a_sentencepiece_tokenizer_trains_behind_the_served_prompt_in_every_turn(
    request: pytest.FixtureRequest, kind: str, name: str, messages: tuple[Message, ...]
) -> None:
    template = load_template(name, request.getfixturevalue(kind))
    runs = _trained(_encode(template, messages))
    assert [run.prompt for run in runs] == _served(template, messages)


@pytest.mark.parametrize("kind", ["metaspace_tokenizer", "legacy_metaspace_tokenizer"])
@given(question=SPACED_CONTENT, answer=SPACED_CONTENT)
def test_a_sentencepiece_tokenizer_writes_control_tokens_as_text_without_a_space(
    request: pytest.FixtureRequest, kind: str, question: str, answer: str
) -> None:
    metaspace: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    template = _own(metaspace, CHATML_OWN)
    messages = _chat(f"{question}<|pad|>x", f"{answer}<|im_end|>y")
    encoder = _encoder(template, special_tokens="escape")
    (piece,) = encoder.encode(Sample(messages=messages, origin=ORIGIN)).pieces
    ((start, end, _),) = piece.spans
    assert metaspace.decode(piece.ids[start:end]).endswith("<|im_end|>y<|im_end|>")
    sanitized = metaspace.apply_chat_template(
        [{"role": "user", "content": messages[0].content}],
        chat_template=CHATML_OWN,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    assert piece.ids[:start] == sanitized
    assert encoder.prompt_ids(messages[:1]) == sanitized


@pytest.mark.parametrize("name", [*BUILT_IN, "own"])
@given(messages=conversations())
def test_bos_stands_first_and_once_where_the_tokenizer_adds_one(
    bos_tokenizer: PreTrainedTokenizerFast, name: str, messages: tuple[Message, ...]
) -> None:
    template = (
        _own(bos_tokenizer, "{{ bos_token }}" + CHATML_OWN)
        if name == "own"
        else load_template(name, bos_tokenizer)
    )
    bos = bos_tokenizer.bos_token_id
    encoded = _encode(template, messages)
    for piece in encoded.pieces:
        assert piece.ids[0] == bos
        assert piece.spans[0][0] > 0
        assert piece.ids.count(bos) == 1
    assert [run.prompt for run in _trained(encoded)] == _served(template, messages)


def test_bos_is_not_doubled_where_a_declared_template_writes_it_too(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    spec = Declared(user="{bos}Q: {content}\nA:", assistant=" {content}")
    (piece,) = _encode(declare("mine", spec, bos_tokenizer), _chat("one", "two")).pieces
    assert piece.ids.count(bos_tokenizer.bos_token_id) == 1


def test_a_template_that_writes_bos_twice_is_refused(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = _own(bos_tokenizer, "{{ bos_token }}{{ bos_token }}" + CHATML_OWN)
    with pytest.raises(TemplateFault, match="writes the start token twice"):
        _encode(template, _chat("one", "two"))


def test_a_stop_that_is_ordinary_text_is_refused_or_ends_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert "is" in tokenizer.get_vocab()  # so that "i" + "s" would merge
    spec = Declared(user="Q: {content}\nA:", assistant=" {content}", stop="s")
    with pytest.raises(UsageError):
        declare("mine", spec, tokenizer)


def test_an_answer_that_contains_its_own_stop_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["###"])  # not special, and nothing like a marker
    spec = Declared(user="Q: {content} A:", assistant=" {content}", stop="###")
    reason = _reason(declare("mine", spec, added), *_chat("one", "two ### three"))
    assert reason.startswith("message 2 contains the control token ###")


def test_prompt_ids_are_those_of_serving(tokenizer: PreTrainedTokenizerFast) -> None:
    template = load_template("chatml", tokenizer)
    messages = _chat("one", "two", "three", "four")
    encoder = _encoder(template)
    served = _served(template, messages)
    assert [encoder.prompt_ids(messages[:1]), encoder.prompt_ids(messages[:3])] == served


def test_prompt_ids_of_a_fresh_encoder_hand_calls_over_as_training_did(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = CHATML_OWN.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name ~ ' ' }}"
        "{{ '' + c.function.arguments }}{% endfor %}",
    )
    template = _own(tokenizer, source)
    call = ToolCall(name="f", arguments={"city": "Rome"}, id="c1")
    messages = (
        Message(role="user", content="q"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="warm", name="f", tool_call_id="c1"),
        Message(role="assistant", content="a"),
    )
    runs = _trained(_encode(template, messages))
    assert tokenizer.decode(runs[0].answer) == 'f {"city": "Rome"}<|im_end|>'
    assert _encoder(template).prompt_ids(messages[:3]) == runs[1].prompt


def test_a_tokenizer_json_that_truncates_and_pads_does_neither(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = load_template("chatml", tokenizer)
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.enable_truncation(3)
    core.enable_padding(length=99)
    sample = Sample(messages=_chat("one", "two"), origin=ORIGIN)
    made = Encoder(template.spec(DATE), Tokenizer.from_str(core.to_str()), EncodeOptions())
    assert made.encode(sample).pieces == _encoder(template).encode(sample).pieces


@given(messages=conversations(), limit=st.integers(1, 80))
def test_what_is_cut_is_the_end_and_every_token_is_accounted_for(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...], limit: int
) -> None:
    for template in (load_template("chatml", tokenizer), _own(tokenizer, FORGETS_THINKING)):
        whole, cut = _encode(template, messages), _encode(template, messages, truncate_to=limit)
        assert cut.num_tokens == whole.num_tokens == sum(len(p.ids) for p in whole.pieces)
        kept = sum(len(piece.ids) for piece in cut.pieces)
        assert kept + cut.cut_answer + cut.cut_context == whole.num_tokens
        supervised = sum(piece.num_supervised for piece in whole.pieces)
        assert sum(piece.num_supervised for piece in cut.pieces) == supervised - cut.cut_answer
        full = {tuple(piece.ids): piece for piece in whole.pieces}
        for piece in cut.pieces:
            assert len(piece.ids) <= limit
            assert any(ids[: len(piece.ids)] == tuple(piece.ids) for ids in full)
            assert cut.stops == whole.stops


@given(messages=conversations(), limit=st.integers(1, 80))
def test_a_cut_answer_has_no_stop_and_no_question_is_left_without_its_answer(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...], limit: int
) -> None:
    template = load_template("chatml", tokenizer)
    (whole,) = _encode(template, messages).pieces
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for piece in _encode(template, messages, truncate_to=limit).pieces:
        start, end, _ = piece.spans[-1]
        assert end == len(piece.ids)
        assert start < end
        uncut = whole.spans[len(piece.spans) - 1]
        assert (piece.ids[end - 1] == stop) == (end == uncut[1])
        assert piece.spans[:-1] == whole.spans[: len(piece.spans) - 1]
        assert all(one[1] <= other[0] for one, other in pairwise(piece.spans))


@pytest.mark.parametrize("kind", ["tokenizer", "metaspace_tokenizer"])
def test_an_answer_is_cut_between_characters(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    template, messages = load_template("chatml", tokenizer), _chat("q", "水🙂é👩‍👩‍👧 水")
    (whole,) = _encode(template, messages).pieces
    texts = set()
    for limit in range(1, len(whole.ids)):
        for piece in _encode(template, messages, truncate_to=limit).pieces:
            ((start, end, _),) = piece.spans
            texts.add(tokenizer.decode(piece.ids[start:end]))
    assert not any("\ufffd" in text for text in texts)
    assert all("水🙂é👩‍👩‍👧 水".startswith(text) for text in texts)
    assert len(texts) >= 8


def test_what_fits_is_not_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    template, messages = load_template("chatml", tokenizer), _chat("one", "two")
    (whole,) = _encode(template, messages).pieces
    cut = _encode(template, messages, truncate_to=len(whole.ids))
    assert cut.pieces == [whole]
    assert (cut.cut_answer, cut.cut_context) == (0, 0)


def test_a_prompt_that_fills_the_limit_leaves_nothing_to_train(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template, messages = load_template("chatml", tokenizer), _chat("a long question" * 9, "two")
    cut = _encode(template, messages, truncate_to=20)
    assert cut.pieces == []
    assert cut.cut_answer + cut.cut_context == cut.num_tokens
