"""Templates: how a conversation is laid out as text, for training and serving alike.

    template = load_template("auto", tokenizer)
    spec = template.spec("2026-03-31")      # what rendering needs (data/templates/render.py)

There is one kind: a Jinja chat template. The model's own is used as it is. The built-in and
user-declared ones are five strings that are compiled to Jinja, so the `chat_template.jinja` saved
with a run *is* what was trained, and any server that reads chat templates serves it as it was
trained. Nothing is rendered here: that is a program's work, done where it is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from duiti.config import explain
from duiti.data.templates.render import TemplateSpec
from duiti.errors import UsageError, did_you_mean
from duiti.strict_yaml import read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Declared(BaseModel):
    """A template as five strings; a user's YAML file holds exactly these keys.

    `{content}` is the message; `{input}` an alpaca row's input; `{bos}` and `{eos}` the tokenizer's
    tokens. Other braces are literal. Example:

        user: "Human: {content}\\nAssistant:"
        assistant: " {content}"
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    user: str
    """A question and the cue for the answer: all that is given."""
    assistant: str = "{content}"
    """The answer: all that is produced, before the stop token."""
    system: str = ""
    """A system message; empty: the template has no place for one."""
    stop: str = "{eos}"
    """The one token that ends an answer."""
    separator: str = ""
    """Between a finished answer and the next question."""
    user_with_input: str = ""
    """As `user`, for an alpaca row that has an input; empty: the input follows the instruction."""

    @field_validator("user", "assistant", "system", "user_with_input")
    @classmethod
    def _has_content_once(cls, value: str) -> str:
        if value and value.count("{content}") != 1:
            raise ValueError("must contain {content} exactly once")
        return value

    @field_validator("user_with_input")
    @classmethod
    def _has_input_once(cls, value: str) -> str:
        if value and value.count("{input}") != 1:
            raise ValueError("must contain {input} exactly once")
        return value


_ALPACA = "Below is an instruction that describes a task"
_ALPACA_ASK = "Write a response that appropriately completes the request."

BUILT_IN = {
    "human-assistant": Declared(
        system="System: {content}\n",
        user="Human: {content}\nAssistant:",
        assistant=" {content}",
        separator="\n",
    ),
    "instruction-response": Declared(
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n### Response:\n",
        separator="\n\n",
    ),
    # Taori et al. 2023, the two prompts of the Alpaca release.
    "alpaca": Declared(
        system="{content}\n\n",
        user=f"{_ALPACA}. {_ALPACA_ASK}\n\n### Instruction:\n{{content}}\n\n### Response:\n",
        user_with_input=(
            f"{_ALPACA}, paired with an input that provides further context. {_ALPACA_ASK}\n\n"
            "### Instruction:\n{content}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        separator="\n\n",
    ),
    "chatml": Declared(
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
        stop="<|im_end|>",
        separator="\n",
    ),
}
NAMES = frozenset({"auto", "model", *BUILT_IN})
"""What is no file, whatever lies in the working folder."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template bound to the tokenizer whose tokens it writes."""

    name: str
    source: str
    """Jinja. Saved with the run as `chat_template.jinja`."""
    tokenizer: PreTrainedTokenizerBase
    declared: Declared | None = None
    """The strings that `source` was compiled from; None for a model's own template."""
    stop: str | None = None
    """The stop token's text where declared; None: asked of the template (`stops.py`)."""

    @property
    def places_input(self) -> bool:
        """Whether the template lays out an alpaca row's input by itself."""
        return self.declared is not None and bool(self.declared.user_with_input)

    @property
    def markers(self) -> tuple[str, ...]:
        """Plain text that marks a role. In a message it is indistinguishable from a turn: warned
        of."""
        return () if self.declared is None else _role_markers(self.declared, self.tokenizer)

    def spec(self, date: str) -> TemplateSpec:
        """What rendering needs; `date` (2026-03-31) is what a template that asks for it gets."""
        tokens = self.tokenizer.special_tokens_map
        return TemplateSpec(
            name=self.name,
            source=self.source,
            special_tokens={name: text for name, text in tokens.items() if isinstance(text, str)},
            date=date,
            is_ours=self.declared is not None,
            places_input=self.places_input,
            stop=self.stop,
        )


def load_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template called `name`: `auto`, `model`, a built-in name, or the path of a YAML file.

    Raises:
        UsageError: there is none, or the tokenizer lacks a token that it needs.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name: the one that transformers takes unasked
        own = own.get("default", own)
    if name == "auto":
        name = "model" if own else "human-assistant"
    if name == "model":
        if not isinstance(own, str) or not own:
            what = "has several chat templates" if own else "has no chat template of its own"
            fix = f"choose one: --template {' | '.join(BUILT_IN)}"
            raise UsageError(f"the model {what}", fix=fix)
        return Template("model", own, tokenizer)
    if name in BUILT_IN:
        return declare(name, BUILT_IN[name], tokenizer)
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, [*BUILT_IN, "model", "auto"])
        known = f"known: auto, model, {', '.join(BUILT_IN)}, or a YAML file"
        raise UsageError(f'no template "{name}", and no file of that name.{hint}', fix=known)
    return declare(path.stem, as_declared(read_yaml(path), source=name), tokenizer)


