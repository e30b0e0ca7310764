"""What a run is made of before its weights are loaded: tokenizer, template and examples.

    material = read_material(config)
    raise_refusals(material, config)

`duiti check` stops here; `duiti train` goes on with the very same objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duiti.config import Config
from duiti.data.dataset import DataSet, Limits, refusal, settle_data
from duiti.data.jobs import PrepareOptions, day
from duiti.data.meter import Report
from duiti.data.prepare import Prepared, Say, prepare
from duiti.data.reading.sources import Expanded, Source, expand, parse_source
from duiti.data.repeats.split import parse_share
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template, load_template
from duiti.errors import DataError, UsageError
from duiti.model.load import ModelSource, load_config, load_tokenizer, longest_text, resolve
from duiti.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(slots=True, kw_only=True)
class Material:
    """Everything that the rows and the model's small files say."""

    name: str
    """Of the data, for the run's folder: the first file's stem, or `rows`."""
    source: ModelSource
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template
    options: PrepareOptions
    limits: Limits
    data: DataSet
    prepared: tuple[Prepared, ...]
    """The data, and where they come from elsewhere the validation rows."""
    notes: tuple[str, ...]
    """What is good to know, and no reason to worry."""

    @property
    def train(self) -> ExampleStore:
        return self.data.train

    @property
    def val(self) -> ExampleStore:
        return self.data.val

    @property
    def width(self) -> int:
        """The model's hidden size."""
        return int(self.model_config.get_text_config().hidden_size)


def read_material(
    config: Config,
    *,
    rows: Iterable[Mapping[str, Json]] | None = None,
    say: Say = lambda line: None,
    report: Report = lambda progress: None,
) -> Material:
    """Read, render and encode all rows. Loads no weights; raises for nothing that is in a row.

    Args:
        rows: rows given from Python, instead of `config.data`.
        say, report: as for `prepare`.

    Raises:
        UsageError: a name, path or setting that cannot be meant as given.
        DataError: a file that cannot be read to its end.
    """
    if not config.model:
        raise UsageError("no model is given", fix="-m Qwen/Qwen3-0.6B, a folder, or -m tiny")
    sources, val_sources, ignored = _sources(config, rows)
    source = resolve(config.model, trust_remote_code=config.trust_remote_code)
    model_config = load_config(source)
    tokenizer = load_tokenizer(source)
    template = load_template(config.template, tokenizer)
    limits = _limits(config, longest_text(model_config, tokenizer), source)
    options = _options(config, limits.max_length)
    prepared = prepare(sources, template, options, say=say, report=report)
    val: Prepared | float | None = parse_share(config.val) if config.val is not None else None
    if val_sources:
        val = prepare(val_sources, template, _val_options(options), say=say, report=report)
    data = settle_data(prepared, val, max_length=limits.max_length, seed=config.seed)
    if isinstance(val, float) and data.ledger.total.kept + data.ledger.total.val > 0:
        _check_split(config, data)
    _check_measuring(config, has_val=bool(data.val))
    notes = [f"not read: {', '.join(ignored)}"] if ignored else []
    if "strftime_now" in template.source:
        notes.append(f"the template writes the date; in this run it is {options.date}")
    return Material(
        name=_name(sources[0]),
        source=source,
        model_config=model_config,
        tokenizer=tokenizer,
        template=template,
        options=options,
        limits=limits,
        data=data,
        prepared=(prepared, val) if isinstance(val, Prepared) else (prepared,),
        notes=tuple(notes),
    )


def raise_refusals(material: Material, config: Config) -> None:
    """Stop here if the rows, as they are, should not be trained on.

    Raises:
        DataError: why, with the rows by file and line.
    """
    error = refusal(
        material.data,
        material.limits,
        on_bad_row=config.on_bad_row,
        is_strict=config.strict,
    )
    if error is not None:
        raise error


def check_ids(material: Material, num_embeddings: int) -> None:
    """Every token must have a row in the embedding.

    Raises:
        DataError: tokenizer and model do not belong together.
    """
    largest = max(material.train.max_id, material.val.max_id)
    if largest >= num_embeddings:
        raise DataError(
            f"the tokenizer gives token {largest}, and the model has {num_embeddings} embeddings",
            why="tokenizer and model do not belong together",
            fix="use the tokenizer that came with the model",
        )


def _sources(
    config: Config, rows: Iterable[Mapping[str, Json]] | None
) -> tuple[list[Source], list[Source], tuple[str, ...]]:
    """Sources to train on, sources to validate with, and files of folders that are not read."""
    if rows is not None:
        found = Expanded(train=(Source(name="<rows>", rows=rows),), val=(), ignored=())
    elif config.data:
        found = expand([parse_source(name) for name in config.data])
    else:
        raise UsageError("no data is given", fix="duiti train my.jsonl -m tiny")
    if config.val is None:
        return list(found.train), list(found.val), found.ignored
    ignored = (*found.ignored, *(source.name for source in found.val))
    if parse_share(config.val) is not None:
        return list(found.train), [], ignored
    own = expand([parse_source(config.val)])
    return list(found.train), [*own.train, *own.val], ignored


def _limits(config: Config, limit: int, source: ModelSource) -> Limits:
    length = limit if config.max_length == "auto" else config.max_length
    if length > limit:
        raise UsageError(
            f"max_length {length} is more than the {limit} positions of {source.name}",
            fix=f"--max-length {limit}, or less",
        )
    return Limits(
        max_length=length,
        positions=limit,
        over_length=config.over_length,
        max_lost=config.max_lost,
    )


def _options(config: Config, max_length: int) -> PrepareOptions:
    return PrepareOptions(
        date=day(config.date),
        mapping=config.map,
        filter=config.filter,
        train_on=config.train_on,
        special_tokens=config.special_tokens,
        truncate_to=max_length if config.over_length == "truncate" else None,
        seed=config.seed,
        workers=None if config.workers == "auto" else config.workers,
        cache=config.cache,
    )


def _val_options(options: PrepareOptions) -> PrepareOptions:
    """A filter chooses what to train on; what is measured on is taken as it is."""
    return replace(options, filter=None)


def _check_measuring(config: Config, *, has_val: bool) -> None:
    """Settings of measurements that will not be made are a misunderstanding."""
    if has_val:
        return
    dead = [name for name, value in (("metrics", config.metrics), ("patience", config.patience))
            if value]  # fmt: skip
    if config.eval_every != "auto" and config.anchor == "none":
        dead.append("eval_every")
    if dead:
        raise UsageError(f"{dead[0]} has no effect without val", fix="--val 5%, or a file")


def _check_split(config: Config, data: DataSet) -> None:
    if not (len(data.train) and len(data.val)):
        total = len(data.train) + len(data.val)
        raise UsageError(
            f"val {config.val} of {total} examples leaves one side empty",
            fix="a larger share, or a file of its own: --val held-out.jsonl",
        )


def _name(source: Source) -> str:
    return source.path.name.partition(".")[0] if source.path is not None else "rows"
