"""The verbs, from Python: same names and settings as on the command line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from duiti.checking import Check, run_check
from duiti.config import Config, load_config
from duiti.data.batch import collate
from duiti.data.dataset import Limits, rows_refusal, short_enough
from duiti.data.jobs import PrepareOptions
from duiti.data.prepare import prepare
from duiti.data.reading.sources import Source, parse_source
from duiti.data.storage.store import ExampleStore
from duiti.errors import DataError, UsageError
from duiti.eval.evaluate import evaluation_dict, score
from duiti.eval.judge import judge_rows
from duiti.eval.metrics import find_metrics
from duiti.eval.rows import SortedRows
from duiti.exporting.merge import MergeReport, export_merged
from duiti.infer.model import Model, load
from duiti.model.sft_model import probe_rows, why_alone
from duiti.run import Run, open_run
from duiti.searching.search import Search
from duiti.sft import finetune, go_on
from duiti.stopped import NEWEST
from duiti.training.log import Talk
from duiti.types import Json

Rows: TypeAlias = Iterable[Mapping[str, Json]]
Data: TypeAlias = str | Path | Sequence[str | Path] | Rows


def train(
    data: Data,
    *,
    model: str,
    find_lr: bool = False,
    more_data: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune `model` on `data` and return the run.

    Args:
        data: a path, paths, or rows as an iterable of dicts (it is read once).
        find_lr: try a few learning rates first, and train with the one that was best.
        more_data: find out first whether more rows would help.
        settings: every key of `Config`; `lora={"rank": 8}` for the nested ones.

    Raises:
        UsageError, DataError, DuitiError
    """
    config, rows = _config(data, {"model": model, **settings})
    search = Search(find_lr=find_lr, more_data=more_data)
    return finetune(config, rows=rows, search=search, talk=Talk(quiet=quiet))


def resume(
    run: str | Path | Run = NEWEST,
    *,
    allow_change: Collection[str] = (),
    cool_down: int | None = None,
    rows: Rows | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Go on with a run that was stopped; it ends with the same bytes as one that was not.

    Args:
        run: its folder or name, or one of its checkpoints; default: the newest unfinished one.
        allow_change: keys, or `data`, `base`, `tokenizer`, that may differ from the stopped run.
        cool_down: let the learning rate fall to zero in this many updates, and finish.
        rows: the rows again, where they were given from Python.
        settings: those that change.

    Raises:
        UsageError: there is no such run, or something differs that may not.
        DuitiError: it has no valid checkpoint.
    """
    where = run.path if isinstance(run, Run) else run
    talk = Talk(quiet=quiet)
    return go_on(where, settings, allowed=allow_change, cool_down=cool_down, rows=rows, talk=talk)


def check(data: Data, *, model: str, **settings: Any) -> Check:
    """What training would make of `data`; trains nothing and loads no weights.

    Raises:
        UsageError: a name, path or setting that cannot be meant as given.
    """
    config, rows = _config(data, {"model": model, **settings})
    return run_check(config, rows=rows)


def evaluate(
    run: str | Path | Run | Model,
    data: str | Path | Rows,
    *,
    metrics: Collection[str] = ("exact_match",),
    map: Mapping[str, str] | None = None,
    template: str = "auto",
    device: str = "auto",
    on_bad_row: Literal["refuse", "drop"] = "refuse",
    max_new_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Loss and metrics on rows: `{"n": rows, "base": {…}, "tuned": {…}, "change": {…}, "left_out":
    rows}`; `tuned` is None for a model that is not a run. Left out are rows that cannot be used.

    Args:
        metrics: names as in docs/evaluation.md; without any, no answers are generated.
        max_new_tokens: of an answer; None: twice the longest expected answer.

    Raises:
        UsageError: no such run, file or metric.
        DataError: rows that cannot be used.
    """
    check_metrics(metrics)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}: an answer has at least one token")
    model = _opened(run, device, template, trust_remote_code)
    rows = _measurable(model, data, map or {}, on_bad_row)
    measure = partial(
        score,
        examples=rows.examples,
        metrics=metrics,
        is_packed=rows.is_packed,
        max_new_tokens=max_new_tokens,
    )
    with model.base():
        base = measure(model)
    tuned = measure(model) if model.is_tuned else None
    return {**evaluation_dict(base, tuned, n=rows.num_rows), "left_out": rows.num_left_out}


