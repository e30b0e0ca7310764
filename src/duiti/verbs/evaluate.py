"""The verb `eval`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from duiti.config import load_config
from duiti.verbs.shared import Flag, Json, say_notes


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
    json_
        Print one JSON object instead of a table.
    trust_remote_code
        Run Python code that comes with the model.
    """
    from duiti.api import check_metrics, evaluate
    from duiti.infer.model import load

    renamed = load_config(None, {"map": map}).map if map else None
    check_metrics(metric)
    loaded = load(model, device=device, template=template, trust_remote_code=trust_remote_code)
    say_notes(loaded)
    found = evaluate(
        loaded,
        data,
        metrics=metric,
        map=renamed,
        on_bad_row=on_bad_row,
        max_new_tokens=max_new_tokens,
    )
    if json_:
        print(json.dumps(found))
        return
    _print_scores(found)


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
