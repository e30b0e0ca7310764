"""Read a run's folder for its report: what is there, and nothing that is not.

    data = read_report("runs/my-tiny")
    data.evaluation is None             # it was not measured
    data.problems                       # files that are there and cannot be read

A run that measured little has few of these files. One that is damaged must not take the report away
from those that are not: it is named in the report instead.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from duiti.config import Config, own_settings
from duiti.errors import UsageError
from duiti.report.folder import (
    Anchor,
    Environment,
    Evaluation,
    FoundRate,
    LedgerFile,
    Moment,
    MoreData,
    Proof,
    Sample,
    Strength,
    TellingRows,
)
from duiti.run import (
    ANSWERS_FILE,
    CONFIG_FILE,
    ENV_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    Run,
)
from duiti.strict_yaml import parse_yaml

MAX_SAMPLES = 100
"""Samples that a report can show; those behind them are counted."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One number of `metrics.jsonl`, where it was measured and finite."""

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    num_missing: int
    """Times that it was measured and not finite."""

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of `config.yaml`."""

    name: str
    text: str
    """Its value, as the file has it."""
    reason: str
    """Why duiti chose it; empty: it did not."""
    is_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that a report is made of. What is None was not made."""

    folder: Path
    curves: Mapping[str, Curve]
    """By their names in `metrics.jsonl`."""
    samples: Sequence[Sample]
    num_samples: int
    """All that there are; `samples` are the first of them."""
    moments: Sequence[Moment]
    """The same questions, answered each time that the model was measured."""
    settings: Sequence[Setting]
    config: Mapping[str, Any]
    """The settings as values; empty where they cannot be read."""
    environment: Environment
    evaluation: Evaluation | None
    anchor: Anchor | None
    strength: Strength | None
    rows: TellingRows | None
    found_rate: FoundRate | None
    more_data: MoreData | None
    proof: Proof | None
    ledger: LedgerFile | None
    has_weights: bool
    """Whether a trained model was saved; else the run was stopped, and may go on."""
    problems: Sequence[str]
    """Files that are there and cannot be read, each with the reason."""


def read_report(folder: str | Path) -> ReportData:
    """Everything in the folder that a report shows."""
    folder = Path(folder)
    files = _Files(folder)
    text = files.text(CONFIG_FILE) or ""
    config = files.config(text)
    return ReportData(
        folder=folder,
        curves=files.curves(),
        samples=files.lines(SAMPLES_FILE, Sample, most=MAX_SAMPLES),
        num_samples=(files.text(SAMPLES_FILE) or "").count("\n"),
        moments=files.lines(ANSWERS_FILE, Moment),
        settings=read_settings(text, config),
        config=config,
        environment=Environment(values=files.read(ENV_FILE, dict[str, Any]) or {}),
        evaluation=files.read("evaluation.json", Evaluation),
        anchor=files.read("anchor.json", Anchor),
        strength=files.read("strength.json", Strength),
        rows=files.read("rows.json", TellingRows),
        found_rate=files.read("find_lr.json", FoundRate),
        more_data=files.read("more_data.json", MoreData),
        proof=files.read("proof.json", Proof),
        ledger=files.read(LEDGER_FILE, LedgerFile),
        has_weights=Run(folder).has_weights,
        problems=tuple(files.problems),
    )


def read_settings(text: str, config: Mapping[str, Any]) -> list[Setting]:
    """The settings of `config.yaml`, with the comments that give reasons for them."""
    usual = own_settings(Config())
    found: list[Setting] = []
    reason, name, lines = "", "", list[str]()

    def end() -> None:
        if name:
            value = textwrap.dedent("\n".join(line.removeprefix("- ") for line in lines[1:]))
            value = f"{lines[0]}\n{value}".strip()
            is_default = name in usual and config.get(name) == usual[name]
            found.append(Setting(name=name, text=value, reason=reason, is_default=is_default))

    pending = ""
    for line in text.splitlines():
        if line.startswith("# "):
            pending = "" if line.startswith("# written by") else line.removeprefix("# ")
        elif line.startswith((" ", "- ")) or ":" not in line:
            lines.append(line)
        else:
            end()
            name, _, value = line.partition(":")
            lines, reason, pending = [value.strip()], pending, ""
    end()
    return found


class _Files:
    """The files of a folder, and what was wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def text(self, name: str) -> str | None:
        """What a file holds; None: it is not there, or cannot be read."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._tell(name, error)
            return None

    def read(self, name: str, kind: type[T]) -> T | None:
        """A JSON file as its type."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return TypeAdapter(kind).validate_python(json.loads(text, parse_constant=_no_number))
        except (ValueError, RecursionError) as error:
            self._tell(name, error)
            return None

    def config(self, text: str) -> dict[str, Any]:
        try:
            return parse_yaml(text, source=CONFIG_FILE) if text else {}
        except UsageError as error:
            self.problems.append(error.what)
            return {}

    def lines(self, name: str, kind: type[T], *, most: int | None = None) -> list[T]:
        """The first lines of a file, each as its type; those that are of no such type are named."""
        adapter = TypeAdapter(kind)
        found: list[T] = []
        for number, line in enumerate(islice(self._lines(name), most), start=1):
            try:
                found.append(adapter.validate_python(line))
            except ValidationError as error:
                self._tell(f"{name}, line {number}", error)
        return found

    def curves(self) -> dict[str, Curve]:
        steps: dict[str, list[int]] = {}
        values: dict[str, list[float]] = {}
        missing: dict[str, int] = {}
        for line in self._lines(METRICS_FILE):
            step = line.get("step") if isinstance(line, dict) else None
            if not isinstance(step, int):
                continue
            for name, value in line.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    missing[name] = missing.get(name, 0) + (value is None)
                elif name != "step":
                    steps.setdefault(name, []).append(step)
                    values.setdefault(name, []).append(float(value))
        return {
            name: Curve(
                steps=np.array(steps[name], dtype=np.int64),
                values=np.array(values[name], dtype=np.float64),
                num_missing=missing.get(name, 0),
            )
            for name in steps
        }

    def _lines(self, name: str) -> Iterator[Any]:
        """A value per line; those behind a line that is none are left out, and that is said."""
        for number, line in enumerate((self.text(name) or "").split("\n"), start=1):
            if line.strip():
                try:
                    yield json.loads(line, parse_constant=_no_number)
                except (ValueError, RecursionError) as error:
                    self._tell(f"{name}, from line {number} on", error)
                    return

    def _tell(self, name: str, error: Exception) -> None:
        """What is wrong, without what is in the file."""
        if isinstance(error, ValidationError):
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            reason = f"{place or 'its value'} is not what it should be"
        elif isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
        else:
            reason = "it is not JSON" if isinstance(error, ValueError) else "it is nested too deep"
        self.problems.append(f"{name} could not be read: {reason}")


def _no_number(name: str) -> None:
    """NaN and infinities are no JSON; a curve has a gap there."""
    return None