def sort_rows(
    run: str | Path | Run | Model,
    data: str | Path | Rows,
    *,
    map: Mapping[str, str] | None = None,
    template: str = "auto",
    device: str = "auto",
    on_bad_row: Literal["refuse", "drop"] = "refuse",
    trust_remote_code: bool = False,
) -> SortedRows:
    """The rows that fight a run (docs/rows.md): what became of the loss of each row of `data`.

    Raises:
        UsageError, DataError: as `evaluate`.
    """
    model = _opened(run, device, template, trust_remote_code)
    rows = _measurable(model, data, map or {}, on_bad_row)
    return judge_rows(model, rows.examples, folder=model.folder, is_packed=rows.is_packed)


def check_metrics(names: Collection[str]) -> None:
    """Whether all of them are metrics, asked before a model is loaded.

    Raises:
        UsageError: one that is none.
    """
    find_metrics(names)


def export(
    run: str | Path | Run,
    format: Literal["merged"],
    output: str | Path,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    strength: float = 1.0,
    proof: bool = True,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Write the trained model in a format that others load, and measure that it is the same.

    Args:
        strength: of what was trained, from 0 (the base) over 1 to 1.2.

    Raises:
        UsageError: no such run, format or strength, or the folder is not empty.
        DuitiError: the written files do not compute what the trained model does.
    """
    import torch

    if format != "merged":
        raise UsageError(f"no export format {format}", fix="known: merged")
    found = run if isinstance(run, Run) else open_run(run)
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    return export_merged(
        found,
        Path(output),
        dtype=wanted,
        strength=strength,
        proof=proof,
        trust_remote_code=trust_remote_code,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurable:
    """Rows that a model can be measured on."""

    examples: ExampleStore
    num_rows: int
    num_left_out: int
    """Rows that cannot be used, or are longer than the model's positions."""
    is_packed: bool
    """Whether documents may share a pass."""


def _opened(
    run: str | Path | Run | Model, device: str, template: str, trust_remote_code: bool
) -> Model:
    if isinstance(run, Model):
        return run
    return load(run, device=device, template=template, trust_remote_code=trust_remote_code)


def _measurable(
    model: Model,
    data: str | Path | Rows,
    map: Mapping[str, str],
    on_bad_row: Literal["refuse", "drop"],
) -> _Measurable:
    length = model.positions
    options = PrepareOptions(date=model.date, mapping=map, special_tokens=model.special_tokens)
    prepared = prepare([_source(data)], model.template, options)
    examples, ledger = short_enough(prepared, length)
    limits = Limits(max_length=length, positions=length)
    if on_bad_row == "drop":
        limits = replace(limits, max_lost=1.0)
    error = rows_refusal(ledger, limits, on_bad_row=on_bad_row)
    if error is not None:
        raise error
    if not len(examples):
        raise DataError("no row is left to measure on", why="all were rejected")
    probe = collate(probe_rows(model.hf, examples, lengths=examples.lengths), model.hf.device)
    is_packed = why_alone(model.hf, probe) is None
    total = ledger.total
    return _Measurable(examples=examples, num_rows=total.kept, is_packed=is_packed,
                       num_left_out=total.rejected + total.dropped)  # fmt: skip


def _source(data: str | Path | Rows) -> Source:
    if isinstance(data, str | Path):
        return parse_source(data)
    return Source(name="<rows>", rows=data)


def _config(data: Data, settings: dict[str, Any]) -> tuple[Config, Rows | None]:
    if isinstance(data, str | Path):
        return load_config(None, {**settings, "data": (str(data),)}), None
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UsageError("data must be a path, a list of paths, or rows as dicts")
    if not isinstance(data, Sequence):
        return load_config(None, settings), data
    if all(isinstance(item, str | Path) for item in data):
        return load_config(None, {**settings, "data": tuple(str(item) for item in data)}), None
    if not all(isinstance(item, Mapping) for item in data):
        raise UsageError("data must be a path, a list of paths, or rows as dicts")
    return load_config(None, settings), cast(Rows, data)
