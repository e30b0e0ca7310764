"""Templates write exactly their strings and the messages, or say that they cannot."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from duiti.data.jobs import prompt_service
from duiti.data.templates.render import Renderer
from duiti.data.templates.template import (
    BUILT_IN,
    Declared,
    Template,
    declare,
    load_template,
    starts_with_bos,
)
from duiti.errors import RowError, UsageError
from duiti.types import Message

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    alphabet="{}%#'\"\\\n \t-+$nux0🙂水", max_size=12
)
EOS = "<|endoftext|>"


def _say(*turns: str) -> list[Message]:
    """User, assistant, user, …"""
    return [
        Message(role="assistant" if number % 2 else "user", content=content)
        for number, content in enumerate(turns)
    ]


def _prompt(template: Template, messages: list[Message]) -> str:
    return Renderer(template.spec("2026-01-01")).prompt(messages)


def _transcript(template: Template, messages: list[Message]) -> str:
    return Renderer(template.spec("2026-01-01")).transcript(messages)


SYSTEM = Message(role="system", content="Be kind.")
WITH_INPUT = Message(role="user", content="Sum up.", input="Some text.")

SPELLED = {
    "human-assistant": (
        f"System: Be kind.\nHuman: Q1\nAssistant: A1{EOS}\nHuman: Q2\nAssistant:",
        f"Human: Q1\nAssistant: A1{EOS}",
        "Human: Sum up.\nSome text.\nAssistant:",
    ),
    "instruction-response": (
        "Be kind.\n\n### Instruction:\nQ1\n\n### Response:\n"
        f"A1{EOS}\n\n### Instruction:\nQ2\n\n### Response:\n",
        f"### Instruction:\nQ1\n\n### Response:\nA1{EOS}",
        "### Instruction:\nSum up.\nSome text.\n\n### Response:\n",
    ),
    "alpaca": (
        "Be kind.\n\n"
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\nQ1\n\n### Response:\nA1{EOS}\n\n"
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nQ2\n\n### Response:\n",
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\nQ1\n\n### Response:\nA1{EOS}",
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum up.\n\n### Input:\nSome text.\n\n### Response:\n",
    ),
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>",
        "<|im_start|>user\nSum up.\nSome text.<|im_end|>\n<|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_built_in_template_writes_its_text_to_the_character(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    conversation, one_turn, with_input = SPELLED[name]
    template = load_template(name, tokenizer)
    assert _prompt(template, [SYSTEM, *_say("Q1", "A1", "Q2")]) == conversation
    assert _transcript(template, _say("Q1", "A1")) == one_turn
    assert _prompt(template, [WITH_INPUT]) == with_input


def test_every_built_in_template_is_spelled_out_here() -> None:
    assert set(SPELLED) == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_saved_with_a_run_serves_as_it_was_trained(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    template = load_template(name, tokenizer)
    server = copy.deepcopy(tokenizer)
    server.chat_template = template.source
    chat = [{"role": m.role, "content": m.content} for m in [SYSTEM, *_say("Q1", "A1", "Q2")]]
    text = server.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == SPELLED[name][0]


HOSTILE = [
    "{{ 7 * 7 }}",
    "{% for m in messages %}{{ raise_exception('x') }}{% endfor %}",
    "{# gone #}",
    "{%- raw -%}",
    "{content} {input} {bos} {eos} {0} {}",
    "'\"\\n\\' ~ \\u0041 \\",
    "-%}\n\n  ",
    "line one\r\nline two\rline three\u2028line four",
    "水的化学式 🙂\U0001f468\u200d\U0001f469 e\u0301",
    "<b>&amp;</b>",
    "%(x)s %d $x",
]


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("content", HOSTILE)
def test_syntax_in_a_message_is_inert(
    tokenizer: PreTrainedTokenizerFast, name: str, content: str
) -> None:
    template = load_template(name, tokenizer)
    expected = (
        SPELLED[name][1].replace("Q1", "\x00").replace("A1", content).replace("\x00", content)
    )
    assert _transcript(template, _say(content, content)) == expected


@given(question=TEXT, answer=TEXT)
@pytest.mark.parametrize("name", BUILT_IN)
def test_any_content_appears_verbatim(
    tokenizer: PreTrainedTokenizerFast, name: str, question: str, answer: str
) -> None:
    template = load_template(name, tokenizer)
    before, _, after = SPELLED[name][1].partition("Q1")
    between, _, stop = after.partition("A1")
    expected = before + question + between + answer + stop
    assert _transcript(template, _say(question, answer)) == expected


def _spell(spec: Declared, messages: list[Message]) -> str:
    """What a declared template means, by plain string work."""
    text = ""
    for number, message in enumerate(messages):
        if message.role == "assistant":
            before, _, after = spec.assistant.partition("{content}")
            text += before + message.content + after + EOS
            continue
        if number and messages[number - 1].role == "assistant":
            text += spec.separator
        before, _, after = spec.user.partition("{content}")
        text += before + message.content + after
    return text


PIECES = TEXT.filter(lambda text: not any(key in text for key in ("{content}", "{input}", "os}")))


@given(
    pieces=st.tuples(PIECES, PIECES, PIECES, PIECES, PIECES), contents=st.tuples(TEXT, TEXT, TEXT)
)
def test_a_declared_template_writes_any_strings_and_any_content_verbatim(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pieces: tuple[str, ...],
    contents: tuple[str, ...],
) -> None:
    one, two, three, four, separator = pieces
    spec = Declared(
        user=f"{one}{{content}}{two}",
        assistant=f"{three}{{content}}{four}",
        separator=separator,
    )
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(), allow_unicode=True), encoding="utf-8")
    template = load_template(str(file), tokenizer)
    assert template.name == "mine"
    messages = _say(*contents)
    assert _prompt(template, messages) == _spell(spec, messages)
    assert _transcript(template, messages[:2]) == _spell(spec, messages[:2])


def test_a_declared_template_as_a_user_writes_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "qa.yaml"
    file.write_text(
        'system: "Rules {0}: {content}\\n"\n'
        'user: "Q: it\'s {content} \\\\ {{ x }} 🙂\\nA:"\n'
        'assistant: " {content}"\n'
        'separator: "\\n---\\n"\n'
        'stop: "<|im_end|>"\n',
        encoding="utf-8",
    )
    template = load_template(str(file), tokenizer)
    assert _prompt(template, [SYSTEM, *_say("one", "two", "three")]) == (
        "Rules {0}: Be kind.\nQ: it's one \\ {{ x }} 🙂\nA: two<|im_end|>"
        "\n---\nQ: it's three \\ {{ x }} 🙂\nA:"
    )


@pytest.mark.parametrize("place", ["user", "assistant", "system", "separator"])
def test_eos_is_filled_in_wherever_it_is_written(
    tokenizer: PreTrainedTokenizerFast, place: str
) -> None:
    strings = {"user": "Q: {content}\nA:", "system": "{content}", "assistant": "{content}"}
    strings[place] = strings.get(place, "") + "{eos}"
    template = declare("mine", Declared(**strings), tokenizer)
    text = _prompt(template, [SYSTEM, *_say("one", "two", "three")])
    assert "{eos}" not in text
    # one in place of the placeholder (two for the user, who speaks twice), one stop
    assert text.count(EOS) == (3 if place == "user" else 2)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("user: nothing here\n", "user: must contain {content} exactly once"),
        ("user: '{content}{content}'\n", "user: must contain {content} exactly once"),
        ("user: '{content}'\nassistant: 'x'\n", "assistant: must contain {content} exactly once"),
        ("user: '{content}'\nuser_with_input: '{content}'\n", "must contain {input} exactly once"),
        ("user: '{content}'\nsystm: '{content}'\n", 'unknown key "systm"'),
        ("assistant: '{content}'\n", "user: field required"),
        ("user: '{content}'\nuser: '{content}'\n", 'key "user" is given twice'),
        ("- user\n", "must be a mapping"),
        ("user: [\n", "not valid YAML"),
        ("user: '{content}'\nstop: 'several words here'\n", "not a token of its own"),
        ("user: '{content}'\nstop: ''\n", "not a token of its own"),
    ],
)
def test_a_template_file_that_cannot_be_meant_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: str, found: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_template(str(file), tokenizer)
    assert found in str(caught.value)


def test_a_name_that_is_no_template_gets_the_nearest_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(UsageError) as caught:
        load_template("chat-ml", tokenizer)
    assert 'Did you mean "chatml"?' in caught.value.what
    assert "human-assistant" in caught.value.fix


def test_a_stop_token_that_the_tokenizer_lacks_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(UsageError, match="has no eos token"):
        load_template("human-assistant", bare)
    spec = Declared(user="{content}", stop="<|eot_id|>")
    with pytest.raises(UsageError, match="not a token of its own"):
        declare("mine", spec, tokenizer)


def test_auto_is_the_models_own_template_or_human_assistant(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert load_template("auto", tokenizer).name == "human-assistant"
    with pytest.raises(UsageError, match="no chat template of its own"):
        load_template("model", tokenizer)
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = load_template("auto", own)
    assert (template.name, template.source) == ("model", own.chat_template)


def test_a_system_message_without_a_place_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    template = declare("mine", Declared(user="{content}"), tokenizer)
    with pytest.raises(RowError, match="it has no place for a system message"):
        _prompt(template, [SYSTEM, *_say("Q")])


def test_a_failing_template_is_named_and_the_message_is_not_quoted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    sources = {
        "{{ raise_exception('no ' ~ messages[0].content) }}": "refuses the conversation",
        "{{ raise_exception('only tools') }}": "only tools",
        "{{ messages[0].content.nothing.more }}": "refuses the conversation",
        "{{ messages[0].content + 1 }}": "fails on the conversation: TypeError",
        "{{ 1 / 0 }}": "fails on the conversation: ZeroDivisionError",
        "{{ ''.__class__.__mro__ }}": "",
        "{{ messages[0].content | int + none }}": "fails on the conversation: TypeError",
    }
    for source, reason in sources.items():
        own = copy.deepcopy(tokenizer)
        own.chat_template = source
        template = load_template("model", own)
        if not reason:  # the sandbox gives nothing, or refuses
            continue
        with pytest.raises(RowError) as caught:
            _prompt(template, _say("S3cret"))
        assert reason in str(caught.value)
        assert "the template model" in str(caught.value)
        assert "S3cret" not in str(caught.value)


def test_a_model_template_that_is_no_jinja_is_refused_with_its_name(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}"
    with pytest.raises(UsageError, match="the template model is not valid Jinja"):
        prompt_service(load_template("model", own)).prompt(_say("Q"))


def test_role_markers_are_the_lines_that_announce_a_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = {name: load_template(name, tokenizer).markers for name in BUILT_IN}
    assert found["human-assistant"] == ("Human:", "Assistant:")
    assert found["instruction-response"] == ("### Instruction:", "### Response:")
    assert found["chatml"] == ()


def test_a_tokenizer_that_adds_bos_is_recognised(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert not starts_with_bos(tokenizer)
    assert starts_with_bos(bos_tokenizer)
