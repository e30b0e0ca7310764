"""Look at data without training: what would be trained, what would not, and why.

report = run_check(Config(data=["my.jsonl"], model="tiny"))
report.as_dict(); report.refusal; report.mask(0)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from duiti.config import Config
from duiti.data.preview import mask_text, print_mask
from duiti.errors import DataError
from duiti.material import Material, raise_refusals, read_material
from duiti.types import Example, Json


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. `examples` are exactly what training would use."""

    material: Material
    refusal: DataError | None
    """Why training would refuse these rows, or None."""

    @property
    def examples(self) -> list[Example]:
        """What would be trained on (validation rows apart)."""
        return self.material.train

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable report (`duiti check --json`)."""
        ledger = self.material.prepared.ledger.as_dict()
        return {
            **ledger,
            "val_examples": len(self.material.val),
            "template": self.material.template.name,
            "max_length": self.material.prepared.max_length,
            "longest": self.material.prepared.longest,
            "warnings": self.material.prepared.warnings,
            "refused": None if self.refusal is None else self.refusal.what,
        }

    def mask(self, index: int) -> str:
        """One example as text, its trained part between ⟦ and ⟧."""
        return mask_text(self.examples[index], self.material.tokenizer, colour=False).plain

    def print_masks(self, count: int, console: Console) -> None:
        """Print the first examples with their trained part tinted."""
        for example in self.examples[:count]:
            print_mask(example, self.material.tokenizer, console)

    def dump(self, path: Path) -> None:
        """A line per example: `{"origin", "input_ids", "labels"}`."""
        with path.open("w", encoding="utf-8") as file:
            for example in self.examples:
                line = {
                    "origin": str(example.origin),
                    "input_ids": example.input_ids.tolist(),
                    "labels": example.labels.tolist(),
                }
                file.write(json.dumps(line) + "\n")


def run_check(config: Config, *, rows: Sequence[Mapping[str, Json]] | None = None) -> Check:
    """Read, render and encode everything, as training would.

    Raises:
        UsageError: a name, path or setting that cannot be meant as given.
    """
    material = read_material(config, rows=rows)
    try:
        raise_refusals(material, config)
    except DataError as error:
        return Check(material, error)
    return Check(material, None)
