"""Chat templates as they are in use, and conversations to try them on.

    for name in stock_names(): source = read_stock(name)
    sample = SUITE["three turns"]
    tokenizer = tokenizer_of("qwen3")

The templates are the files that the package `trl` ships: those of the models themselves, and for
many of them a twin that marks by `{% generation %}` what to train. They are read from the installed
package, which is not imported.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from duiti.data.templates.render import TemplateSpec
from duiti.types import Json, Message, Origin, Sample, ToolCall

DATE = "2026-03-31"
BOS, EOS = "<|bos|>", "<|endoftext|>"
"""Of the made-up tokenizers; templates that need another end write it themselves."""
TWIN = "_training"

_MARKER = re.compile(r"""<[|｜][^<>\s'"{}]+>|<[^<>\s'"{}]+[|｜]>|<\|"\|>""")
_SPECIAL = (
    *("<s>", "</s>", "[INST]", "[/INST]", "<image>", "<end_of_utterance>", "[gMASK]", "<sop>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
)
"""Special tokens that do not look like markers."""
_ADDED = ("think", "tool_call", "tool_response")
"""Added tokens that are not special, as the tokenizers of Qwen have them; each opens and closes."""


def stock_names() -> list[str]:
    """Names of the models' own templates."""
    return sorted(path.stem for path in _folder().glob("*.jinja") if TWIN not in path.stem)


def twin_names() -> list[str]:
    """Names of those that have a twin."""
    return [name for name in stock_names() if (_folder() / f"{name}{TWIN}.jinja").is_file()]


def read_stock(name: str) -> str:
    """The source of a template; `name + TWIN` is its twin's."""
    return (_folder() / f"{name}.jinja").read_text(encoding="utf-8")


def spec_of(name: str, date: str = DATE) -> TemplateSpec:
    """A stock template, as `duiti` renders it."""
    tokens = {"bos_token": BOS, "eos_token": EOS}
    return TemplateSpec(name=name, source=read_stock(name), special_tokens=tokens, date=date)


def tokens_of(source: str) -> dict[str, bool]:
    """Texts of the added tokens that a template writes, and whether each is special."""
    special = [*_MARKER.findall(source), *(text for text in _SPECIAL if text in source), BOS, EOS]
    added = [text for name in _ADDED for text in (f"<{name}>", f"</{name}>") if text in source]
    return {**dict.fromkeys(special, True), **dict.fromkeys(added, False)}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has the tokens of a template: any text comes back unchanged, and
    as in every tokenizer of today, two line breaks are one token."""
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator([_CORPUS], trainer)
    raw.add_tokens(
        [
            AddedToken(text, special=is_special, normalized=False)
            for text, is_special in sorted(tokens_of(read_stock(name)).items())
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS)


def as_row(message: Message, *, arguments_as_text: bool = False) -> dict[str, Json]:
    """A message as a row of a file has it, and as a client sends it to a server."""
    row: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [_call(call, arguments_as_text) for call in message.tool_calls]
    if message.role == "tool":
        row |= {"name": message.name, "tool_call_id": message.tool_call_id}
    return row


def _call(call: ToolCall, as_text: bool) -> Json:
    arguments = json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments
    function: Json = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _folder() -> Path:
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package trl is not installed: make setup")
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""That of Qwen2; those of Llama 3 and DeepSeek treat line breaks alike."""
_CORPUS = "user\n\nassistant\n\nThe answer is three degrees.\n\nWhat is the weather?\n\n" * 3


def _user(content: str) -> Message:
    return Message(role="user", content=content)


def _answer(content: str, reasoning: str = "", *calls: ToolCall) -> Message:
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


def _result(content: str, id_: str = "call00001") -> Message:
    return Message(role="tool", content=content, name="get_weather", tool_call_id=id_)


def _chat(*messages: Message, tools: tuple[Json, ...] = ()) -> Sample:
    return Sample(messages=messages, origin=Origin("suite", 1), tools=tools)


_RULE = Message(role="system", content="be brief")
_CALL = ToolCall(name="get_weather", arguments={"city": "北京", "days": 2}, id="call00001")
_SECOND = ToolCall(name="get_weather", arguments={"city": "Paris", "days": 1}, id="call00002")
_WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city"],
        },
    },
}
_TOOLS = (_WEATHER,)

SUITE: dict[str, Sample] = {
    "one turn": _chat(_user("hi"), _answer("hello")),
    "three turns": _chat(
        _user("q1"), _answer("a1"), _user("q2"), _answer("a2"), _user("q3"), _answer("a3")
    ),
    "system": _chat(_RULE, _user("q1"), _answer("a1")),
    "thinking in the last turn": _chat(
        _user("q1"), _answer("a1"), _user("q2"), _answer("a2", "because")
    ),
    "thinking in the first turn": _chat(
        _user("q1"), _answer("a1", "because"), _user("q2"), _answer("a2")
    ),
    "thinking in every turn": _chat(
        _user("q1"), _answer("a1", "r1"), _user("q2"), _answer("a2", "r2")
    ),
    "thinking inline": _chat(_user("q1"), _answer("<think>\nr1\n</think>\n\na1")),
    "white space": _chat(_user("  q1 \n"), _answer(" \n a1 \n\n")),
    "newlines": _chat(_user("q1\n"), _answer("\na1\n"), _user("\n\nq2"), _answer("\n\na2\n\n")),
    "CJK and emoji": _chat(_user("水的化学式是什么？🙂"), _answer("水的化学式是 H₂O。👩‍👩‍👧")),
    "empty answer": _chat(_user("q1"), _answer("")),
    "empty question": _chat(_user(""), _answer("a1")),
    "begins like a token": _chat(_user("<b>q1</b>"), _answer("<b>a1</b> <|x")),
    "call": _chat(_user("q1"), _answer("", "", _CALL), tools=_TOOLS),
    "call and result": _chat(
        _user("q1"),
        _answer("", "", _CALL),
        _result('{"t": 3}'),
        _answer("3 degrees"),
        tools=_TOOLS,
    ),
    "call with text": _chat(
        _user("q1"),
        _answer("let me see", "", _CALL),
        _result('{"t": 3}'),
        _answer("3 degrees"),
        _user("thx"),
        _answer("ok"),
        tools=_TOOLS,
    ),
    "call with thinking": _chat(
        _RULE,
        _user("q1"),
        _answer("", "look it up", _CALL),
        _result('{"t": 3}'),
        _answer("3 degrees", "it says 3"),
        tools=_TOOLS,
    ),
    "call in two turns": _chat(
        _user("q1"),
        _answer("", "", _CALL),
        _result('{"t": 3}'),
        _answer("3 degrees"),
        _user("and Paris?"),
        _answer("", "", _SECOND),
        _result("warm", "call00002"),
        _answer("warm"),
        tools=_TOOLS,
    ),
    "two calls": _chat(
        _user("q1"),
        _answer("", "", _CALL, _SECOND),
        _result('{"t": 3}'),
        _result("warm", "call00002"),
        _answer("3 degrees, warm"),
        tools=_TOOLS,
    ),
}
"""Conversations by what is special about them."""

AS_TEXT = "call and result, arguments as text"
"""`call and result` once more, as a row whose calls have strings of JSON for arguments."""
