"""What a template did to the text of a row: sentences without content, to be counted over rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from duiti.types import Json, Message


def lost_in_answer(message: Message, prompt: str, answer: str) -> set[str]:
    """What became of an answer in the text that is trained behind a prompt."""
    notes = set()
    bare = prompt.rstrip()
    if bare.endswith("<think>"):  # the prompt has said the beginning of a thought already
        answer = prompt[len(bare) - len("<think>") :] + answer
    if message.reasoning and message.reasoning.strip() not in answer:
        notes.add("the template leaves out the reasoning of an answer")
    if message.content not in answer:
        is_stripped = message.content.strip() in answer
        what = "strips white space around" if is_stripped else "rewrites or leaves out the text of"
        notes.add(f"the template {what} an answer")
    names = Counter(call.name for call in message.tool_calls)
    if any(answer.count(name) < count for name, count in names.items()):
        notes.add("the template leaves out a tool call of an answer")
    elif any(_is_lost(call.arguments, answer) for call in message.tool_calls):
        notes.add("the template rewrites or leaves out an argument of a tool call")
    return notes


def lost_in_prompt(messages: Sequence[Message], tools: Sequence[Json], prompt: str) -> set[str]:
    """What became of the tools and of the messages before an answer; earlier answers are the
    template's to say."""
    notes = set()
    if not all(name in prompt for name in map(_tool_name, tools)):
        notes.add("the template leaves out the tools of a row")
    for message in messages:
        if message.role == "assistant" or message.content in prompt:
            continue
        if message.content.strip() in prompt:
            notes.add(f"the template strips white space around a {message.role} message")
        elif _as_json(message.content) not in prompt:
            notes.add(f"the template rewrites or leaves out a {message.role} message")
    return notes


def _tool_name(tool: Json) -> str:
    inner = tool.get("function", tool) if isinstance(tool, dict) else tool
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else ""


def _is_lost(arguments: Json, answer: str) -> bool:
    """Whether a name or a text of some arguments does not show."""
    if isinstance(arguments, str):
        return arguments not in answer and _as_json(arguments) not in answer
    if isinstance(arguments, list):
        return any(_is_lost(item, answer) for item in arguments)
    if isinstance(arguments, dict):
        return any(_is_lost(key, answer) or _is_lost(v, answer) for key, v in arguments.items())
    return False


def _as_json(text: str) -> str:
    """As templates write it inside a JSON string (gpt-oss: results of tools)."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
