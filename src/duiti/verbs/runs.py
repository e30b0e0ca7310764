"""The verb `runs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from duiti.errors import UsageError
from duiti.verbs.shared import Json

COLUMNS = ("path", "status", "model", "method", "steps", "loss", "val_loss", "verdict")


def runs(*names: str, json_: Json = False) -> None:
    """List the runs under runs/, newest first; show one; or compare two.

    Parameters
    ----------
    names
        A run's folder or name to see it; two of them to see in what they differ.
    json_
        Print JSON instead of tables.
    """
    from duiti.listing import compare, list_as_dicts, show
    from duiti.run import find_run

    if len(names) > 2:
        raise UsageError(f"{len(names)} runs are named; two can be compared", fix="duiti runs A B")
    found: Any
    tell: Callable[[Any], None]
    if not names:
        found, tell = list_as_dicts(), _print_list
    elif len(names) == 1:
        found, tell = show(find_run(names[0])), _print_one
    else:
        found, tell = compare(*map(find_run, names)), _print_two
    if json_:
        print(json.dumps(found, ensure_ascii=False))
    else:
        tell(found)


def _print_list(found: list[dict[str, Any]]) -> None:
    if not found:
        print("no runs yet; make one: duiti train my.jsonl -m tiny")
        return
    shown = [name for name in COLUMNS if any(run.get(name) is not None for run in found)]
    rows = [[_cell(name, run.get(name)) for name in shown] for run in found]
    _print_table(shown, rows)


def _print_one(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    _say(console, f"{found['path']} ({found['status']})", style="bold")
    if found["verdict"]:
        _say(console, found["verdict"])
    console.print()
    rows = [[key, _cell(key, s["value"]), s["reason"]] for key, s in found["settings"].items()]
    _print_table(["setting", "value", "why"], rows)
    if found["figures"]:
        console.print()
        rows = [
            [key, _cell(key, f["end"]), _cell(key, f["best"]), str(f["best_step"])]
            for key, f in found["figures"].items()
        ]
        _print_table(["while training", "at the end", "best", "at step"], rows)
    for title, key in (("on held-out rows", "evaluation"), ("on the anchor", "anchor")):
        _print_measured(console, title, found[key])
    console.print()
    effort = ", ".join(f"{key} {_cell(key, value)}" for key, value in found["effort"].items())
    _say(console, effort)
    if files := found["damaged_files"]:
        _say(console, f"damaged, and left out: {', '.join(files)}")
    if damaged := found["damaged_metrics_lines"]:
        lines = "1 damaged line" if damaged == 1 else f"{damaged} damaged lines"
        _say(console, f"metrics.jsonl: {lines} left out")
    if "passed" in found["proof"]:
        _say(console, "the saved files are proven" if found["proof"]["passed"] is True
             else "the saved files are NOT proven: proof.json")  # fmt: skip
    _say(console, f"files: {' '.join(found['files'])}")
    if found["report"]:
        _say(console, f"report: {found['report']}")


def _print_measured(console: Console, title: str, values: dict[str, Any]) -> None:
    sides = [name for name in ("base", "tuned") if isinstance(values.get(name), dict)]
    if sides:
        keys = dict.fromkeys(key for name in sides for key in values[name])
        rows = [[key, *(_cell(key, values[name].get(key)) for name in sides)] for key in keys]
        console.print()
        _print_table([title, *sides], rows)
    elif values:
        console.print()
        rows = [[key, _cell(key, value)] for key, value in values.items()]
        _print_table([title, ""], rows)


def _print_two(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for name, path, status, verdict in zip(
        "AB", found["paths"], found["status"], found["verdicts"], strict=True
    ):
        _say(console, f"{name}: {path} ({status})", style="bold")
        if verdict:
            _say(console, f"   {verdict}")
    console.print()
    if found["settings"]:
        rows = [[key, *(_cell(key, v) for v in pair)] for key, pair in found["settings"].items()]
        _print_table(["settings that differ", "A", "B"], rows)
    else:
        _say(console, "no setting differs")
    console.print()
    rows = []
    for key, pair in found["numbers"].items():
        a, b = pair
        change = "" if a is None or b is None else _change(key, b - a)
        rows.append([key, _cell(key, a), _cell(key, b), change])
    _print_table(["numbers", "A", "B", "B − A"], rows)


def _change(key: str, value: float) -> str:
    return "" if value == 0 else ("+" if value > 0 else "−") + _cell(key, abs(value))


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Cut by the terminal alone: what goes to a file is whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        widest = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
        console = Console(highlight=False, width=max(sum(widest) + 2 * len(widest), 80))
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    console.print(table)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(_plain(text), style=style), soft_wrap=True)


def _plain(text: str) -> str:
    """Files may have been edited: nothing in them drives the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 1e9:.2f} GB"
    if isinstance(value, float):
        is_count = "step" in name or name == "tokens"
        if is_count or "per_s" in name:
            return f"{value:,.0f}"
        return f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
