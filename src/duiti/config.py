"""Every setting of a run, once: flags, YAML, `--help`, the JSON schema and the docs table come from
here.

    config = load_config("duiti.yaml", {"learning_rate": 1e-4})     # flags win over the file
    Config(data=["my.jsonl"], model="tiny")

A key that is not listed is refused with the nearest one that is. `auto` means: chosen when the run
starts, from the model, the data and the machine, and printed with the reason (`duiti.plan.settle`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from duiti.errors import UsageError, did_you_mean
from duiti.quantities import Replay, SaveEvery, seconds_in, size_in_bytes
from duiti.strict_yaml import parse_yaml as parse_yaml
from duiti.strict_yaml import read_yaml

Auto = Literal["auto"]
Method = Literal["lora", "last-n", "full"]
Schedule = Literal["cosine", "linear", "constant"]
Dtype = Literal["float32", "bfloat16"]
Quantize = Literal["none", "nf4"]

SYNONYMS = {
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "micro_batch_tokens",
    "lr_scheduler_type": "schedule",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "output_dir": "output",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data",
    "datasets": "data",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "layers_to_transform": "lora.layers",
    "torch_dtype": "dtype",
    "load_in_4bit": "quantize",
    "quantization_bit": "quantize",
    "warmup": "warmup_steps",
    "clip_grad": "max_grad_norm",
    "save_steps": "save_every",
    "saves_per_epoch": "save_every",
    "save_total_limit": "keep",
}
"""What other tools call our keys: an unknown key is answered with ours."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class LoraConfig(_Section):
    """Low-rank adapters (Hu et al. 2021): W x + (alpha / rank) B A x with W frozen."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update B A."""
    alpha: float = Field(default=32.0, gt=0)
    """Numerator of the scale alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023): steadier at high ranks."""
    target_modules: Annotated[tuple[str, ...] | Literal["all-linear"], Parameter(n_tokens=1)] = (
        "all-linear"
    )
    """`all-linear` (every linear layer but the head) or names such as `q_proj,v_proj`."""
    layers: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """How many of the last transformer layers get adapters. With fewer than all, the layers below
    run once per row, as with `last-n`."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str) and value != "all-linear":
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


class LastNConfig(_Section):
    """Train only the end of the network."""

    layers: int = Field(default=2, ge=1)
    """How many of the last transformer layers are trained."""
    train_norm: bool = True
    """Also train the final norm."""
    train_head: bool = False
    """Also train the output head (where it is tied, that trains the embedding too: refused)."""


class Config(_Section):
    """All settings of a training run."""

    data: Annotated[tuple[str, ...], Parameter(show=False)] = ()
    """Files or folders to train on (positional on the command line): `a.jsonl`, a tenth of its rows
    (`a.jsonl@0.1`) or 500 of them (`a.jsonl#500`); in YAML also `{path: a.jsonl, weight: 0.1}`."""
    model: Annotated[str, Parameter(name=["--model", "-m"])] = ""
    """Base model: a folder, `tiny` (embedded), or a hub id."""
    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None
    """Run folder to create. Default: `runs/<data>-<model>`, numbered, never overwritten."""
    val: str | None = None
    """Rows to measure on and never train: a file, a folder, or a share of the data such as `5%`.
    Where a folder of data has validation files, those."""
    map: Annotated[dict[str, str], Parameter(n_tokens=1, accepts_keys=False)] = Field(
        default_factory=dict
    )
    """Rename fields before reading: `question=prompt,answer=response`."""
    filter: str | None = None
    """Keep a row only if a function of yours returns True: `file.py:function`."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """What a row that cannot be used does to the run: stop it, or be dropped and listed."""
    template: str = "auto"
    """`human-assistant`, `instruction-response`, `alpaca`, `chatml`, `model` (its own chat
    template) or a YAML file. `auto`: the model's own if it has one, else `human-assistant`."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are trained: every `assistant` turn, the `last` one, or `all` of the text."""
    special_tokens: Literal["reject", "escape", "allow"] = "reject"
    """Control tokens written in a message, such as `<|im_end|>`: the row is rejected, they become
    ordinary text (`escape`), or they act (`allow`)."""
    date: str = "auto"
    """What a template that asks for the date gets: `2026-03-31`. `auto`: the day of the start."""
    max_length: Auto | Annotated[int, Field(ge=2)] = "auto"
    """Longest text in tokens. `auto`: what the model's positions allow."""
    over_length: Literal["drop", "error", "truncate"] = "drop"
    """What happens to a longer one: `drop` its row, stop with an `error`, or `truncate` it in or
    behind an answer; a cut answer has no stop token."""
    max_lost: float = Field(default=0.01, ge=0, le=1)
    """Share of the answer tokens that may be lost to `max_length`; more of it stops the run."""
    strict: bool = False
    """Refuse the data for whatever is a warning otherwise, such as duplicates."""
    cache: bool = True
    """Keep prepared data for the next run with the same files, model and settings; and, while a run
    lasts, what frozen layers below all trained ones give for each row."""
    workers: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Processes that prepare data. `auto`: one per CPU core, and one for little data."""
    method: Method = "lora"
    """What is trained: `lora` adapters, the `last-n` layers, or the `full` model."""
    lora: LoraConfig = LoraConfig()
    last_n: LastNConfig = LastNConfig()
    epochs: int = Field(default=2, ge=1)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many updates; the schedule ends there too."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per update. The split into micro-batches never changes the result."""
    micro_batch_tokens: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Tokens that go through the model at once (a longer row goes alone)."""
    learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Decay to zero after warm-up, or `constant`."""
    warmup_steps: Auto | Annotated[int, Field(ge=0)] = "auto"
    """Updates of linear warm-up. `auto`: 3 % of the run, between 1 and 100. With a budget, at most
    3 % of its time."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient of an update to this norm; 0 never clips."""
    dtype: Auto | Dtype = "auto"
    """Of the matrix products. `auto`: bfloat16 where this machine multiplies it faster. What is
    trained, and the optimizer, are float32 in either."""
    quantize: Quantize = "none"
    """Keep the frozen base in four bits (`nf4`; QLoRA): an eighth of float32's memory. Adapters
    only; needs the extra `duiti[qlora]`."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`. `auto`: CUDA where there is one, else the CPU."""
    max_memory: str = "auto"
    """Memory that may be used: `8GB`. `auto`: what is free, on the GPU or for this process. Where
    the run needs more: smaller micro-batches, then activation checkpointing, or it is refused."""
    activation_checkpointing: Auto | bool = "auto"
    """Keep only the inputs of layers for the backward pass and run them again there: less memory,
    about a third more time, the same result. `auto`: only if it does not fit otherwise."""
    eval_every: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Updates between two measurements, on `val` and on the anchor. `auto`: ten over the run, or
    fewer where they would cost more than about a tenth of its arithmetic."""
    metrics: Annotated[tuple[str, ...], Parameter(n_tokens=1)] = ()
    """Scores of generated answers on `val`, each time it is measured: `exact_match,token_f1`; the
    names are those of `duiti eval --metric`."""
    patience: int | None = Field(default=None, ge=1)
    """End the run after so many measurements without a better `val` loss, with the best weights."""
    anchor: str = "auto"
    """General text on which forgetting is measured: `auto` is text that the base model writes
    itself; a file of your own, or `none`."""
    replay: str | None = None
    """Rehearse general text among the rows: `5%` of them is text that the base model writes itself;
    `5%:file` is yours."""
    max_drift: float | None = Field(default=None, gt=0)
    """Hold the model near its base on the anchor: at most so many nats of KL divergence a token."""
    track: Annotated[tuple[str, ...], Parameter(n_tokens=1)] = ()
    """Send numbers to `tensorboard`, `wandb`, `trackio` or `mlflow` as well."""
    save_every: str = "10m"
    """How often a checkpoint is made, from which `--resume` goes on: by time (`10m`), by updates
    (`200`), or `never`. A signal to stop always makes one."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints that are kept: the newest so many, and the best on `val`."""
    budget: str | None = None
    """Time for training: `30m`. The learning rate follows it, so that a run that it ends is
    finished, not broken off."""
    skip_bad_steps: int = Field(default=0, ge=0)
    """Updates with a loss or gradient that is not finite that may be left out before the run
    stops."""
    proof: bool = True
    """At the end, open what was saved in a new process, with plain transformers and PEFT, and hold
    it against the model that was trained."""
    selfcheck: bool = False
    """Before training, prove on the first update's rows that loss and gradient do not depend on how
    rows are laid out; the run stops if they do."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the data order, the adapters' start and dropout."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do anything you can."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_file_is_a_list_of_one(cls, value: object) -> object:
        files = [value] if isinstance(value, str | Mapping) else value
        return [_as_source(f) for f in files] if isinstance(files, list | tuple) else files

    @field_validator("metrics", "track", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("map", mode="before")
    @classmethod
    def _parse_map(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(old.strip() and new.strip() for old, _, new in pairs):
            raise ValueError("must read like question=prompt,answer=response")
        return {old.strip(): new.strip() for old, _, new in pairs}

    @field_validator("max_memory")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        if value != "auto":
            size_in_bytes(value)
        return value

    @field_validator("save_every")
    @classmethod
    def _is_a_pace(cls, value: str) -> str:
        SaveEvery.parse(value)
        return value

    @field_validator("replay")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            Replay.parse(value)
        return value

    @field_validator("budget")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_in(value)
        return value

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        if value != "auto":
            datetime.date.fromisoformat(value)
        return value

    @model_validator(mode="after")
    def _options_without_effect(self) -> Config:
        """An option that nothing will read is a misunderstanding: say so instead of ignoring it."""
        dead = [
            name
            for name, method in (("lora", "lora"), ("last_n", "last-n"))
            if name in self.model_fields_set and self.method != method
        ]
        if dead:
            raise ValueError(f"{dead[0]}.* has no effect with method: {self.method}")
        if self.patience is not None and self.save_every == "never":
            raise ValueError(
                "patience ends a run with the weights of its best checkpoint, and with save_every:"
                " never there is none"
            )
        if self.quantize != "none" and self.method != "lora":
            raise ValueError(
                f"quantize: {self.quantize} keeps the base frozen in four bits, so only adapters"
                f" can be trained on it (method: lora, not {self.method})"
            )
        return self


def _as_source(value: object) -> object:
    """`{path: a.jsonl, weight: 0.1}` as `a.jsonl@0.1`."""
    if not isinstance(value, Mapping):
        return value
    amounts = {"weight": "@", "rows": "#"}
    unknown = [str(key) for key in value if key not in ("path", *amounts)]
    if unknown:
        raise ValueError(
            f'unknown key "{unknown[0]}" of a file.{did_you_mean(unknown[0], ("path", *amounts))}'
        )
    given = [name for name in amounts if value.get(name) is not None]
    if not isinstance(value.get("path"), str) or len(given) > 1:
        raise ValueError("a file reads {path: a.jsonl, weight: 0.1} or {path: a.jsonl, rows: 500}")
    return f"{value['path']}" + "".join(f"{amounts[name]}{value[name]}" for name in given)


def load_config(file: str | Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of `file` (YAML; may be None) with `flags` on top.

    Raises:
        UsageError: all problems at once, each with the key, and the nearest known key for typos.
    """
    values = read_yaml(Path(file)) if file is not None else {}
    for key, value in flags.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    try:
        return Config(**values)
    except ValidationError as error:
        raise explain(error, source=str(file) if file is not None else "") from None


