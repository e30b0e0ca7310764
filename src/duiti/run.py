"""A run on disk: its folder, its name, and what can be read from it without a model. No torch.

run = Run("runs/my-tiny"); run.config; run.metrics
newest_run(), list_runs(), new_run_folder("my.jsonl", "tiny")
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duiti.config import Config, load_config, own_settings
from duiti.durable import make_folder, write_file
from duiti.errors import UsageError
from duiti.manifest import MANIFEST_FILE

RUNS = Path("runs")
CONFIG_FILE = "config.yaml"
ENV_FILE = "env.json"
METRICS_FILE = "metrics.jsonl"
TEMPLATE_FILE = "template.yaml"
LEDGER_FILE = "data/ledger.json"
REJECTED_FILE = "data/rejected.jsonl"
SAMPLES_FILE = "samples.jsonl"
ANSWERS_FILE = "answers.jsonl"
EVALUATION_FILE = "evaluation.json"
ANCHOR_FILE = "anchor.json"
VERDICT_FILE = "verdict.json"


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run, finished or not."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Config:
        """The settings it was trained with: every `auto` is resolved."""
        return load_config(self.path / CONFIG_FILE, {})

    @property
    def id(self) -> str:
        """What its checkpoints name it by, wherever it lies and whatever it is called.

        Raises:
            UsageError: `env.json` was damaged.
        """
        try:
            environment = json.loads((self.path / ENV_FILE).read_text(encoding="utf-8"))
            return str(environment["id"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            what = f"{self.path / ENV_FILE} does not say which run this is"
            raise UsageError(what, why="it was changed, or is damaged") from None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per update, as in `metrics.jsonl`. Lines that are damaged are left out."""
        return self.read_metrics()[0]

    def read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """The same, and how many lines are no record of an update: a crash may tear the last one,
        and whoever edits the file any other."""
        return read_records(self.path / METRICS_FILE)

    @property
    def reasons(self) -> dict[str, str]:
        """Why a setting was chosen, by key: the comments of `config.yaml`."""
        try:
            lines = (self.path / CONFIG_FILE).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return {}
        found, reason = {}, ""
        for line in lines[1:]:
            if line.startswith("# "):
                reason = line[2:]
                continue
            key, colon, _ = line.partition(":")
            if reason and colon:
                found[key] = reason
            reason = ""
        return found

    def read_json(self, name: str) -> dict[str, Any]:
        """An object out of one of its files; empty where there is no such file.

        Raises:
            UsageError: the file holds something else.
        """
        path = self.path / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"{path} is no JSON object", why="it was changed, or is damaged")
        return found

    @property
    def is_finished(self) -> bool:
        """Whether the trained weights are there, and the manifest that is written after them.

        What lies in the files is looked at when they are opened (`duiti.model.artefact`)."""
        return (self.path / MANIFEST_FILE).is_file() and self.has_weights

    @property
    def has_weights(self) -> bool:
        """Whether there is a trained model, proven or not; a stopped run has checkpoints only."""
        return any((self.path / name).is_file() for name in _WEIGHTS)

    def require_finished(self) -> None:
        """Stop here unless it is.

        Raises:
            UsageError: there are no trained weights, or they are not all there.
        """
        if not self.is_finished:
            found = f"weights, and no {MANIFEST_FILE}" if self.has_weights else "no trained weights"
            raise UsageError(
                f"the run {self.path} holds {found}: it did not finish",
                fix=f"duiti train --resume {shlex.quote(str(self.path))}",
            )


_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def is_run(path: Path) -> bool:
    """Whether a folder was made by `duiti train`."""
    try:
        return (path / CONFIG_FILE).is_file() and (path / ENV_FILE).is_file()
    except PermissionError as error:
        what = f"{error.filename} cannot be read: permission denied"
        raise UsageError(what, why="it belongs to another user") from None


def open_run(name: str | Path) -> Run:
    """The finished run of that path, or of that name under `runs/`.

    Raises:
        UsageError: there is none, or it has no trained weights.
    """
    run = find_run(name)
    run.require_finished()
    return run


def find_run(name: str | Path) -> Run:
    """The same, finished or not.

    Raises:
        UsageError: there is none.
    """
    for path in (Path(name).expanduser(), RUNS / name):
        if is_run(path):
            return Run(path)
    known = ", ".join(run.name for run in list_runs()) or "none yet"
    raise UsageError(f"no run {name}", fix=f"runs here: {known}")


def list_runs() -> list[Run]:
    """The runs under `runs/`, newest first."""
    found = [path for path in RUNS.iterdir() if is_run(path)] if RUNS.is_dir() else []
    return [Run(path) for path in sorted(found, key=_made, reverse=True)]


def newest_run() -> Run:
    """The newest finished run.

    Raises:
        UsageError: there is none.
    """
    for run in list_runs():
        if run.is_finished:
            return run
    raise UsageError("there is no run yet", fix="duiti train my.jsonl -m tiny")


def new_run_folder(output: str | None, data: str, model: str) -> Path:
    """Make the folder of a new run; never one that exists and holds something.

    Args:
        output: as asked for, or None to name it after data and model (`runs/my-tiny`, `-2`, `-3`,
        …).

    Raises:
        UsageError: it exists, or cannot be made.
    """
    if output is not None:
        candidates: Iterator[Path] = iter([Path(output).expanduser()])
    else:
        stem = re.sub(r"[^\w.-]+", "-", f"{data}-{model}").strip("-.") or "run"
        candidates = (RUNS / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 10_000))
    for path in candidates:
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not any(path.iterdir()):
                return path
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror}") from None
    fix = "choose another name, or leave -o out and it gets a free one"
    raise UsageError(f"{output} exists and is not empty", why="runs are never overwritten", fix=fix)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe one, which writes some control characters as they are and cannot read them."""


def _as_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _as_text)


def yaml_text(values: Mapping[str, Any]) -> str:
    """Values as YAML, in their order; strings with odd characters come back as they were."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text


def write_config(folder: Path, config: Config, reasons: dict[str, str]) -> None:
    """`config.yaml`: resolved values; where one was chosen, the reason as a comment."""
    lines = [f"# written by duiti; `duiti train -c {CONFIG_FILE} -o NEW` repeats the run"]
    for key, value in own_settings(config).items():
        text = yaml_text({key: value}).rstrip("\n")
        if key in reasons:
            lines.append(f"# {reasons[key]}")
        lines.append(text)
    write_file(folder / CONFIG_FILE, "\n".join(lines) + "\n")


def write_json(path: Path, value: object) -> None:
    """A JSON file that a person can read, made with its folder."""
    make_folder(path.parent)
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, values: list[Any]) -> None:
    """A line per value, made with its folder."""
    make_folder(path.parent)
    write_file(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines that are objects with a number `step`, and how many are not; none where there is no
    such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    lines = [line for line in content.split(b"\n") if line.strip()]
    found = [values for line in lines if (values := _record(line)) is not None]
    return found, len(lines) - len(found)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values


def _made(path: Path) -> float:
    # The environment is written once, when a run begins.
    return (path / ENV_FILE).stat().st_mtime
