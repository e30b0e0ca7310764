"""Makes, once per case, what all sides start from. A child of `benchmarks.gpu`.

    python -m benchmarks.gpu.setup < job.json > facts.json

A model folder with random weights, the token ids and labels that duiti trains on, update by update
in its order, and with LoRA the adapter that it starts from, as a PEFT folder. As on the CPU
(`benchmarks/speed/setup.py`): peers get ids and labels, so they supervise the very same tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.flops import Shape
from benchmarks.speed.scenarios import ALPHA, RANK, SEED
from benchmarks.speed.setup import make_model, write_adapter
from duiti.config import Config, LoraConfig
from duiti.data.batch import epoch_updates
from duiti.material import Material, raise_refusals, read_material
from duiti.types import IGNORE_INDEX


def main() -> None:
    """Read the job, make things, say what they are."""
    job: dict[str, Any] = json.load(sys.stdin)
    folder = Path(job["model"])
    if not folder.exists():
        make_model(Shape(**job["shape"]), folder, job["tokenizer"])
    config = Config(
        data=(job["data"],),
        model=str(folder),
        method=job["method"],
        map=job["map"],
        template="chatml",
        seed=SEED,
    )
    if job["method"] == "lora":  # given with another method, it would be refused
        config = config.model_copy(update={"lora": LoraConfig(rank=RANK, alpha=ALPHA)})
    material = read_material(config)
    raise_refusals(material, config)
    updates = updates_of(material, job["rows"])
    Path(job["updates"]).write_text(json.dumps(updates), encoding="utf-8")
    if job["method"] == "lora":
        write_adapter(material, config, Path(job["adapter"]))
    facts = {
        "lengths": [[len(row["input_ids"]) for row in update] for update in updates],
        "supervised": [
            sum(label != IGNORE_INDEX for row in update for label in row["labels"])
            for update in updates
        ],
    }
    json.dump(facts, sys.stdout)


def updates_of(material: Material, rows: int) -> list[list[dict[str, list[int]]]]:
    """Ids and labels of every row of every update of the first epoch."""
    examples = material.train
    return [
        [
            {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}
            for row in (examples[index] for index in update)
        ]
        for update in epoch_updates(len(examples), rows, seed=SEED, epoch=0)
    ]


if __name__ == "__main__":
    main()
