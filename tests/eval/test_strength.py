"""The dial against the losses that one measures with the adapter's weights scaled by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from made_models import document, documents, make, plain_loss
from transformers import PreTrainedModel

from duiti.config import LoraConfig
from duiti.errors import UsageError
from duiti.eval.strength import MAX_ROWS, Point, Sweep, recommend, sweep_strength
from duiti.model.lora import add_lora, find_targets, lora_layers
from duiti.model.sft_model import SFTModel
from duiti.types import Example


@dataclass(frozen=True)
class Told:
    kl: float
    nll_change: float


class Norms:
    """In place of an anchor: how much the adapters add, which grows with their strength."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def measure(self) -> Told:
        size = sum(float(layer.delta().norm()) for layer in lora_layers(self.model).values())
        return Told(kl=size, nll_change=-size)


def adapted(name: str = "llama") -> SFTModel:
    model = make(name)
    add_lora(model, find_targets(model, "all-linear"), LoraConfig(rank=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.05, generator=generator)
    return SFTModel(model)


def mean_loss(model: PreTrainedModel, rows: Sequence[Example]) -> float:
    with torch.no_grad():
        losses = sum(float(plain_loss(model, row)) for row in rows)
    return losses / sum(row.num_supervised for row in rows)


def test_each_point_is_the_loss_with_the_adapter_scaled_by_hand() -> None:
    sft, rows = adapted(), documents([12, 9, 17])
    state = {name: tensor.clone() for name, tensor in sft.model.state_dict().items()}
    sft.train()
    stream = torch.get_rng_state()
    sweep = sweep_strength(sft, rows, Norms(sft.model), (1, 0.5, 0, 1.2))
    assert torch.equal(torch.get_rng_state(), stream)
    assert sft.training
    assert sft.model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in sft.model.state_dict().items())
    assert {layer.scale for layer in lora_layers(sft.model).values()} == {2.0}
    assert [point.strength for point in sweep.points] == [0, 0.5, 1, 1.2]
    sft.model.eval()
    full = Norms(sft.model).measure().kl
    starts = [layer.lora_B.detach().clone() for layer in lora_layers(sft.model).values()]
    for point in sweep.points:
        with torch.no_grad():
            for layer, start in zip(lora_layers(sft.model).values(), starts, strict=True):
                layer.lora_B.copy_(start * point.strength)
        assert point.val_loss == pytest.approx(mean_loss(sft.model, rows), rel=1e-5)
        assert point.anchor_kl == pytest.approx(full * point.strength, rel=1e-5)
    assert len({point.val_loss for point in sweep.points}) == 4


def point(strength: float, val_loss: float | None, kl: float | None = None) -> Point:
    return Point(strength=strength, val_loss=val_loss, anchor_kl=kl, anchor_nll_change=kl)


def test_the_weakest_that_keeps_nearly_all_of_the_gain_is_recommended() -> None:
    points = [point(0, 3.0, 0), point(0.4, 1.5, 0.1), point(0.6, 1.011, 0.2),
              point(0.8, 1.0, 0.4), point(1, 1.005, 0.7), point(1.2, 1.2, 1.1)]  # fmt: skip
    strength, why = recommend(points, num_rows=50)
    assert strength == 0.6  # 1.989 of 2.0 is 99.45 %
    for said in ("99%", "50 validation rows", "3.0000 to 1.0110", "strength 0.8", "0.2000", "0.70"):
        assert said in why
    points[2] = point(0.6, 1.021, 0.2)  # 98.95 %
    assert recommend(points, num_rows=50)[0] == 0.8


def test_what_is_no_better_than_the_base_is_not_recommended() -> None:
    strength, why = recommend([point(0, 1.0), point(0.5, 1.1), point(1, 1.4)], num_rows=9)
    assert strength is None
    assert "below the base's" in why
    assert recommend([point(0.5, 1.1), point(1, 1.0)], num_rows=9)[0] is None
    assert recommend([point(0, 2.0), point(0.5, 1.0), point(1, float("nan"))], num_rows=9)[0] == 0.5


def test_without_validation_rows_nothing_is_recommended_and_drift_is_measured() -> None:
    sft = adapted()
    for val in (None, []):
        sweep = sweep_strength(sft, val, Norms(sft.model), (0, 1))
        assert sweep.recommended is None
        assert "--val" in sweep.why
        assert [p.val_loss for p in sweep.points] == [None, None]
        assert sweep.points[0].anchor_kl == 0
    assert sweep_strength(sft, documents([9]), None, (0, 1)).points[0].anchor_kl is None


def test_many_rows_are_an_even_choice() -> None:
    sft = adapted()
    rows = [document(4 + (n % 5), n) for n in range(3 * MAX_ROWS)]
    read: list[int] = []

    class Watched(list[Example]):
        def __getitem__(self, index: int) -> Example:  # type: ignore[override]
            read.append(index)
            return super().__getitem__(index)

    sweep = sweep_strength(sft, Watched(rows), None, (0, 1))
    assert len(set(read)) == MAX_ROWS
    assert min(read) == 0
    assert max(read) == 3 * MAX_ROWS - 1
    assert f"{MAX_ROWS} validation rows" in sweep.why


def test_the_file_holds_what_was_measured_and_nothing_that_json_has_no_word_for() -> None:
    sweep = Sweep(points=(point(0, 2.0, float("inf")), point(1, None)), recommended=1.0, why="so")
    stored = json.loads(json.dumps(sweep.as_dict(), allow_nan=False))
    assert stored == {
        "points": [
            {"strength": 0, "val_loss": 2.0, "anchor_kl": None, "anchor_nll_change": None},
            {"strength": 1, "val_loss": None, "anchor_kl": None, "anchor_nll_change": None},
        ],
        "recommended": 1.0,
        "why": "so",
    }


def test_a_model_without_adapters_has_no_dial(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be swept") as caught:
        sweep_strength(SFTModel(make("llama")), documents([9]), None)
    assert "duiti export merged --strength" in caught.value.fix
    with pytest.raises(UsageError, match="no strength"):
        sweep_strength(adapted(), None, None, (0, 1, 2))
