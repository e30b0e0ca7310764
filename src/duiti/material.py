"""What a run is made of before its weights are loaded: tokenizer, template and examples.

    material = read_material(config)
    raise_refusals(material, config)

`duiti check` stops here; `duiti train` goes on with the very same objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from duiti.config import Config
from duiti.data.encode import Encoder
from duiti.data.prepare import Prepared, Source, prepare, refusal
from duiti.data.split import parse_share, split
from duiti.data.template import Template, load_template
from duiti.errors import DataError, UsageError
from duiti.model.load import ModelSource, load_config, load_tokenizer, longest_text, resolve
from duiti.types import IGNORE_INDEX, Example, Json

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
    encoder: Encoder
    prepared: Prepared
    """All rows of the data, those split off for validation included."""
    train: list[Example]
    val: list[Example] = field(default_factory=list)
    val_prepared: Prepared | None = None
    """Where the validation rows come from a file of their own."""

    @property
    def width(self) -> int:
        """The model's hidden size."""
        return int(self.model_config.get_text_config().hidden_size)


def read_material(config: Config, *, rows: Sequence[Mapping[str, Json]] | None = None) -> Material:
    """Read, render and encode all rows. Loads no weights; raises for nothing that is in a row.

    Args:
        rows: rows given from Python, instead of `config.data`.

    Raises:
        UsageError: a name, path or setting that cannot be meant as given.
    """
    if not config.model:
        raise UsageError("no model is given", fix="-m Qwen/Qwen3-0.6B, a folder, or -m tiny")
    sources: list[Source] = list(config.data) if rows is None else [rows]
    if not sources:
        raise UsageError("no data is given", fix="duiti train my.jsonl -m tiny")
    source = resolve(config.model, trust_remote_code=config.trust_remote_code)
    model_config = load_config(source)
    tokenizer = load_tokenizer(source)
    template = load_template(config.template, tokenizer)
    encoder = Encoder(tokenizer, template)
    limit = longest_text(model_config, tokenizer)
    length = limit if config.max_length == "auto" else config.max_length
    if length > limit:
        raise UsageError(
            f"max_length {length} is more than the {limit} positions of {source.name}",
            fix=f"--max-length {limit}, or less",
        )
    prepared = prepare(sources, encoder, max_length=length, mapping=config.map)
    material = Material(
        name=Path(config.data[0]).name.partition(".")[0] if rows is None else "rows",
        source=source,
        model_config=model_config,
        tokenizer=tokenizer,
        template=template,
        encoder=encoder,
        prepared=prepared,
        train=prepared.examples,
    )
    _set_val_apart(material, config, length)
    return material


def _set_val_apart(material: Material, config: Config, length: int) -> None:
    if config.val is None:
        return
    share = parse_share(config.val)
    if share is None:
        material.val_prepared = prepare(
            [config.val], material.encoder, max_length=length, mapping=config.map
        )
        material.val = material.val_prepared.examples
        return
    examples = material.prepared.examples
    material.train, material.val = split(examples, share=share, seed=config.seed)
    if examples and not (material.train and material.val):
        raise UsageError(
            f"val {config.val} of {len(examples)} examples leaves one side empty",
            fix="a larger share, or a file of its own: --val held-out.jsonl",
        )


def raise_refusals(material: Material, config: Config) -> None:
    """Stop here if the rows, as they are, should not be trained on.

    Raises:
        DataError: why, with the rows by file and line.
    """
    for prepared in filter(None, (material.prepared, material.val_prepared)):
        error = refusal(prepared, on_bad_row=config.on_bad_row, over_length=config.over_length)
        if error is not None:
            raise error


def check_ids(material: Material, num_embeddings: int) -> None:
    """Every token must have a row in the embedding.

    Raises:
        DataError: tokenizer and model do not belong together.
    """
    largest = max(int(example.input_ids.max()) for example in [*material.train, *material.val])
    if largest >= num_embeddings:
        raise DataError(
            f"the tokenizer gives token {largest}, and the model has {num_embeddings} embeddings",
            why="tokenizer and model do not belong together",
        )


def trained_stops(examples: Sequence[Example]) -> frozenset[int]:
    """The ids that end trained answers."""
    stops: set[int] = set()
    for example in examples:
        is_answer = example.labels != IGNORE_INDEX
        is_last = is_answer.copy()
        is_last[:-1] &= ~is_answer[1:]
        stops.update(example.input_ids[is_last].tolist())
    return frozenset(stops)
