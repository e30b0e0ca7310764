"""A run that looks at itself: the looking changes no bit, and what is done about what it sees goes
on after a stop as if there had been none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import write_rows

from duiti.config import Config
from duiti.data.replay import REHEARSAL_FILE
from duiti.errors import UsageError
from duiti.run import Run
from duiti.sft import finetune, go_on
from duiti.training.log import Talk
from duiti.training.step import TIMED

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(24)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", PAIRS)


def trained(model: Path, rows: Path, folder: Path, **values: Any) -> Run:
    whole = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu", "workers": 1,
             "proof": False, **values}  # fmt: skip
    config = Config(data=(str(rows),), model=str(model), output=str(folder), **whole)
    return finetune(config, talk=Talk(quiet=True))


def weights(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}


def lines(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run.metrics]


@pytest.mark.parametrize("method", ["lora", "last-n", "full"])
def test_a_run_that_measures_itself_ends_with_the_weights_of_one_that_does_not(
    llama_dir: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    dropout = {"lora": {"dropout": 0.2}} if method == "lora" else {}
    values: dict[str, Any] = {"method": method, "val": "25%", **dropout}
    often = trained(llama_dir, rows, tmp_path / "often", eval_every=1,
                    metrics=("exact_match", "token_f1"), **values)  # fmt: skip
    seldom = trained(llama_dir, rows, tmp_path / "seldom", eval_every=100, anchor="none", **values)
    assert weights(often) == weights(seldom)
    measured = [line for line in often.metrics if "anchor_kl" in line]
    assert len(measured) == len(often.metrics)
    assert {"val_loss", "val_token_f1", "anchor_nll_change"} <= measured[0].keys()
    assert measured[-1]["anchor_kl"] > 0
    evaluation = json.loads((often.path / "evaluation.json").read_text())
    assert evaluation["tuned"]["loss"] == pytest.approx(measured[-1]["val_loss"], rel=1e-4)
    assert json.loads((often.path / "anchor.json").read_text())["kl"] == pytest.approx(
        measured[-1]["anchor_kl"]
    )
    answers = [json.loads(line) for line in (often.path / "answers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in answers] == [line["step"] for line in measured]
    asked = [[each["prompt"] for each in line["answers"]] for line in answers]
    assert len(asked[0]) == 2
    assert asked == asked[:1] * len(asked)
    assert (often.path / "report.html").stat().st_size > 10_000
    assert (often.path / "strength.json").exists() == (method == "lora")


@pytest.mark.parametrize(
    "values", [{"replay": "20%"}, {"max_drift": 0.01}], ids=["replay", "max_drift"]
)
def test_what_holds_forgetting_back_goes_on_after_a_stop_with_the_same_bytes(
    llama_dir: Path, rows: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    values = {**values, "val": "25%", "eval_every": 2}
    whole = trained(llama_dir, rows, tmp_path / "whole", save_every="3", **values)
    stopped = trained(llama_dir, rows, tmp_path / "stopped", save_every="3", keep=99, **values)
    for name in ("manifest.json", "adapter_model.safetensors"):
        (stopped.path / name).unlink()
    again = go_on(stopped.path / "checkpoints/step-000003", {}, talk=Talk(quiet=True))
    assert weights(again) == weights(whole)
    assert lines(again) == lines(whole)
    files = [run.path / "answers.jsonl" for run in (again, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rehearsed_texts_that_are_others_are_not_gone_on_with(
    llama_dir: Path, rows: Path, tmp_path: Path
) -> None:
    run = trained(llama_dir, rows, tmp_path / "run", save_every="3", replay="20%")
    other = trained(llama_dir, rows, tmp_path / "other", replay="20%", seed=1)
    (run.path / "manifest.json").unlink()
    (run.path / REHEARSAL_FILE).write_bytes((other.path / REHEARSAL_FILE).read_bytes())
    with pytest.raises(UsageError, match="texts that are rehearsed are others"):
        go_on(run.path, {}, talk=Talk(quiet=True))


def test_rehearsed_texts_stand_in_the_ledger_as_a_source(
    llama_dir: Path, rows: Path, tmp_path: Path
) -> None:
    run = trained(llama_dir, rows, tmp_path / "run", max_steps=1, replay="20%")
    ledger = json.loads((run.path / "data/ledger.json").read_text())["data"]
    assert "text of the base model" in json.dumps(ledger)


def test_out_of_patience_a_run_ends_with_the_weights_of_its_best_update(
    llama_dir: Path, rows: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"val": "25%", "eval_every": 1, "epochs": 9, "learning_rate": 1.0,
                              "schedule": "constant", "save_every": "1"}  # fmt: skip
    run = trained(llama_dir, rows, tmp_path / "run", patience=3, **values)
    losses = [line["val_loss"] for line in run.metrics]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 3
    assert len(losses) < 45
    short = trained(llama_dir, rows, tmp_path / "short", max_steps=best + 1, **values)
    assert weights(run) == weights(short)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patience": 2}, "patience has no effect without val"),
        ({"metrics": ("exact_match",)}, "metrics has no effect without val"),
        ({"eval_every": 2, "anchor": "none"}, "eval_every has no effect without val"),
        ({"metrics": ("exact",), "val": "25%"}, "exact"),
        ({"track": ("nobody",)}, "nobody"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_read(
    llama_dir: Path, rows: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        trained(llama_dir, rows, tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_fails_costs_its_figure_and_not_the_model(
    llama_dir: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It works on the base's answers, and never again."""
    calls = tmp_path / "calls"
    (tmp_path / "own.py").write_text(
        "def score(answer, expected):\n"
        f"    with open({str(calls)!r}, 'a+') as file:\n"
        "        file.write('x')\n"
        "        return 1 / (file.tell() <= 6)\n"
    )
    config = Config(data=(f"{rows}#18",), model=str(llama_dir), output=str(tmp_path / "run"),
                    val=str(write_rows(tmp_path / "val.jsonl", PAIRS[18:])), eval_every=3,
                    metrics=(f"{tmp_path}/own.py:score",), epochs=2, batch_size=6,
                    device="cpu", workers=1, proof=False)  # fmt: skip
    run = finetune(config, talk=Talk())
    assert run.is_finished
    assert all("val_loss" in line for line in run.metrics if line["step"] % 3 == 0)
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"]
    said = capsys.readouterr().err
    assert "figures of answers are left out: " in said
    assert "val.jsonl:" in said
    assert "ZeroDivisionError" in said


def test_a_metric_of_a_file_is_named_so_that_a_run_finds_it_from_anywhere(
    llama_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def score(answer, expected):\n    return 1\n")
    run = trained(llama_dir, rows, tmp_path / "run", val="25%", metrics=("own.py:score",))
    assert run.config.metrics == (f"{tmp_path}/own.py:score",)
