"""The verbs from Python: rows as dicts, and errors that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from duiti import api
from duiti.errors import DataError, UsageError
from duiti.infer.model import load
from duiti.run import Run

ROWS = [{"prompt": f"Who is number {n}?", "response": f"Nobody knows {n * 7}."} for n in range(8)]
OF_TOKENS = ("loss", "perplexity", "token_accuracy")
OF_ANSWERS = ("stop_rate", "length_ratio", "empty", "other_language")


@pytest.fixture(scope="module")
def run(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.train(
        ROWS, model=str(llama_dir), output=str(tmp_path_factory.mktemp("runs") / "run"),
        lora={"rank": 2}, learning_rate=1e-2, batch_size=3, epochs=1, device="cpu", proof=False,
        quiet=True,
    )  # fmt: skip


def test_every_public_name_is_what_it_says_whatever_was_imported_before() -> None:
    """A function that has the name of a subpackage is hidden by it as soon as that is imported."""
    program = """
import types, duiti
first = {name: getattr(duiti, name) for name in duiti.__all__ for _ in range(2)}
import duiti.sft, duiti.exporting.merge, duiti.cli
again = {name: getattr(duiti, name) for name in duiti.__all__}
print([name for name in duiti.__all__
       if isinstance(again[name], types.ModuleType) or first[name] is not again[name]])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_rows_from_python_and_from_a_file_train_the_same(
    run: Run, llama_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for number, data in enumerate((path, str(path), [path], (str(path),))):
        again = api.train(
            data, model=str(llama_dir), output=str(tmp_path / str(number)), lora={"rank": 2},
            learning_rate=1e-2, batch_size=3, epochs=1, device="cpu", proof=False,
        quiet=True,
        )  # fmt: skip
        name = "adapter_model.safetensors"
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_training_says_nothing_when_it_is_to_be_quiet(
    llama_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {"model": str(llama_dir), "device": "cpu", "epochs": 1, "proof": False}
    api.train(ROWS, output=str(tmp_path / "quiet"), quiet=True, **more)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""
    api.train(ROWS, output=str(tmp_path / "loud"), **more)
    said = capfd.readouterr()
    assert said.out == ""
    assert "8 kept" in said.err


def test_check_shows_what_training_would_use_and_writes_nothing(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = api.check(ROWS, model=str(llama_dir))
    assert report.refusal is None
    assert len(report.examples) == 8
    assert report.mask(3) == "Human: Who is number 3?⏎Assistant:⟦ Nobody knows 21.<|endoftext|>⟧"
    values = report.as_dict()
    assert values["rows"] == values["kept"] == 8
    assert values["template"] == "human-assistant"
    assert values["longest"] == max(map(len, report.examples))
    json.dumps(values)
    report.dump(tmp_path / "dump.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert [line["input_ids"] for line in lines] == [e.input_ids.tolist() for e in report.examples]
    assert [p.name for p in tmp_path.iterdir()] == ["dump.jsonl"]


def test_check_reports_what_training_would_refuse(llama_dir: Path) -> None:
    rows: list[dict[str, Any]] = [*ROWS, {"prompt": "x"}]
    report = api.check(rows, model=str(llama_dir))
    assert isinstance(report.refusal, DataError)
    assert "<rows>:9" in report.refusal.what
    with pytest.raises(DataError, match="<rows>:9"):
        api.train(rows, model=str(llama_dir), quiet=True)


def test_evaluate_takes_a_run_its_path_a_model_and_a_base(run: Run, llama_dir: Path) -> None:
    found = api.evaluate(run, ROWS, device="cpu")
    assert found["n"] == 8
    assert found["base"].keys() == found["tuned"].keys() == {*OF_TOKENS, "exact_match", *OF_ANSWERS}
    assert found["tuned"]["loss"] < found["base"]["loss"]
    assert api.evaluate(str(run.path), ROWS, device="cpu") == found
    assert api.evaluate(run.path, ROWS, device="cpu") == found
    model = load(run, device="cpu")
    assert api.evaluate(model, ROWS) == found
    assert api.evaluate(model, ROWS) == found  # it leaves the model as it was
    alone = api.evaluate(str(llama_dir), ROWS, device="cpu")
    assert alone["base"] == found["base"]
    assert alone["tuned"] is None


def test_evaluate_reads_files_maps_fields_and_can_do_without_answers(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "test.jsonl"
    rows = [{"q": row["prompt"], "a": row["response"]} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapped = api.evaluate(run, path, map={"q": "prompt", "a": "response"}, metrics=(), device="cpu")
    assert mapped["tuned"].keys() == set(OF_TOKENS)
    assert mapped["tuned"]["loss"] == api.evaluate(run, ROWS, device="cpu")["tuned"]["loss"]


def test_evaluate_inside_base_measures_the_base_and_comes_back(run: Run) -> None:
    model = load(run, device="cpu")
    asked = [{"role": "user", "content": "Who is number 3?"}]
    with model.base():
        before = model.chat(asked, max_new_tokens=12)
        api.evaluate(model, ROWS[:2], metrics=())
        assert model.chat(asked, max_new_tokens=12) == before


def test_evaluate_refuses_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exact_match"):
        api.evaluate(run, ROWS, metrics=("exact_mach",), device="cpu")
    with pytest.raises(DataError):
        api.evaluate(run, [{"prompt": "x"}], device="cpu")
    with pytest.raises(UsageError):
        api.evaluate(run, tmp_path / "nothing.jsonl", device="cpu")
    with pytest.raises(UsageError):
        api.evaluate(tmp_path / "no-run", ROWS, device="cpu")
    rows = [*ROWS, {"prompt": "x"}]
    assert api.evaluate(run, rows, metrics=(), on_bad_row="drop", device="cpu")["n"] == 8


def test_rows_that_are_too_long_to_measure_are_refused_with_a_fix_that_works(run: Run) -> None:
    rows = [*ROWS, {"prompt": "x", "response": "long " * 600}]
    with pytest.raises(DataError, match="1 of 9 rows are longer") as caught:
        api.evaluate(run, rows, metrics=(), device="cpu")
    assert "--on-bad-row drop" in caught.value.fix
    found = api.evaluate(run, rows, metrics=(), on_bad_row="drop", device="cpu")
    assert found.pop("left_out") == 1
    others = api.evaluate(run, ROWS, metrics=(), device="cpu")
    assert others.pop("left_out") == 0
    assert found == others


def test_export_writes_a_plain_model(run: Run, tmp_path: Path) -> None:
    report = api.export(str(run.path), "merged", tmp_path / "merged", proof=False)
    ids = torch.arange(4, 24)[None]
    plain = AutoModelForCausalLM.from_pretrained(report.path).eval()
    with torch.no_grad():
        expected = load(run, device="cpu").hf(ids).logits
        assert (plain(ids).logits - expected).abs().max() <= 1e-4
    low = api.export(run, "merged", str(tmp_path / "low"), dtype="bfloat16", proof=False)
    assert low.dtype == torch.bfloat16


def test_export_refuses_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gguf"):
        api.export(run, "gguf", tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        api.export(tmp_path / "no-run", "merged", tmp_path / "x")
    with pytest.raises(UsageError, match="not empty"):
        api.export(run, "merged", run.path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (ROWS, {"learning_rat": 1e-3}, "learning_rate"),
        (ROWS, {"lr": 1e-3}, "learning_rate"),
        (ROWS, {"epochs": 0}, "epochs"),
        (ROWS, {"method": "qlora"}, "method"),
        (ROWS, {"lora": {"rnk": 4}}, "lora.rank"),
        (ROWS, {"method": "full", "lora": {"rank": 4}}, "no effect"),
        (ROWS, {"eval_every": 3, "anchor": "none"}, "no effect"),
        (ROWS, {"template": "alpacca"}, "alpaca"),
        (ROWS, {"max_length": 100_000}, "512 positions"),
        (ROWS, {"device": "cuda:63"}, "device"),
        (ROWS, {"val": "0%"}, "val"),
        (ROWS, {"lora": {"rank": 1000}}, "lora.rank"),
        (ROWS, {"method": "last-n", "last_n": {"layers": 9}}, "last_n.layers"),
        ([], {}, "no data"),
        ("nowhere.jsonl", {}, "nowhere.jsonl"),
        ([1, 2], {}, "rows as dicts"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_was_meant(
    llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: Any,
    settings: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        api.train(data, model=str(llama_dir), quiet=True, **{"device": "cpu", **settings})
    assert said in str(caught.value)
    assert not list(tmp_path.glob("runs/*/*.safetensors"))


def test_a_model_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        api.train(ROWS, model="", quiet=True)
    with pytest.raises(UsageError):
        api.train(ROWS, model=str(tmp_path), quiet=True)
