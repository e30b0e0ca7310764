"""A model that is ready to be used: a run (with its base beside it), or a base alone.

    model = load("runs/my-tiny")            # or load("tiny"), load("Qwen/Qwen3-0.6B")
    model.chat([{"role": "user", "content": "Hi"}])
    with model.base(): ...                  # the model as it was before training
    model.hf                                # the plain transformers model

Loading a run needs only its path: base, template and stop tokens travel with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from duiti.config import Quantize, parse_yaml
from duiti.data.jobs import day, prompt_service
from duiti.data.rows.messages import read_messages
from duiti.data.templates.control import Mode
from duiti.data.templates.template import Declared, Template, declare, load_template
from duiti.errors import RowError, UsageError
from duiti.infer.generate import GREEDY, Answer, Sampling, generate, stream
from duiti.model.adapter import CONFIG_FILE, load_adapter, read_adapter_config
from duiti.model.load import (
    ModelSource,
    choose_device,
    load_model,
    load_tokenizer,
    longest_text,
    resolve,
)
from duiti.model.lora import adapters_off, lora_layers
from duiti.run import TEMPLATE_FILE, Run, is_run, open_run
from duiti.types import Json, Message


class Model:
    """A causal language model with its tokenizer, template and stop tokens."""

    def __init__(
        self,
        hf: PreTrainedModel,
        template: Template,
        *,
        stop_ids: frozenset[int],
        name: str,
        base_name: str | None = None,
        trust_remote_code: bool = False,
        date: str = "auto",
        special_tokens: Mode = "reject",
    ) -> None:
        self.hf = hf
        """The plain transformers model (with adapters in place, where it has any)."""
        self.tokenizer: PreTrainedTokenizerBase = template.tokenizer
        self.template = template
        self.special_tokens = special_tokens
        """What control tokens in a message become, as it was in training."""
        self.date = day(date)
        """What a template that asks for the date gets."""
        self.prompts = prompt_service(template, date=date, special_tokens=special_tokens)
        self.stop_ids = stop_ids
        self.name = name
        self._base_name = base_name
        self._trust_remote_code = trust_remote_code
        self._base: PreTrainedModel | None = None
        self._answer_prefix = self.prompts.answer_prefix()

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base model to compare with."""
        return self._base_name is not None

    @contextmanager
    def base(self) -> Iterator[None]:
        """The model before training: adapters off, or the base loaded beside (once).

        Raises:
            UsageError: the base is gone (where the run is a whole model, it does not need it).
        """
        if self._base_name is None:
            yield
        elif lora_layers(self.hf):
            with adapters_off(self.hf):
                yield
        else:
            if self._base is None:
                parameter = next(self.hf.parameters())
                source = resolve(self._base_name, trust_remote_code=self._trust_remote_code)
                self._base = load_model(source, dtype=parameter.dtype, device=str(parameter.device))
            tuned, self.hf = self.hf, self._base
            try:
                yield
            finally:
                self.hf = tuned

    def chat(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        tools: Sequence[Json] = (),
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
    ) -> str:
        """The answer to a conversation: messages as rows hold them, and the tools that the model
        may call.

        Raises:
            UsageError: there is nothing to answer, or more than the model's positions hold.
        """
        pieces = self.chat_stream(
            messages, tools=tools, max_new_tokens=max_new_tokens, sampling=sampling
        )
        return "".join(pieces)

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        tools: Sequence[Json] = (),
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str]:
        """As `chat`, in pieces as they come; a character is never cut in two."""
        prompt = self.prompts.prompt_ids(as_messages(messages), tools)
        positions = longest_text(self.hf.config, self.tokenizer)
        if len(prompt) >= positions:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens, and the model {positions} positions",
                fix="a shorter one; in a chat, /reset begins anew",
            )
        ids: list[int] = []
        shown = ""
        for token in stream(
            self.hf,
            prompt,
            stop_ids=self.stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        ):
            ids.append(token)
            text = self.text(ids)
            if self._is_begun_prefix(ids):
                continue
            # U+FFFD at the end: the bytes of a character are not all there yet.
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        rest = self.text(ids)[len(shown) :]
        if rest:
            yield rest

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """Answers to prompts that are ids already (see `prompts.prompt_ids`), in batches."""
        return generate(
            self.hf,
            prompts,
            stop_ids=self.stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )

    def _is_begun_prefix(self, ids: Sequence[int]) -> bool:
        """Whether all so far could be the beginning of what the template puts before an answer."""
        decoded = self.prompt_text(ids)
        return decoded != self._answer_prefix and self._answer_prefix.startswith(decoded)

    def text(self, ids: Sequence[int]) -> str:
        """The message that generated ids spell: without what the template puts before it."""
        return self.prompt_text(ids).removeprefix(self._answer_prefix)

    def prompt_text(self, ids: Sequence[int]) -> str:
        """The text of a prompt, special tokens included."""
        return cast(str, self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def load(
    name: str | Path | Run,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    quantize: Quantize | None = None,
    template: str = "auto",
    trust_remote_code: bool = False,
) -> Model:
    """Load a run (path, name under `runs/`, or `Run`) or a base model.

    Args:
        dtype: default: that of the run; float32 for a base model.
        quantize: how the base is kept; default: as in training, so that the answers are those of
            the model that was trained and measured; none for a base model.
        template: for a base model only; a run has its own.

    Raises:
        UsageError: there is no such thing.
        DuitiError: its files do not fit together.
    """
    device = choose_device(device)
    if isinstance(name, Run):
        return _load_run(name, device, dtype, quantize, trust_remote_code)
    path = Path(name).expanduser()
    if is_run(path) or (not path.exists() and is_run(Path("runs") / path)):
        return _load_run(open_run(name), device, dtype, quantize, trust_remote_code)
    dtype, quantize = dtype or torch.float32, quantize or "none"
    if (path / CONFIG_FILE).is_file():
        return _load_peft(path, device, dtype, quantize, template, trust_remote_code)
    source = resolve(str(name), trust_remote_code=trust_remote_code)
    hf = load_model(source, dtype=dtype, device=device, quantize=quantize)
    tokenizer = load_tokenizer(source)
    bound = load_template(template, tokenizer)
    return Model(hf, bound, stop_ids=stop_ids_of(hf, bound), name=source.name)


def _load_run(
    run: Run, device: str, dtype: torch.dtype | None, quantize: Quantize | None, trust: bool
) -> Model:
    config = run.config
    quantize = quantize or config.quantize
    dtype = dtype or getattr(torch, config.dtype)
    own = ModelSource(run.name, str(run.path), True, trust)
    template = load_saved_template(run.path, load_tokenizer(own))
    if config.method == "lora":
        base = resolve(config.model, trust_remote_code=trust)
        hf = load_model(base, dtype=dtype, device=device, quantize=quantize)
        lora, _ = read_adapter_config(run.path)
        load_adapter(hf, run.path, lora)
        hf.generation_config = GenerationConfig.from_pretrained(run.path)
    else:
        # The run is a whole model: its base is looked for only when it is asked (`Model.base`).
        hf = load_model(own, dtype=dtype, device=device, quantize=quantize)
    hf.requires_grad_(False)
    stop_ids = stop_ids_of(hf, template)
    return Model(
        hf,
        template,
        stop_ids=stop_ids,
        name=run.name,
        base_name=config.model,
        trust_remote_code=trust,
        date=config.date,
        special_tokens=config.special_tokens,
    )


def _load_peft(
    path: Path, device: str, dtype: torch.dtype, quantize: Quantize, template: str, trust: bool
) -> Model:
    """An adapter made elsewhere: the base and the tokenizer are those that it names."""
    lora, base_name = read_adapter_config(path)
    base = resolve(base_name, trust_remote_code=trust)
    hf = load_model(base, dtype=dtype, device=device, quantize=quantize)
    load_adapter(hf, path, lora)
    hf.requires_grad_(False)
    bound = load_template(template, load_tokenizer(base))
    stop_ids = stop_ids_of(hf, bound)
    return Model(hf, bound, stop_ids=stop_ids, name=path.name, base_name=base_name)


def load_saved_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that a run was trained with.

    Raises:
        UsageError: `template.yaml` and `chat_template.jinja` contradict each other.
    """
    path = folder / TEMPLATE_FILE
    if not path.is_file():
        return load_template("model", tokenizer)
    values = parse_yaml(path.read_text(encoding="utf-8"), source=str(path))
    name = str(values.pop("name", path.stem))
    template = declare(name, Declared(**values), tokenizer)
    if template.source.strip() != str(tokenizer.chat_template).strip():
        raise UsageError(
            f"{folder}: {TEMPLATE_FILE} and chat_template.jinja disagree",
            why="one was edited after training, and the model knows only what it saw then",
        )
    return template


def stop_ids_of(model: PreTrainedModel, template: Template) -> frozenset[int]:
    """Every token that ends an answer: those of the generation config, and the template's."""
    listed = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if template.stop is not None:
        ids.add(template.tokenizer.encode(template.stop, add_special_tokens=False)[0])
    if template.tokenizer.eos_token_id is not None:
        ids.add(template.tokenizer.eos_token_id)
    return frozenset(ids)


def as_messages(messages: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Dicts as rows hold them to messages: a conversation that waits for an answer.

    Raises:
        UsageError: it is none.
    """
    how = '[{"role": "user", "content": "…"}]'
    if isinstance(messages, str | Mapping):
        raise UsageError("a conversation is a list of messages", fix=how)
    found: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if isinstance(message, Message):
            found.append(message)
            continue
        try:
            found += read_messages([cast(Json, message)], "messages", first=number)
        except RowError as error:
            raise UsageError(f"this is no conversation: {error}", fix=how) from None
    if not found or found[-1].role not in ("user", "tool"):
        raise UsageError(
            "there is nothing to answer: the last message must be the user's, or a tool's result"
        )
    return tuple(found)
