"""The verb `eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from duiti.config import load_config
from duiti.errors import UsageError
from duiti.verbs.shared import Flag, Json, say_notes

if TYPE_CHECKING:
    from duiti.infer.model import Model


def eval_(
    model: str,
    data: str,
    *,
    metric: tuple[str, ...] = ("exact_match",),
    map: Annotated[str, Parameter(name="--map")] = "",
    template: str = "auto",
    device: str = "auto",
    on_bad_row: Literal["refuse", "drop"] = "refuse",
    max_new_tokens: int | None = None,
    rows: Flag = False,
    clean: Path | None = None,
    json_: Json = False,
    trust_remote_code: Flag = False,
) -> None:
    """Measure a run, base beside tuned, on rows that it was not trained on.

    Parameters
    ----------
    model
        A run's folder or name, or a base model.
    data
        File with prompts and expected answers.
    metric
        Scores of the generated answers: exact_match, contains, token_f1, rouge_l, bleu, chrf,
        json_valid, regex:PATTERN, or a function of yours, mine.py:score. May be given again.
    map
        Rename fields: question=prompt,answer=response.
    template
        For a base model only; a run has its own.
    device
        Where to run.
    on_bad_row
        refuse, or drop rows that cannot be used.
    max_new_tokens
        Of an answer, at most. Default: twice the longest expected answer.
    rows
        Instead of figures: rows of DATA that were never learned, were learned and lost again, or
        contradict another row.
    clean
        With --rows: write DATA without these rows into this file.
    json_
        Print one JSON object instead of a table.
    trust_remote_code
        Run Python code that comes with the model.
    """
    from duiti.api import check_metrics, evaluate
    from duiti.infer.model import load

    renamed = load_config(None, {"map": map}).map if map else None
    check_metrics(metric)
    if clean is not None:
        _require_cleanable(data, clean, rows)
    loaded = load(model, device=device, template=template, trust_remote_code=trust_remote_code)
    say_notes(loaded)
    if rows:
        _sort(loaded, data, renamed, on_bad_row, clean, json_)
        return
    found = evaluate(
        loaded,
        data,
        metrics=metric,
        map=renamed,
        on_bad_row=on_bad_row,
        max_new_tokens=max_new_tokens,
    )
    if json_:
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_scores(found)


def _require_cleanable(data: str, clean: Path, rows: bool) -> None:
    from duiti.eval.clean import require_cleanable

    if not rows:
        raise UsageError("--clean leaves out what --rows finds", fix=f"--rows --clean {clean}")
    require_cleanable(_file_of(data), clean)


def _file_of(data: str) -> Path:
    """Of `train.jsonl@0.1`: the rows that are not looked at stay in it."""
    from duiti.data.reading.sources import parse_source

    return Path(parse_source(data).name)


def _sort(
    model: Model,
    data: str,
    renamed: Mapping[str, str] | None,
    on_bad_row: Literal["refuse", "drop"],
    clean: Path | None,
    json_: bool,
) -> None:
    """Tell the rows that fight the run, and write the others if asked to."""
    from duiti.api import sort_rows
    from duiti.eval.clean import write_cleaned
    from duiti.eval.rows import FIGHTING, described

    found = sort_rows(model, data, map=renamed, on_bad_row=on_bad_row)
    told = found.as_dict(most=None)
    lines = list(described(told))
    if clean is not None:
        without = {origin.line for origin in found.origins(FIGHTING)}
        cleaned = write_cleaned(_file_of(data), clean, without=without)
        told["clean"] = {
            "path": str(cleaned.path),
            "kept": cleaned.num_kept,
            "left_out": list(cleaned.left_out),
        }
        lines.append(f"{cleaned.path}: {cleaned.num_kept:,} rows, {len(without):,} left out")
    print(json.dumps(told, ensure_ascii=False) if json_ else "\n".join(lines))


def _print_scores(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    base, tuned, change = found["base"], found["tuned"], found["change"]
    table = Table("", box=None)
    for column in ("base", *(("tuned", "change [95 %]") if tuned else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for key in base:
        cells = [_shown(key, base[key])]
        if tuned:
            cells += [_shown(key, tuned[key]), _shown_change(key, change[key])]
        # A pattern of the user's is no markup.
        table.add_row(Text(key), *(Text(cell) for cell in cells))
    Console().print(table)
    print(f"{found['n']} rows, {found['supervised_tokens']} supervised tokens")
    if left_out := found["left_out"]:
        print(
            f"{left_out} left out, which cannot be used or are too long: `duiti check` names them"
        )


_PLAIN = {"loss": "{:.4f}", "perplexity": "{:.4g}", "length_ratio": "{:.2f}"}
"""How figures are shown that are no share."""


def _shown(key: str, figure: float | None, *, sign: str = "") -> str:
    if figure is None:
        return "–"
    if key in _PLAIN:
        return _PLAIN[key].replace(":", f":{sign}").format(figure)
    if ".py:" in key:  # a function of the user's may give any number
        return f"{figure:{sign}.4g}"
    return f"{figure:{sign}.1%}"


def _shown_change(key: str, change: dict[str, float | None]) -> str:
    mean, low, high = (_shown(key, change[part], sign="+") for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
