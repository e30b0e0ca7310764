"""`metrics.jsonl` while somebody works on the run's folder: nothing is lost in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from duiti.errors import DuitiError
from duiti.training.metrics_file import MetricsFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    return tmp_path / "run"


def begun(folder: Path) -> MetricsFile:
    file = MetricsFile(folder / "metrics.jsonl")
    file.add({"step": 1})
    return file


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_file_that_was_deleted_is_put_back_with_every_line(folder: Path) -> None:
    file = begun(folder)
    (folder / "metrics.jsonl").unlink()
    file.add({"step": 2})
    file.close()
    assert steps(folder / "metrics.jsonl") == [1, 2]
    assert file.problem == "it was deleted while the run went on"
    assert file.num_waiting == 0


def test_a_file_that_took_its_place_stays_and_what_is_missing_is_counted(folder: Path) -> None:
    file = begun(folder)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("mine")
    file.add({"step": 2})
    file.close()
    assert (folder / "metrics.jsonl").read_text() == "mine"
    assert file.num_waiting == 2


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_folder_that_is_gone_ends_the_run_and_is_not_made_anew(
    folder: Path, is_moved: bool
) -> None:
    file = begun(folder)
    if is_moved:
        folder.rename(folder.with_name("elsewhere"))
    else:
        shutil.rmtree(folder)
    with pytest.raises(DuitiError, match="run is gone") as caught:
        file.add({"step": 2})
    assert caught.value.exit_code == 1
    file.close()
    assert not folder.exists()


def test_another_folder_in_its_place_is_left_alone(folder: Path) -> None:
    file = begun(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DuitiError, match="run is gone"):
        file.add({"step": 2})
    file.close()
    assert list(folder.iterdir()) == []
