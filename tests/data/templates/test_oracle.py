"""Ours against two independent ways: the twins that trl tagged by hand, and transformers' serving.

The templates are the files that trl ships; the conversations, the comparison and the table of
declared exceptions are in `benchmarks/` (`stock`, `twins`, `exceptions`), from where
`docs/templates.md` is written, too.
"""

from dataclasses import replace
from datetime import date
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.oracle.exceptions import EXCEPTIONS
from benchmarks.oracle.stock import (
    AS_TEXT,
    SUITE,
    as_row,
    read_stock,
    spec_of,
    stock_names,
    tokenizer_of,
    tokens_of,
    twin_names,
)
from benchmarks.oracle.twins import Explained, compare, explain
from benchmarks.templates import PAGES, Language, page
from duiti.data.tokens.encode import Encoded, EncodeOptions, Encoder
from duiti.errors import RowError
from duiti.types import Message, Origin, Sample

CONVERSATIONS = (*SUITE, AS_TEXT)
WANT_PARTS = ("idefics3", "llava_next", "smolvlm")
"""Templates that show no plain text."""


@cache
def explained(name: str, conversation: str) -> Explained:
    return explain(compare(name, conversation))


@cache
def encoder_of(name: str, day: date) -> Encoder:
    tokenizer = Tokenizer.from_str(tokenizer_of(name).backend_tokenizer.to_str())
    return Encoder(spec_of(name, day.isoformat()), tokenizer, EncodeOptions())


def test_the_suite_has_every_template_and_its_twin() -> None:
    assert len(stock_names()) == 41
    assert len(twin_names()) == 31


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", twin_names())
def test_what_is_trained_is_what_the_twin_trains_but_for_declared_exceptions(
    name: str, conversation: str
) -> None:
    assert explained(name, conversation).exceptions <= EXCEPTIONS.keys()


def test_every_declared_exception_occurs() -> None:
    found = {
        exception
        for name in twin_names()
        for conversation in CONVERSATIONS
        for exception in explained(name, conversation).exceptions
    }
    assert found == EXCEPTIONS.keys()


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_say_what_the_tests_prove(language: Language) -> None:
    assert PAGES[language].read_text(encoding="utf-8") == page(language), (
        "python -m benchmarks.templates --write"
    )


@pytest.mark.parametrize("name", [name for name in twin_names() if name not in WANT_PARTS])
def test_trained_ids_are_those_of_the_twins_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    num_compared = 0
    for conversation in CONVERSATIONS:
        pair, found = compare(name, conversation), explained(name, conversation)
        if pair.refusal:
            continue
        runs = trained_runs(encoder_of(name, date.today()).encode(pair.sample))
        assert [tokenizer.decode(ids) for _, ids in runs] == [turn.answer for turn in pair.turns]
        for number, ids in found.aligned.items():
            assert runs[number][1] == ids
            num_compared += 1
    assert num_compared > 0


def trained_runs(encoded: Encoded) -> list[tuple[list[int], list[int]]]:
    """The ids before each trained answer, and its own."""
    return [
        (piece.ids[:start], piece.ids[start:end])
        for piece in encoded.pieces
        for start, end, _ in piece.spans
    ]


