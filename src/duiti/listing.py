"""Runs for people and programs: all of them, one, or two side by side. No torch.

list_as_dicts(); show(find_run("my-tiny")); compare(find_run("a"), find_run("b"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from duiti.config import own_settings
from duiti.errors import DuitiError, UsageError
from duiti.findings import end_and_best, flat, number_of, object_of, own_choices, text_of
from duiti.run import (
    ANCHOR_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    VERDICT_FILE,
    Run,
    list_runs,
)

REPORT_FILE, PROOF_FILE = "report.html", "proof.json"
_PLACES = frozenset({"output"})
"""Settings that differ between any two runs."""


def list_as_dicts() -> list[dict[str, Any]]:
    """A dict per run, newest first. A run whose files are broken is listed as such."""
    return [_in_brief(run) for run in list_runs()]


def _in_brief(run: Run) -> dict[str, Any]:
    try:
        config, figures = run.config, end_and_best(run.metrics)
    except (DuitiError, OSError):
        return {"path": str(run.path), "status": f"unreadable: {CONFIG_FILE} or {METRICS_FILE}"}
    loss, val = figures.get("loss"), figures.get("val_loss")
    return {
        "path": str(run.path),
        "status": _status(run),
        "model": config.model,
        "method": config.method,
        "steps": run.metrics[-1]["step"] if run.metrics else 0,
        "loss": loss and loss.end,
        "val_loss": val and val.end,
        "best_val_loss": val and val.best,
        "verdict": _verdict(run),
    }


def _verdict(run: Run) -> str | None:
    """Its sentence; None where there is none, or the file is damaged."""
    return text_of(_object(run, VERDICT_FILE).get("sentence")) or None


def _object(run: Run, name: str) -> dict[str, Any]:
    """What a file holds; empty where it is damaged, as `_damaged` tells."""
    try:
        return run.read_json(name)
    except UsageError:
        return {}


def _damaged(run: Run) -> list[str]:
    found = []
    for name in (VERDICT_FILE, EVALUATION_FILE, ANCHOR_FILE, PROOF_FILE):
        try:
            run.read_json(name)
        except UsageError:
            found.append(name)
    return found


def show(run: Run) -> dict[str, Any]:
    """One run: settings that are not the default, numbers, files.

    Raises:
        UsageError: its settings cannot be read.
    """
    config = run.config
    records, num_damaged = run.read_metrics()
    report = run.path / REPORT_FILE
    proof = _object(run, PROOF_FILE)
    return {
        "path": str(run.path),
        "status": _status(run),
        "verdict": _verdict(run),
        "settings": {
            c.key: {"value": c.value, "reason": c.reason} for c in own_choices(run, config)
        },
        "figures": {key: asdict(figure) for key, figure in end_and_best(records).items()},
        "effort": effort(records),
        "evaluation": _object(run, EVALUATION_FILE),
        "anchor": _object(run, ANCHOR_FILE),
        "proof": {key: proof[key] for key in ("passed", "problems") if key in proof},
        "damaged_metrics_lines": num_damaged,
        "damaged_files": _damaged(run),
        "files": sorted(path.name + "/" * path.is_dir() for path in run.path.iterdir()),
        "report": str(report) if report.is_file() else None,
    }


def compare(first: Run, second: Run) -> dict[str, Any]:
    """Two runs: settings that differ, and every number beside the other's.

    Raises:
        UsageError: the settings of one cannot be read.
    """
    runs = (first, second)
    settings = [flat(own_settings(run.config)) for run in runs]
    differ = {
        key: [side.get(key) for side in settings]
        for key in dict.fromkeys([*settings[0], *settings[1]])
        if key not in _PLACES and settings[0].get(key) != settings[1].get(key)
    }
    numbers = [_numbers(run) for run in runs]
    keys = dict.fromkeys([*numbers[0], *numbers[1]])
    return {
        "paths": [str(run.path) for run in runs],
        "status": [_status(run) for run in runs],
        "verdicts": [_verdict(run) for run in runs],
        "settings": differ,
        "numbers": {key: [side.get(key) for side in numbers] for key in keys},
    }


def effort(records: list[dict[str, Any]]) -> dict[str, float]:
    """What a run took: updates, tokens, speed, memory."""
    tokens = [n for line in records if (n := number_of(line.get("num_tokens"))) is not None]
    rates = [n for line in records if (n := number_of(line.get("tokens_per_s"))) is not None]
    peaks = [n for line in records if (n := number_of(line.get("peak_memory_bytes"))) is not None]
    found: dict[str, float] = {"steps": records[-1]["step"] if records else 0}
    if tokens:
        found["tokens"] = sum(tokens)
    if rates:
        found["tokens_per_s"] = median(rates)
    if peaks:
        found["peak_memory_bytes"] = max(peaks)
    return found


def _numbers(run: Run) -> dict[str, float]:
    """Every number of a run under one name each."""
    records = run.metrics
    found: dict[str, float] = {}
    for key, figure in end_and_best(records).items():
        found[f"{key} at the end"] = figure.end
        if key != "loss":
            found[f"{key} at best"] = figure.best
            found[f"{key} best at step"] = figure.best_step
    evaluation, anchor = _object(run, EVALUATION_FILE), _object(run, ANCHOR_FILE)
    found |= _finite("held out: ", object_of(evaluation.get("tuned")))
    found |= _finite("held out, base: ", object_of(evaluation.get("base")))
    found |= _finite("anchor: ", {k: v for k, v in anchor.items() if k.startswith(("kl", "nll"))})
    return found | effort(records)


def _finite(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: number_of(value) for key, value in values.items()}
    return {f"{prefix}{key}": number for key, number in numbers.items() if number is not None}


def _status(run: Run) -> str:
    return "finished" if run.is_finished else "unfinished"
