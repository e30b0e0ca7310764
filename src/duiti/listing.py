"""The runs under `runs/`, as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from duiti.errors import DuitiError
from duiti.run import list_runs


def list_as_dicts() -> list[dict[str, Any]]:
    """A dict per run, newest first. A run whose files are broken is listed as such."""
    found: list[dict[str, Any]] = []
    for run in list_runs():
        try:
            config, metrics = run.config, run.metrics
        except (DuitiError, ValueError) as error:
            found.append({"path": str(run.path), "status": f"unreadable: {type(error).__name__}"})
            continue
        last = metrics[-1] if metrics else {}
        val = [line["val_loss"] for line in metrics if "val_loss" in line]
        found.append(
            {
                "path": str(run.path),
                "status": "finished" if run.is_finished else "unfinished",
                "model": config.model,
                "method": config.method,
                "steps": last.get("step", 0),
                "loss": last.get("loss"),
                "val_loss": val[-1] if val else None,
            }
        )
    return found


def print_runs(found: list[dict[str, Any]]) -> None:
    """The table, for people."""
    if not found:
        print("no runs yet; make one: duiti train my.jsonl -m tiny")
        return
    columns = ("path", "status", "model", "method", "steps", "loss", "val_loss")
    table = Table(*columns, box=None)
    for run in found:
        table.add_row(*(_cell(run.get(column)) for column in columns))
    Console().print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
