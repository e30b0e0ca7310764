"""The YAML at the head of a model card, as the Hugging Face hub reads it. No torch.

    base = find_base(config)
    text = front_matter(run, config, base, evaluation)       # "---\\n…\\n---\\n"

Nothing in it is guessed: `base_model` stands there only where an id on the hub is known, a licence
and a language never do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duiti.config import Config
from duiti.errors import UsageError
from duiti.run import Run, yaml_text
from duiti.strict_yaml import parse_yaml

MAX_HEAD_BYTES = 2**20
"""Of a base's own README and config that are looked at."""
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[0-9a-f]{40}")
TYPES = {"token_accuracy": "accuracy", "chrf": "chrf", "bleu": "bleu", "rouge_l": "rouge"}
"""What the hub calls a metric, where that is something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a run was made from."""

    name: str
    """For people: never a path that tells of the machine."""
    hub_id: str | None
    """Where the hub has it; None: not known."""
    note: str
    """Where the id comes from, or why there is none; may be empty."""


def find_base(config: Config) -> Base:
    """The base model of a run, by its name on the hub if there is one."""
    name = config.model
    if name == "tiny" and not Path(name).is_dir():
        note = "The base is the model that is embedded in duiti. The hub does not have it, so"
        return Base(name="tiny", hub_id=None, note=f"{note} `base_model` is left out.")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Base(name=name, hub_id=_hub_id(name), note="")
    cached = _SNAPSHOT.search(folder.resolve().as_posix())
    if cached is not None and (found := _hub_id("/".join(cached.groups()))) is not None:
        return Base(name=found, hub_id=found, note="")
    short = folder.resolve().name
    told = _hub_id(_json_object(folder / "config.json").get("_name_or_path"))
    told = told or _hub_id(_head_of(folder / "README.md").get("base_model"))
    if told is not None:
        note = f"The base was a local folder, whose own files say that it comes from `{told}`."
        return Base(name=short, hub_id=told, note=note)
    note = "The base was a local folder, of which no id on the hub is known, so"
    return Base(name=short, hub_id=None, note=f"{note} `base_model` is left out.")


def front_matter(run: Run, config: Config, base: Base, evaluation: Mapping[str, Any]) -> str:
    """The head, with its marks.

    Args:
        evaluation: of `evaluation.json`; empty where there is none.
    """
    is_adapter = config.method == "lora"
    values: dict[str, Any] = {}
    if base.hub_id is not None:
        values["base_model"] = base.hub_id
        values["base_model_relation"] = "adapter" if is_adapter else "finetune"
    values["library_name"] = "peft" if is_adapter else "transformers"
    values["pipeline_tag"] = "text-generation"
    values["tags"] = ["sft", "duiti", *(["lora"] if is_adapter else [])]
    if metrics := _metrics(evaluation):
        result = {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"type": "held-out-rows", "name": _dataset(config, evaluation)},
            "metrics": metrics,
        }
        values["model-index"] = [{"name": run.path.absolute().name, "results": [result]}]
    return f"---\n{yaml_text(values)}---\n"


def _metrics(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    tuned = evaluation.get("tuned")
    if not isinstance(tuned, Mapping):
        return []
    return [
        {"type": TYPES.get(key, key), "value": value, "name": str(key).replace("_", " ")}
        for key, value in tuned.items()
        if type(value) in (int, float) and math.isfinite(value)
    ]


def _dataset(config: Config, evaluation: Mapping[str, Any]) -> str:
    rows = f"{evaluation.get('n', 'some')} held-out rows"
    own = Path(config.val).name if config.val and "%" not in config.val else ""
    return f"{rows} of {own}" if own else rows


def _hub_id(name: object) -> str | None:
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return None
    is_wrong = "--" in name or ".." in name or name.endswith(".git") or len(name) > 96
    return None if is_wrong else name


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_beginning(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _head_of(path: Path) -> dict[str, Any]:
    head = re.match(r"---\n(.*?)\n---\n", _beginning(path), re.DOTALL)
    try:
        return parse_yaml(head[1], source=path.name) if head else {}
    except UsageError:  # a card may say whatever it likes
        return {}


def _beginning(path: Path) -> str:
    """Of somebody else's file; empty where it cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return ""
        with path.open("rb") as file:
            return file.read(MAX_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
