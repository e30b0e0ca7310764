"""Losses of rows, in training and after it, against cross-entropy on the model's own logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import examples_of, write_rows
from made_models import document, documents, make, plain_loss
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from duiti import api
from duiti.data.replay import REHEARSED, rehearsal
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template, load_template
from duiti.eval.judge import held_out, judge_rows, losses_of_run, mean_losses
from duiti.eval.judge import write_rows as write_rows_file
from duiti.eval.row_losses import ROW_LOSSES_FILE, RowLosses, by_epoch, write_row_keys
from duiti.infer.model import load
from duiti.model.sft_model import SFTModel
from duiti.run import Run
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.step import StepPlan, train_steps
from duiti.types import Example

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

ROWS = [{"prompt": f"Who is {n}?", "response": "Nobody" + " knows" * (n % 4)} for n in range(12)]


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("auto", tokenizer)


def plain(model: PreTrainedModel, rows: Sequence[Example]) -> list[float]:
    """[E] as in any textbook."""
    with torch.no_grad():
        return [float(plain_loss(model, row)) / row.num_supervised for row in rows]


def test_the_mean_loss_of_a_row_is_plain_cross_entropy_whatever_its_weights() -> None:
    model = make("qwen2-biased")
    rows = documents([9, 17, 12, 5])
    weighed = [replace(row, weights=np.linspace(0.1, 2, len(row), dtype=np.float32))
               for row in rows]  # fmt: skip
    expected = plain(model, rows)
    assert mean_losses(SFTModel(model), rows) == pytest.approx(expected, rel=1e-5)
    assert mean_losses(SFTModel(model), weighed) == pytest.approx(expected, rel=1e-5)


def test_what_training_writes_is_each_rows_loss_before_its_update(tmp_path: Path) -> None:
    """Against the same training, one update at a time, measured between updates."""
    store = ExampleStore.from_examples([document(6 + n, n) for n in range(1, 8)])
    losses = {}
    for batch_size, budget in ((3, 1000), (3, 12)):
        model = make("llama")
        sft = SFTModel(model)
        plan = StepPlan(
            rate=RatePlan(peak=1e-2, total_steps=5, warmup_steps=0, schedule="constant"),
            batch_size=batch_size, micro_batch_tokens=budget, max_grad_norm=0, seed=4,
        )  # fmt: skip
        optimizer = make_optimizer(list(model.parameters()), weight_decay=0)
        path = tmp_path / f"{budget}" / ROW_LOSSES_FILE
        expected = [mean_losses(sft, store)]
        with RowLosses(path) as file:
            for metrics, progress in train_steps(sft, optimizer, store, plan):
                file.add(metrics.row_losses, cursor=progress.cursor)
                expected.append(mean_losses(sft, store))
        found = by_epoch(np.fromfile(path, "<f4"), 7, seed=4)
        assert found.shape == (2, 7)
        for epoch, own in enumerate(found):
            order = np.random.default_rng([4, epoch]).permutation(7).tolist()
            for place, row in enumerate(order):
                step = 3 * epoch + place // batch_size  # three updates in an epoch: 3, 3 and 1 rows
                if step < 5:
                    assert own[row] == pytest.approx(expected[step][row], rel=1e-5)
                else:
                    assert np.isnan(own[row])
        losses[budget] = found
    assert np.allclose(losses[12], losses[1000], rtol=1e-5, equal_nan=True)


def test_rehearsed_text_is_not_among_the_rows(template: Template, tmp_path: Path) -> None:
    train = examples_of(template, write_rows(tmp_path / "train.jsonl", ROWS))
    both = train.joined(rehearsal(documents([9, 9, 12]), 5, seed=0))
    with RowLosses(tmp_path / ROW_LOSSES_FILE) as file:
        for epoch in (1, 2):
            file.add([2 / epoch] * len(both), cursor=epoch * len(both))
    found = write_rows_file(tmp_path, both, seed=0, held_out=None)
    # The keys count as the file of losses does: rehearsed text among them.
    assert losses_of_run(tmp_path, train, seed=0).tolist() == [[2] * len(train), [1] * len(train)]
    assert sum(found.counts.values()) == len(ROWS)
    text = (tmp_path / "rows.json").read_text()
    assert REHEARSED not in text
    stored = json.loads(text)
    assert stored["epochs"] == 2
    assert stored["rows"][0]["losses"] == [2, 1]
    assert stored["rows"][0]["origin"].endswith("train.jsonl:1")
    (tmp_path / ROW_LOSSES_FILE).unlink()
    assert "no loss" in write_rows_file(tmp_path, both, seed=0, held_out=None).note


def test_held_out_rows_are_measured_by_the_model_as_it_is() -> None:
    model, rows = make("llama"), documents([9, 17, 12])
    found = held_out(SFTModel(model), rows)
    assert found is not None
    assert found.losses == pytest.approx(plain(model, rows), rel=1e-5)
    assert found.lengths.tolist() == [row.num_supervised for row in rows]
    assert held_out(SFTModel(model), []) is None


@pytest.fixture(scope="module")
def run(llama_dir: Path, template: Template, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on the first eight rows, under another name."""
    folder = tmp_path_factory.mktemp("run")
    path = write_rows(folder / "other-name.jsonl", ROWS[:8])
    found = api.train(
        str(path), model=str(llama_dir), output=str(folder / "run"), epochs=8, batch_size=4,
        learning_rate=1e-2, device="cpu", proof=False, quiet=True,
    )  # fmt: skip
    store = examples_of(template, path)
    write_row_keys(found.path, store)
    with RowLosses(found.path / ROW_LOSSES_FILE) as file:
        for epoch in (0, 1):
            order = np.random.default_rng([found.config.seed, epoch]).permutation(8)
            file.add((10 * (2 - epoch) + order).tolist(), cursor=8 * (epoch + 1))
    return found


