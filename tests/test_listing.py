"""`duiti runs`: all, one, two; and files that were damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duiti.config import Config
from duiti.errors import UsageError
from duiti.findings import end_and_best, own_choices
from duiti.listing import compare, list_as_dicts, show
from duiti.run import Run, write_config, write_json, write_jsonl
from duiti.verbs.runs import runs


def made(name: str, lines: list[dict[str, Any]], **settings: Any) -> Run:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    config = Config(data=("a.jsonl",), model="tiny", output=f"runs/{name}", **settings)
    write_config(folder, config, {"learning_rate": "2e-4 at width 4096"})
    write_json(folder / "env.json", {"id": name})
    write_jsonl(folder / "metrics.jsonl", lines)
    return Run(folder)


LINES = [
    {"step": 1, "loss": 3.0, "num_tokens": 10, "tokens_per_s": 5.0},
    {"step": 2, "loss": 2.0, "val_loss": 1.5, "val_exact_match": 0.5, "num_tokens": 10},
    {"step": 3, "loss": 2.5, "val_loss": 1.75, "val_exact_match": 0.25, "num_tokens": 10},
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_has_loss_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    run = made("a", LINES)
    write_json(run.path / "verdict.json", {"sentence": "It learned."})
    (found,) = list_as_dicts()
    assert found == {"path": "runs/a", "status": "unfinished", "model": "tiny", "method": "lora",
                     "steps": 3, "loss": 2.5, "val_loss": 1.75, "best_val_loss": 1.5,
                     "verdict": "It learned."}  # fmt: skip
    runs()
    assert "It learned." in capsys.readouterr().out


def test_the_best_of_a_loss_is_the_lowest_and_of_a_score_the_highest() -> None:
    found = end_and_best(LINES)
    assert (found["val_loss"].end, found["val_loss"].best, found["val_loss"].best_step) == (
        1.75, 1.5, 2,
    )  # fmt: skip
    assert (found["val_exact_match"].best, found["val_exact_match"].best_step) == (0.5, 2)
    assert "tokens_per_s" not in found


def test_one_run_shows_what_was_chosen_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    run = made("a", LINES, learning_rate=1e-3, lora={"rank": 4})
    keys = {choice.key: choice for choice in own_choices(run, run.config)}
    assert keys["learning_rate"].reason == "2e-4 at width 4096"
    assert keys["lora.rank"].value == 4
    assert "epochs" not in keys
    (run.path / "report.html").touch()
    runs("a")
    out = capsys.readouterr().out
    assert "2e-4 at width 4096" in out
    assert "report: runs/a/report.html" in out
    runs("runs/a", json_=True)
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["lora.rank"] == {"value": 4, "reason": ""}
    assert found["figures"]["val_loss"] == {"end": 1.75, "best": 1.5, "best_step": 2}
    assert found["effort"]["tokens"] == 30


def test_two_runs_show_what_differs_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = made("a", LINES), made("b", LINES[:1], epochs=5, method="full")
    found = compare(first, second)
    assert found["settings"]["epochs"] == [2, 5]
    assert found["settings"]["lora.rank"] == [16, None]
    assert {"output", "seed", "data"}.isdisjoint(found["settings"])
    assert found["numbers"]["val_loss at best"] == [1.5, None]
    assert found["numbers"]["loss at the end"] == [2.5, 3.0]
    runs("a", "b")
    out = capsys.readouterr().out
    assert "settings that differ" in out
    assert "+0.5000" in out
    with pytest.raises(UsageError, match="two can be compared"):
        runs("a", "b", "c")


DAMAGE = [b"7\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"\xff\xfe\n", b'{"step": 4, "lo',
          b"[" * 100_000 + b"\n", b'{"step": 4, "loss": "high", "val_loss": true}\n',
          b'{"step": 4, "loss": NaN, "val_loss": 1e999}\n']  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_metrics_are_left_out_and_counted(
    damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("a", LINES)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    is_line = damage.startswith(b'{"step": 4, "loss"')
    assert show(run)["damaged_metrics_lines"] == (0 if is_line else 1)
    assert list_as_dicts()[0]["loss"] == 2.5
    for names in ((), ("a",), ("a", "a")):
        runs(*names)
    assert ("1 damaged line" in capsys.readouterr().out) is not is_line


def test_nothing_in_a_file_drives_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run = made("a", [*LINES, {"step": 4, "val_\x1b[2J[red]x": 1.0}])
    write_json(run.path / "verdict.json", {"sentence": "\x1b]0;title\x07[bold]learned"})
    for names in ((), ("a",), ("a", "a")):
        runs(*names)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]learned" in out


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_damaged_file_beside_them_is_named_and_the_rest_is_shown(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = made("a", LINES), made("b", LINES)
    for name in ("verdict.json", "evaluation.json"):
        (run.path / name).write_text(text, encoding="utf-8")
    assert [found["status"] for found in list_as_dicts()] == ["unfinished"] * 2
    found = show(run)
    assert found["damaged_files"] == ["verdict.json", "evaluation.json"]
    assert found["figures"]["loss"]["end"] == 2.5
    assert compare(run, other)["verdicts"] == [None, None]
    runs("a")
    assert "damaged, and left out: verdict.json, evaluation.json" in capsys.readouterr().out