def as_declared(values: Mapping[str, Any], *, source: str) -> Declared:
    """The strings of a template file.

    Raises:
        UsageError: there are other keys, or what is no such string.
    """
    try:
        return Declared.model_validate(values)
    except ValidationError as error:
        found = explain(error, source=source)
        keys = ", ".join(Declared.model_fields)
        raise UsageError(found.what, fix=f"a template file has these keys: {keys}") from None


def declare(name: str, spec: Declared, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Compile five strings to a chat template, checking that the tokenizer can speak it."""
    stop = _literal(spec.stop, tokenizer, name)
    if stop not in tokenizer.get_added_vocab():
        raise UsageError(
            f"template {name}: the stop {stop!r} is not a token of its own in this tokenizer",
            why="ordinary text could stand in an answer, or melt into its last word",
            fix="choose a template whose stop the model knows: --template human-assistant",
        )
    return Template(
        name=name,
        source=_to_jinja(spec, tokenizer, name),
        tokenizer=tokenizer,
        declared=spec,
        stop=stop,
    )


def starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this tokenizer begins a text with its BOS token by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]


_PLACEHOLDER = re.compile(r"\{(content|input|bos|eos)\}")


def _to_jinja(spec: Declared, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    def block(text: str, *, content: str = "m['content']") -> str:
        parts, end = [], 0
        for match in _PLACEHOLDER.finditer(text):
            parts.append(_quote(text[end : match.start()]))
            key = match.group(1)
            if key in ("bos", "eos"):
                parts.append(_quote(_literal(match.group(0), tokenizer, name)))
            else:
                parts.append(content if key == "content" else "m['input']")
            end = match.end()
        parts.append(_quote(text[end:]))
        return "{{ " + " ~ ".join(part for part in parts if part != "''") + " }}"

    stop = "{{ " + _quote(_literal(spec.stop, tokenizer, name)) + " }}"
    writes_bos = any("{bos}" in text for text in (spec.system, spec.user, spec.user_with_input))
    bos = "{{ bos_token }}" if starts_with_bos(tokenizer) and not writes_bos else ""
    system = block(spec.system) if spec.system else _NO_SYSTEM
    user = block(spec.user)
    if spec.user_with_input:
        user = f"{{% if m['input'] %}}{block(spec.user_with_input)}{{% else %}}{user}{{% endif %}}"
    between = (
        "{% if not loop.first and loop.previtem['role'] == 'assistant' %}"
        f"{{{{ {_quote(_literal(spec.separator, tokenizer, name))} }}}}{{% endif %}}"
    )
    return (
        f"{bos}{{% for m in messages %}}"
        f"{{% if m['role'] == 'system' %}}{system}"
        f"{{% elif m['role'] == 'user' %}}{between if spec.separator else ''}{user}"
        f"{{% elif m['role'] == 'assistant' %}}{block(spec.assistant)}{stop}"
        f"{{% else %}}{_NO_TOOLS}{{% endif %}}{{% endfor %}}"
    )


_NO_SYSTEM = "{{ raise_exception('it has no place for a system message') }}"
_NO_TOOLS = "{{ raise_exception('it has no place for the results of tools') }}"


def _quote(text: str) -> str:
    """A Jinja string literal (Jinja reads backslash escapes as Python does)."""
    return "'" + text.encode("unicode-escape").decode("ascii").replace("'", "\\'") + "'"


def _literal(text: str, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """`text` with {bos} and {eos} filled in."""
    for key, token in (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token)):
        if f"{{{key}}}" in text:
            if not isinstance(token, str):
                raise UsageError(
                    f"template {name} uses {{{key}}}, and the tokenizer has no {key} token",
                    fix="name a token that it has in the template file, or use --template model",
                )
            text = text.replace(f"{{{key}}}", token)
    return text


def _role_markers(spec: Declared, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Lines of a template's plain text that announce a role, such as `Human:`."""
    markers = []
    for piece in re.split(r"\{\w+\}|\n", spec.user):
        piece = piece.strip()
        is_special = piece in tokenizer.get_added_vocab()
        if len(piece) >= 4 and piece.endswith(":") and not is_special:
            markers.append(piece)
    return tuple(dict.fromkeys(markers))