def test_rows_of_a_run_are_found_by_what_they_say(
    run: Run, template: Template, tmp_path: Path
) -> None:
    shuffled = [ROWS[n] for n in (11, 3, 0, 9, 7)]
    store = examples_of(template, write_rows(tmp_path / "mine.jsonl", shuffled))
    found = losses_of_run(run.path, store)
    assert found.shape == (2, 5)
    assert np.isnan(found[:, [0, 3]]).all()
    assert found[:, [1, 2, 4]].tolist() == [[23, 20, 27], [13, 10, 17]]
    assert losses_of_run(tmp_path, store).shape == (0, 5)


def test_a_file_is_judged_by_base_epochs_and_tuned_model(
    run: Run, template: Template, tmp_path: Path
) -> None:
    rows = [*ROWS, {"prompt": "Who is 3?", "response": "Everybody"}]
    store = examples_of(template, write_rows(tmp_path / "mine.jsonl", rows))
    found = judge_rows(load(run, device="cpu"), store, folder=run.path)
    assert found.names == ("base", "epoch 1", "epoch 2", "tuned")
    base = AutoModelForCausalLM.from_pretrained(run.config.model).eval()
    before = plain(base, store)
    after = plain(PeftModel.from_pretrained(base, run.path).eval(), store)
    assert found.rows.losses[0, :8] == pytest.approx(before[:8], rel=1e-4)
    assert found.rows.losses[3, :8] == pytest.approx(after[:8], rel=1e-4)
    assert found.rows.losses[1:3, :8].tolist() == [list(range(20, 28)), list(range(10, 18))]
    assert "5 of 13 examples were not trained on" in found.note
    # Those are what memorising is measured by, and are not judged themselves.
    assert np.isnan(found.rows.losses[:, 8:]).all()
    assert np.isfinite(found.alike).all()
    assert sum(found.counts.values()) == 8


def test_a_file_of_other_rows_is_judged_by_base_and_tuned_model(
    run: Run, llama_dir: Path, template: Template, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "Who is 1?", "response": "A stone"},
        {"prompt": "Who is 2?", "response": "Nobody"},
        {"prompt": "Who is 1?", "response": "A river"},
    ]
    store = examples_of(template, write_rows(tmp_path / "mine.jsonl", rows))
    found = judge_rows(load(run, device="cpu"), store, folder=run.path)
    assert found.rows.losses.shape == (4, 3)
    assert np.isnan(found.rows.losses[1:3]).all()
    assert found.counts["contradictory"] == 2
    alone = judge_rows(load(llama_dir, device="cpu"), store)
    assert alone.names == ("base",)
    assert alone.counts.keys() == {"contradictory"}