def own_settings(config: Config) -> dict[str, Any]:
    """All settings as plain values, but for the section of a method that is not the run's:
    `Config(**own_settings(config))` is the same configuration."""
    values = config.model_dump(mode="json")
    foreign = {"lora", "last_n"} - {config.method.replace("-", "_")}
    return {key: value for key, value in values.items() if key not in foreign}


def keys() -> tuple[str, ...]:
    """Every key as it is written in a flag: `learning_rate`, `lora.rank`, …"""
    found = []
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [f"{name}.{inner}" for inner in field.annotation.model_fields]
        else:
            found.append(name)
    return tuple(found)


def explain(error: ValidationError, *, source: str = "") -> UsageError:
    """Pydantic's findings in our words: the key, what was wrong, and what was probably meant."""
    where = f"{source}: " if source else ""
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        # Branches of a union show up as trailing parts that are no keys ("literal['auto']").
        path = ".".join(str(part) for part in problem["loc"])
        key = next((k for k in keys() if path == k or path.startswith(f"{k}.")), path)
        if problem["type"] == "extra_forbidden":
            known = SYNONYMS.get(path)
            hint = f' Here it is "{known}".' if known else did_you_mean(path, keys())
            lines.append(f'{where}unknown key "{path}".{hint}')
            continue
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}{key}: {message[0].lower()}{message[1:]}" if key else message)
    return UsageError("\n".join(dict.fromkeys(lines)), fix="duiti train --help lists every key")
