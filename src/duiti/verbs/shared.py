"""What several verbs share: kinds of parameters, and settings of a file and of flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from duiti.config import Config, load_config

if TYPE_CHECKING:
    from duiti.infer.model import Model

Flag = Annotated[bool, Parameter(negative=())]
Settings = Annotated[Config, Parameter(name="*")]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative=())]
NO_SETTINGS = Config()


def say_notes(model: Model) -> None:
    """What is good to know of a model that was opened."""
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)


def merged(file: Path | None, data: tuple[str, ...], settings: Config) -> Config:
    """The settings of the file, then those of the flags that were given."""
    return load_config(file, given(None, data, settings))


def given(file: Path | None, data: tuple[str, ...], settings: Config) -> dict[str, Any]:
    """What is set by a file and by flags, and nothing else."""
    found: dict[str, Any] = settings.model_dump(exclude_unset=True)
    if data:
        found["data"] = data
    return found if file is None else load_config(file, found).model_dump(exclude_unset=True)


def as_flags(file: Path | None, settings: Config) -> list[str]:
    """The flags that were given, as they would be given again."""
    flags = [] if file is None else ["-c", str(file)]
    set_ones = settings.model_dump(exclude_unset=True, mode="json")
    for key, value in set_ones.items():
        inner = value.items() if key in ("lora", "last_n") else [("", value)]
        for name, item in inner:
            flag = "--" + f"{key}.{name}".rstrip(".").replace("_", "-")
            if key == "model":
                flag = "-m"
            if isinstance(item, bool):
                flags.append(flag if item else flag.replace("--", "--no-", 1))
            elif isinstance(item, dict):
                flags += [flag, ",".join(f"{old}={new}" for old, new in item.items())]
            else:
                flags += [flag, ",".join(item) if isinstance(item, list) else str(item)]
    return flags
