"""The mask: given is exactly what serving sends, trained exactly the answer and its stop token."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from duiti.data import encode
from duiti.data.encode import Encoder
from duiti.data.template import BUILT_IN, Declared, Template, declare, load_template
from duiti.errors import UsageError
from duiti.types import IGNORE_INDEX, Example, Message, Origin, Rejected, Sample

ORIGIN = Origin("f.jsonl", 1)
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text(
    alphabet="ab .\n\t:{}<|>水🙂'Human", min_size=1, max_size=12
)
SPECIAL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|bos|>")
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


def _encode(template: Template, messages: tuple[Message, ...]) -> list[Example]:
    sample = Sample(messages=messages, origin=ORIGIN)
    (found,) = Encoder(template.tokenizer, template).encode([sample])
    assert not isinstance(found, Rejected), found.reason
    assert all(example.origin == ORIGIN for example in found)
    return list(found)


def _reason(template: Template, *messages: Message) -> str:
    sample = Sample(messages=messages, origin=ORIGIN)
    (found,) = Encoder(template.tokenizer, template).encode([sample])
    assert isinstance(found, Rejected)
    assert found.origin == ORIGIN
    return found.reason


def _trained(examples: list[Example]) -> list[Trained]:
    """The trained runs, in order; checks that a label is the id itself or -100."""
    found = []
    for example in examples:
        ids, labels = example.input_ids, example.labels
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
    runs = _trained(_encode(template, messages))
    tokenizer = template.tokenizer
    assert [run.prompt for run in runs] == _served(template, messages)
    answers = [m.content for m in messages if m.role == "assistant" and m.train is not False]
    decoded = [tokenizer.decode(run.answer) for run in runs]
    assert decoded == [before + answer + stop for answer in answers]
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    assert all(run.answer[-1] == stop_id and run.answer.count(stop_id) == 1 for run in runs)


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
        Message(role=m.role, content=f"<think>{next(thinking)}</think>{m.content}", train=m.train)
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
        assert len(_encode(template, plain)) == 1
    forgetful = _own(tokenizer, FORGETS_THINKING)
    assert len(_encode(forgetful, plain)) == 1
    unrolled = _encode(forgetful, thinking)
    assert len(unrolled) == 2
    texts = [tokenizer.decode(example.input_ids.tolist()) for example in unrolled]
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
    (example,) = _encode(load_template("human-assistant", tokenizer), messages)
    (run,) = _trained([example])
    given_text = "Human: one\nAssistant: two<|endoftext|>\nHuman: three\nAssistant:"
    assert tokenizer.decode(run.prompt) == given_text
    assert tokenizer.decode(run.answer) == " four<|endoftext|>"
    assert example.num_supervised == len(run.answer)


def test_nothing_follows_the_last_stop_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for template in (load_template("chatml", tokenizer), _own(tokenizer, CHATML_OWN)):
        (example,) = _encode(template, _chat("one", "two", "three", "four"))
        assert example.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert example.labels[-1] == example.input_ids[-1]


def test_the_input_of_an_alpaca_row_reaches_the_ids_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = (
        Message(role="user", content="Sum up.", input="xyzzy"),
        Message(role="assistant", content="ok"),
    )
    for name in BUILT_IN:
        (example,) = _encode(load_template(name, tokenizer), messages)
        (run,) = _trained([example])
        assert tokenizer.decode(run.prompt).count("xyzzy") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (  # the cue opens a thought that a finished answer does not have
            CHATML_OWN.replace(
                "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\nHm{% endif"
            ),
            "the prefix property does not hold",
        ),
        (CHATML_OWN.replace("<|im_end|>", ""), "does not end an answer with one stop token"),
        (
            CHATML_OWN.replace("<|im_end|>\n", "<|im_end|><|endoftext|>"),
            "does not end an answer with one stop token",
        ),
        (
            CHATML_OWN.replace("{{ m.content }}<|im_end|>", "{{ m.content }}<|im_end|>said"),
            "does not end an answer with one stop token",
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
    assert reason == f"message {number} contains the control token <|im_end|>"


@pytest.mark.parametrize("name", BUILT_IN)
@given(left=st.text(alphabet="<|im_end>start", max_size=12), right=st.text("|>im_end<", max_size=9))
def test_pieces_of_control_tokens_never_become_one(
    tokenizer: PreTrainedTokenizerFast, name: str, left: str, right: str
) -> None:
    template = load_template(name, tokenizer)
    messages = (
        Message(role="user", content=f"a{left}", input=right),
        Message(role="assistant", content=f"{right}a{left}"),
    )
    sample = Sample(messages=messages, origin=ORIGIN)
    plain = Sample(messages=_chat("a", "b"), origin=ORIGIN)
    encoder = Encoder(tokenizer, template)
    found, clean = encoder.encode([sample, plain])
    if isinstance(found, Rejected):
        return
    assert not isinstance(clean, Rejected)
    special = set(tokenizer.all_special_ids)
    count = [sum(int(t) in special for t in item[0].input_ids) for item in (found, clean)]
    assert count[0] == count[1]


def test_a_refused_row_leaves_the_others_in_their_order(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK_ROWS", 2)
    encoder = Encoder(tokenizer, load_template("human-assistant", tokenizer))
    rows: list[Sample | Rejected] = []
    for line in range(1, 10):
        content = "<|pad|>" if line in (2, 5) else f"row {line}"
        sample = Sample(messages=_chat("q", content), origin=Origin("f", line))
        rows.append(Rejected(Origin("f", line), "earlier") if line in (3, 9) else sample)
    found = list(encoder.encode(rows))
    assert len(found) == 9
    for line, item in enumerate(found, start=1):
        if line in (2, 3, 5, 9):
            assert isinstance(item, Rejected)
            assert item.origin.line == line
        else:
            assert not isinstance(item, Rejected)
            assert item[0].origin.line == line
            assert f"row {line}" in tokenizer.decode(item[0].input_ids.tolist())


def test_chunks_change_no_ids(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(tokenizer, load_template("chatml", tokenizer))
    samples = [Sample(messages=_chat(f"q{n}", f"a{n}" * n), origin=ORIGIN) for n in range(1, 9)]
    whole = [item for item in encoder.encode(samples) if not isinstance(item, Rejected)]
    monkeypatch.setattr(encode, "CHUNK_ROWS", 3)
    parts = [item for item in encoder.encode(samples) if not isinstance(item, Rejected)]
    assert [e.input_ids.tolist() for (e,) in whole] == [e.input_ids.tolist() for (e,) in parts]


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
    (example,) = _encode(template, messages)
    whole = metaspace(template.transcript(messages), add_special_tokens=False)["input_ids"]
    assert metaspace.decode(example.input_ids.tolist()) == metaspace.decode(whole)
    (run,) = _trained([example])
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
    examples = _encode(template, messages)
    for example in examples:
        assert example.input_ids[0] == bos
        assert example.labels[0] == IGNORE_INDEX
        assert (example.input_ids == bos).sum() == 1
    assert [run.prompt for run in _trained(examples)] == _served(template, messages)


def test_bos_is_not_doubled_where_a_declared_template_writes_it_too(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    spec = Declared(user="{bos}Q: {content}\nA:", assistant=" {content}")
    (example,) = _encode(declare("mine", spec, bos_tokenizer), _chat("one", "two"))
    assert (example.input_ids == bos_tokenizer.bos_token_id).sum() == 1


def test_a_stop_that_is_ordinary_text_is_refused_or_ends_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert "is" in tokenizer.get_vocab()  # so that "i" + "s" would merge
    spec = Declared(user="Q: {content}\nA:", assistant=" {content}", stop="s")
    try:
        template = declare("mine", spec, tokenizer)
    except UsageError:
        return
    (example,) = _encode(template, _chat("one", "i"))
    assert example.input_ids[-1] == tokenizer.convert_tokens_to_ids("s")


def test_an_answer_that_contains_its_own_stop_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    spec = Declared(user="Q: {content} A:", assistant=" {content}", stop="\n")
    try:
        template = declare("mine", spec, tokenizer)
    except UsageError:
        return
    assert "stop" in _reason(template, *_chat("one", "two\nthree"))


def test_prompt_ids_are_those_of_serving(tokenizer: PreTrainedTokenizerFast) -> None:
    template = load_template("chatml", tokenizer)
    messages = _chat("one", "two", "three", "four")
    encoder = Encoder(tokenizer, template)
    served = _served(template, messages)
    assert [encoder.prompt_ids(messages[:1]), encoder.prompt_ids(messages[:3])] == served
