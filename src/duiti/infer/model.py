"""A model that is ready to be used: a run (with its base beside it), or a base alone.

    model = load("runs/my-tiny")            # or load("tiny"), load("Qwen/Qwen3-0.6B")
    model.chat([{"role": "user", "content": "Hi"}])
    with model.base(): ...                  # the model as it was before training
    model.hf                                # the plain transformers model

Loading a run needs only its path: base, template and stop tokens travel with it. It is strict: a
file that is not what was written, and a base that is not the one trained on, are refused. What
cannot be told, of an adapter that another tool made, is in `model.notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from duiti.config import Quantize
from duiti.data.jobs import day, prompt_service
from duiti.data.templates.control import Mode
from duiti.data.templates.template import Template, load_template
from duiti.errors import DuitiError, UsageError
from duiti.infer.generate import BATCH_TOKENS, GREEDY, Answer, Sampling, generate, stream
from duiti.infer.messages import as_messages
from duiti.infer.stored import NO_HASHES, hold_base, hold_template, load_saved_template, verified
from duiti.model.adapter import CONFIG_FILE, load_adapter, read_adapter_config
from duiti.model.artefact import TrainedOn, read_artefact
from duiti.model.load import (
    ModelSource,
    choose_device,
    load_model,
    load_tokenizer,
    longest_text,
    resolve,
)
from duiti.model.lora import adapters_off, lora_layers
from duiti.run import Run, is_run, open_run
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
        trained_on: TrainedOn | None = None,
        folder: Path | None = None,
        notes: tuple[str, ...] = (),
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
        self.trained_on = trained_on
        """What it belongs to, where that is known: of a run, and of what duiti made of one."""
        self.folder = folder
        """Of the run that it is."""
        self.notes = notes
        """What could not be verified, for whoever shows the model to a person."""
        self._base_name = base_name
        self._trust_remote_code = trust_remote_code
        self._base: PreTrainedModel | None = None
        self._answer_prefix = self.prompts.answer_prefix()

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base model to compare with."""
        return self._base_name is not None

    @property
    def positions(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return longest_text(self.hf.config, self.tokenizer)

    @contextmanager
    def base(self) -> Iterator[None]:
        """The model before training: adapters off, or the base loaded beside (once).

        Raises:
            UsageError: the base is gone (where the run is a whole model, it does not need it).
            DuitiError: the base is not what it was.
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
                base = load_model(source, dtype=parameter.dtype, device=str(parameter.device))
                if self.trained_on is not None:
                    hold_base(self.trained_on, Path(self.name), source)
                self._base = base
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
        if len(prompt) >= self.positions:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens, and the model {self.positions}"
                " positions",
                fix="a shorter one; in a chat, /reset begins anew",
            )
        ids: list[int] = []
        shown = ""
        for token in stream(
            self.hf,
            prompt,
            stop_ids=self.stop_ids,
            max_new_tokens=min(max_new_tokens, self.positions - len(prompt)),
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
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[Answer]:
        """Answers to prompts that are ids already (see `prompts.prompt_ids`), in batches.

        Args:
            batch_tokens: what a batch may come to hold (`duiti.infer.generate.generate`).
        """
        return generate(
            self.hf,
            prompts,
            stop_ids=self.stop_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            positions=self.positions,
            batch_tokens=batch_tokens,
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
    if source.is_local:
        verified(Path(source.location))  # a merged model, for one
    hf = load_model(source, dtype=dtype, device=device, quantize=quantize)
    tokenizer = load_tokenizer(source)
    bound = load_template(template, tokenizer)
    return Model(hf, bound, stop_ids=stop_ids_of(hf, bound), name=source.name)


def _load_run(
    run: Run, device: str, dtype: torch.dtype | None, quantize: Quantize | None, trust: bool
) -> Model:
    run.require_finished()
    artefact = read_artefact(run.path)
    config = run.config
    if (artefact.kind == "adapter") != (config.method == "lora"):
        what = f"{run.path}: config.yaml says method {config.method}"
        raise DuitiError(what, why=f"what was trained here, by its manifest: {artefact.kind}")
    trained_on = artefact.trained_on
    quantize = quantize or config.quantize
    dtype = dtype or getattr(torch, config.dtype)
    own = ModelSource(run.name, str(run.path), True, trust)
    template = load_saved_template(run.path, load_tokenizer(own))
    hold_template(trained_on, run.path, template)
    if config.method == "lora":
        base = resolve(config.model, trust_remote_code=trust)
        hf = load_model(base, dtype=dtype, device=device, quantize=quantize)
        hold_base(trained_on, run.path, base)
        lora, _ = read_adapter_config(run.path)
        load_adapter(hf, run.path, lora)
        hf.generation_config = _generation_config(run.path)
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
        trained_on=trained_on,
        folder=run.path,
    )


def _load_peft(
    path: Path, device: str, dtype: torch.dtype, quantize: Quantize, template: str, trust: bool
) -> Model:
    """An adapter by itself: the base is the one that it names. Where duiti made it, it brings its
    tokenizer and template; where PEFT did, those are the base's."""
    artefact = verified(path)
    lora, base_name = read_adapter_config(path)
    base = resolve(base_name, trust_remote_code=trust)
    hf = load_model(base, dtype=dtype, device=device, quantize=quantize)
    notes: tuple[str, ...] = ()
    if artefact is None:
        notes = (f"{path}: {NO_HASHES} ({base_name})",)
        bound = load_template(template, load_tokenizer(base))
    else:
        hold_base(artefact.trained_on, path, base)
        bound = load_saved_template(path, load_tokenizer(ModelSource(path.name, str(path), True)))
        hold_template(artefact.trained_on, path, bound)
    load_adapter(hf, path, lora)
    if artefact is not None:
        hf.generation_config = _generation_config(path)
    hf.requires_grad_(False)
    return Model(
        hf,
        bound,
        stop_ids=stop_ids_of(hf, bound),
        name=path.name,
        base_name=base_name,
        trust_remote_code=trust,
        trained_on=None if artefact is None else artefact.trained_on,
        notes=notes,
    )


def _generation_config(folder: Path) -> GenerationConfig:
    """What was saved beside an adapter: the tokens that were trained to end an answer."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DuitiError(
            f"{folder}: its generation_config.json, which says where answers end, cannot be read",
            why=reason,
            fix="use the version of transformers that env.json tells; or train again",
        ) from None


def stop_ids_of(model: PreTrainedModel, template: Template) -> frozenset[int]:
    """Every token that ends an answer: those of the generation config, and the template's."""
    listed = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if template.stop is not None:
        ids.add(template.tokenizer.encode(template.stop, add_special_tokens=False)[0])
    if template.tokenizer.eos_token_id is not None:
        ids.add(template.tokenizer.eos_token_id)
    return frozenset(ids)
