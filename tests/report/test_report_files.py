"""What is in a folder is read; what is damaged is named, without its content."""

import json
from pathlib import Path

import pytest
from made_run import make_run, metrics, sample, write_json

from duiti.report.read import MAX_SAMPLES, read_report


def test_a_whole_run_is_read_without_a_problem(tmp_path: Path) -> None:
    data = read_report(make_run(tmp_path))
    assert data.problems == ()
    assert data.evaluation is not None
    assert data.evaluation.n == 250
    assert data.ledger is not None
    assert len(data.samples) == data.num_samples == 24
    assert len(data.curves["loss"].values) == 600
    assert len(data.curves["val_loss"].values) == 10
    assert data.samples[0].gain == pytest.approx(
        (data.samples[0].base_loss or 0) - (data.samples[0].tuned_loss or 0)
    )


def test_an_empty_folder_is_read_too(tmp_path: Path) -> None:
    data = read_report(tmp_path)
    assert (data.evaluation, data.anchor, data.proof, data.ledger) == (None, None, None, None)
    assert data.problems == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", '"SECRET"', '{"n": "SECRET"}', "[" * 100_000, "\udcff", ""]
)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, text: str) -> None:
    make_run(tmp_path)
    data = text.encode("utf-8", "surrogateescape")
    for name in ("evaluation.json", "anchor.json", "proof.json"):
        (tmp_path / name).write_bytes(data)
    found = read_report(tmp_path)
    assert found.evaluation is None
    assert [problem.partition(" ")[0] for problem in found.problems] == [
        "evaluation.json",
        "anchor.json",
        "proof.json",
    ]
    assert "SECRET" not in "".join(found.problems)
    assert len(found.samples) == 24


def test_a_torn_line_of_metrics_is_told_and_what_is_before_it_counts(tmp_path: Path) -> None:
    make_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 601, "lo')
    data = read_report(tmp_path)
    assert len(data.curves["loss"].values) == 600
    assert data.problems == ("metrics.jsonl, from line 601 on could not be read: it is not JSON",)


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    make_run(tmp_path, metrics=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}])
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": NaN}\n')
    curve = read_report(tmp_path).curves["loss"]
    assert (curve.values.tolist(), curve.num_missing) == ([2.0], 2)


def test_more_samples_than_can_be_shown_are_counted(tmp_path: Path) -> None:
    make_run(tmp_path, samples=[sample(1)] * 250)
    data = read_report(tmp_path)
    assert (len(data.samples), data.num_samples) == (MAX_SAMPLES, 250)


def test_settings_come_with_their_reasons_and_who_chose_them(tmp_path: Path) -> None:
    found = {setting.name: setting for setting in read_report(make_run(tmp_path)).settings}
    assert found["learning_rate"].text == "0.0002"
    assert found["learning_rate"].reason == "usual for adapters on a model of this width"
    assert found["data"].text == "/data/rivers.jsonl"
    assert found["lora"].text == "rank: 16\nalpha: 32.0"
    assert found["epochs"].is_default
    assert not found["val"].is_default
    assert not found["val"].reason


def test_keys_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path)
    file = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    file["tuned"]["rouge_l"] = {"mean": 0.5}
    write_json(tmp_path / "evaluation.json", {**file, "new": [1, 2]})
    data = read_report(tmp_path)
    assert data.evaluation is not None
    assert "rouge_l" not in data.evaluation.tuned


def test_settings_written_by_the_program_are_read_as_it_wrote_them(tmp_path: Path) -> None:
    from duiti.config import Config
    from duiti.run import write_config

    config = Config(data=("a: b.jsonl", "# c.jsonl"), model="tiny", learning_rate=1e-4)
    write_config(tmp_path, config, {"learning_rate": "of this width", "lora": "usual"})
    found = {setting.name: setting for setting in read_report(tmp_path).settings}
    assert set(found) >= {"data", "model", "learning_rate", "lora", "seed"}
    assert found["learning_rate"].reason == "of this width"
    assert found["lora"].reason == "usual"
    assert found["data"].text == "'a: b.jsonl'\n'# c.jsonl'"


def test_curves_of_a_long_run_are_whole(tmp_path: Path) -> None:
    data = read_report(make_run(tmp_path, metrics=metrics(3000)))
    assert len(data.curves["loss"].steps) == 3000
