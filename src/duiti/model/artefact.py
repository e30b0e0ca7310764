"""The finished artefact in a folder: a manifest with the hash of every file that matters, and what
it was trained on. No torch.

    write_artefact(folder, Artefact(kind="adapter", trained_on=…), files=["adapter_model.…", …])
    artefact = read_artefact(folder)          # every file is read and compared; raises Damaged
    artefact.trained_on.weights               # of the base that belongs to it

The manifest is written last, so a folder without one is not finished. A README, and whatever else
lies in the folder, may be edited: only the files that decide what the model answers are named, and
nothing may come to them that a library would load unasked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from duiti.errors import DuitiError
from duiti.manifest import MANIFEST_FILE, Damaged, check_manifest, read_manifest, write_manifest
from duiti.types import Json

SHA256 = re.compile("[0-9a-f]{64}")

LOADED = (
    *("*.safetensors", "*.safetensors.index.json", "adapter_*", "config.json", "*.py", "*.jinja"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *(
        "*.model",
        "tekken.json",
        "chat_template*",
        "additional_chat_templates",
        "generation_config.json",
    ),
    *("template.yaml",),
)
"""Names that are looked for when a folder is opened, by duiti or a library below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """What weights belong to, as hashes (of `duiti.infer.digests`)."""

    base: str
    """The base's name, as the user gave it."""
    weights: str
    """Of the base."""
    config: str
    """Of the base."""
    tokenizer: str
    template: str

    def as_dict(self) -> dict[str, Json]:
        """The form that JSON keeps."""
        return dict(asdict(self))

    @classmethod
    def from_dict(cls, values: object) -> TrainedOn:
        """Strictly what `as_dict` gives.

        Raises:
            DuitiError: it is anything else.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise DuitiError("it does not tell what it was trained on")
        for name, value in values.items():
            if not isinstance(value, str) or (name != "base" and not SHA256.fullmatch(value)):
                raise DuitiError(f"it does not tell what it was trained on: {name} is no hash")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """What a finished folder holds."""

    kind: Literal["adapter", "model"]
    trained_on: TrainedOn
    adapter: Mapping[str, Json] = field(default_factory=dict)
    """Rank, alpha and the rest of an adapter's settings, for whoever reads the manifest."""


def write_artefact(folder: Path, artefact: Artefact, files: Iterable[str]) -> None:
    """Close a folder: from here on it is finished, and none of these files may change.

    Raises:
        DuitiError: it cannot be written.
    """
    facts: dict[str, Json] = {
        "kind": artefact.kind,
        "trained_on": artefact.trained_on.as_dict(),
        "adapter": dict(artefact.adapter),
    }
    write_manifest(folder, facts, files)


def read_artefact(folder: Path) -> Artefact:
    """What a finished folder holds, after a look at every byte of the files that matter.

    Raises:
        Damaged: it is not what was written, or something came to it.
    """
    known = read_manifest(folder).files.keys() | {MANIFEST_FILE}
    for path in sorted(folder.iterdir()):
        is_listed = path.name in known or any(each.startswith(f"{path.name}/") for each in known)
        if not is_listed and any(fnmatch(path.name, pattern) for pattern in LOADED):
            raise Damaged(f"{path.name} was not there when it was written", folder)
    facts = check_manifest(folder)
    match facts:
        case {"kind": "adapter" | "model" as kind, "trained_on": found, "adapter": dict(adapter)}:
            try:
                trained_on = TrainedOn.from_dict(found)
            except DuitiError as error:
                raise Damaged(error.what, folder) from None
            return Artefact(kind=kind, trained_on=trained_on, adapter=adapter)
    raise Damaged("its manifest is not that of a finished model", folder)
