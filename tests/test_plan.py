"""Settings that were left open, and the reasons they come with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made import write_rows

from duiti.config import Config
from duiti.material import read_material
from duiti.plan import settle, total_steps


@pytest.mark.parametrize(
    ("more", "is_told"),
    [({}, True), ({"lora": {"alpha": 8}}, True), ({"lora": {"rank": 16}}, False),
     ({"method": "full"}, False)],
)  # fmt: skip
def test_the_rank_comes_with_a_reason_unless_it_is_given(
    more: dict[str, Any], is_told: bool, llama_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a?", "response": "b"}] * 4)
    config = Config(data=(str(data),), model=str(llama_dir), device="cpu", **more)
    settled, reasons = settle(config, read_material(config))
    assert ("lora" in reasons) is is_told
    assert settled.lora == config.lora


@pytest.mark.parametrize(
    ("more", "looks"),
    [
        # 1,024 tokens of the anchor, beside some 40 rows of a dozen tokens: as few as there may be
        ({"epochs": 1}, 2),
        # 0.1 * 40 epochs * 40 rows * 25.5 tokens / (1024 / 3) is a little over 10
        ({"epochs": 60}, 10),
        # a few validation rows cost little
        ({"epochs": 4, "anchor": "none", "val": "10%"}, 10),
        # two for every three that are trained on
        ({"epochs": 7, "anchor": "none", "val": "50%"}, 3),
    ],
)
def test_a_run_is_measured_as_often_as_costs_little(
    more: dict[str, Any], looks: int, llama_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Who wrote number {n}?", "response": f"It was {n}."} for n in range(40)]
    config = Config(data=(str(write_rows(tmp_path / "rows.jsonl", rows)),), model=str(llama_dir),
                    device="cpu", batch_size=2, **more)  # fmt: skip
    material = read_material(config)
    total = total_steps(config, len(material.train))
    settled, reasons = settle(config, material)
    assert settled.eval_every == math.ceil(total / looks)
    assert reasons["eval_every"].startswith(f"{looks} times over the run")
