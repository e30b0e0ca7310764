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
        Scores of the generated answers: exact_match.
    map
        Rename fields: question=prompt,answer=response.
    template
        For a base model only; a run has its own.
    device
        Where to run.
    on_bad_row
        refuse, or drop rows that cannot be used.
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
    found = evaluate(loaded, data, metrics=metric, map=renamed, on_bad_row=on_bad_row)
    if json_:
        print(json.dumps(found))
        return
    _print_scores(found)


def _print_scores(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "base", *(["tuned"] if found["tuned"] else []), box=None)
    for key, value in found["base"].items():
        cells = [value, *([found["tuned"][key]] if found["tuned"] else [])]
        shown = [f"{c:.4f}" if key == "loss" else f"{c:.1%}" for c in cells]
        table.add_row(key, *shown)
    Console().print(table)
    print(f"{found['n']} rows, {found['supervised_tokens']} supervised tokens")