def served_ids(name: str, sample: Sample) -> list[list[int]]:
    """Prompt ids of every answer, as a server makes them: by transformers alone."""
    as_text = name in TAKE_TEXT
    rows = [as_row(message, arguments_as_text=as_text) for message in sample.messages]
    return [
        tokenizer_of(name).apply_chat_template(
            rows[:number],
            tools=list(sample.tools) or None,
            chat_template=read_stock(name),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for number, message in enumerate(sample.messages)
        if message.role == "assistant"
    ]


TAKE_TEXT = ("deepseekv3",)
"""Templates that read the arguments of a call as a string of JSON only."""

STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    **dict.fromkeys(("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<turn|>"),
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    **dict.fromkeys(("llama3", "llama3_1", "llama3_2"), "<|eot_id|>"),
    "muse_glimmer": "<|eot|>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
}
"""The token that ends an answer, written down by hand; elsewhere it is `<|im_end|>`."""
CALL_STOPS = {
    **dict.fromkeys(("gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<|tool_response>"),
    "diffusion_gemma": "<|tool_response>",
    "glm4moe": "<|observation|>",
    "gptoss": "<|call|>",
}
"""The token that ends a turn that calls a tool, where it is another."""

REFUSALS = (
    "cannot write tool calls",
    "System role not supported",
    "closes the thinking in the prompt",
    "opens the thinking in the prompt and leaves it out",
    "single tool-calls at once",
    "Cannot pass both content and thinking",
)
"""Why a template that works at all may refuse a conversation."""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10) | st.text(
    alphabet="ab .\n\t<|>/{}\"'水🙂", min_size=1, max_size=10
)


CONTROL = {
    text
    for name in stock_names()
    for text, is_special in tokens_of(read_stock(name)).items()
    if is_special
}


def is_plain(text: str) -> bool:
    return bool(text.strip()) and not any(token in text for token in (*CONTROL, "\ufdd0", "\ufdd1"))


CONTENT = TEXT.filter(is_plain)
ANSWER = CONTENT | CONTENT.map(lambda text: f"<think>\n{text}\n</think>\n\n{text}")
CALL_ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "days"]), CONTENT | st.integers(-9, 9) | st.booleans(), min_size=1
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Conversations with and without a system message, thinking, and tools."""
    weather = SUITE["call"].tools
    messages = []
    if draw(st.booleans()):
        messages.append(Message(role="system", content=draw(CONTENT)))
    tools = weather if draw(st.booleans()) else ()
    for number in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(CONTENT)))
        if tools and draw(st.booleans()):
            messages += draw(tool_round(number))
        reasoning = draw(st.just("") | CONTENT)
        content = draw(CONTENT if reasoning else ANSWER)
        messages.append(Message(role="assistant", content=content, reasoning=reasoning))
    return Sample(messages=tuple(messages), origin=Origin("made", 1), tools=tools)


@st.composite
def tool_round(draw: st.DrawFn, number: int) -> list[Message]:
    (call,) = SUITE["call"].messages[-1].tool_calls
    call = replace(call, arguments=draw(CALL_ARGUMENTS), id=f"call0000{number}")
    reasoning = draw(st.just("") | CONTENT)
    content = draw(st.just("") | CONTENT)
    return [
        Message(role="assistant", content=content, reasoning=reasoning, tool_calls=(call,)),
        Message(role="tool", content=draw(CONTENT), name=call.name, tool_call_id=call.id),
    ]


def encoded_or_refused(name: str, sample: Sample) -> Encoded | None:
    """The examples of a sample; None where the template has a reason to refuse it."""
    try:
        return encoder_of(name, date.today()).encode(sample)
    except RowError as error:
        found = str(error)
    calls = [message for message in sample.messages if message.tool_calls]
    is_moved = "gemma" in name and any(message.content for message in calls)
    is_second = name == "deepseekv3" and len(calls) > 1
    reasons = (*REFUSALS, "differently") if is_moved or is_second else REFUSALS
    assert any(reason in found for reason in reasons), found
    return None


@pytest.mark.parametrize("name", [name for name in stock_names() if name not in WANT_PARTS])
@settings(max_examples=40)
@given(sample=samples())
def test_every_trained_turn_stands_behind_the_served_prompt_and_ends_in_one_stop(
    name: str, sample: Sample
) -> None:
    encoded = encoded_or_refused(name, sample)
    if encoded is None:
        return
    tokenizer = tokenizer_of(name)
    runs = trained_runs(encoded)
    assert [prompt for prompt, _ in runs] == served_ids(name, sample)
    answers = [message for message in sample.messages if message.role == "assistant"]
    for message, (prompt, ids) in zip(answers, runs, strict=True):
        stop = STOPS.get(name, "<|im_end|>")
        if message.tool_calls:
            stop = CALL_STOPS.get(name, stop)
        stop_id = tokenizer.convert_tokens_to_ids(stop)
        assert ids[-1] == stop_id
        assert ids.count(stop_id) == 1
        is_open = tokenizer.decode(prompt).endswith("<think>\n")
        said = "<think>\n" * is_open + tokenizer.decode(ids)
        assert message.content in said or any("answer" in note for note in encoded.notes)
    for piece in encoded.pieces:
        assert piece.spans[-1][1] == len(piece.ids)
        assert all(one[1] < other[0] for one, other in pairwise(piece.spans))
