"""A run's folder: never overwritten, found by path or name, its settings read back unchanged."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from duiti.config import Config, LastNConfig, LoraConfig
from duiti.errors import UsageError
from duiti.run import (
    Run,
    is_run,
    list_runs,
    new_run_folder,
    newest_run,
    open_run,
    write_config,
    write_json,
    write_jsonl,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _make(
    name: str, *, seconds: int = 0, is_finished: bool = True, has_weights: bool = True
) -> Path:
    folder = new_run_folder(f"runs/{name}", "", "")
    write_config(folder, Config(model="tiny"), {})
    write_json(folder / "env.json", {})
    os.utime(folder / "env.json", (seconds, seconds))
    if has_weights:
        (folder / "adapter_model.safetensors").touch()
    if is_finished:
        (folder / "manifest.json").touch()
    return folder


def test_a_run_is_named_after_data_and_model_and_numbered_when_taken() -> None:
    for expected in ("my-tiny", "my-tiny-2", "my-tiny-3"):
        folder = new_run_folder(None, "my", "tiny")
        assert folder == Path("runs") / expected
        (folder / "config.yaml").touch()


@pytest.mark.parametrize(
    ("data", "model"),
    [("../../etc", "x"), ("a/b", "c\\d"), ("水 data", "m"), ("", ".."), ("a\nb", "m")],
)
def test_no_name_leads_out_of_the_runs_folder(data: str, model: str) -> None:
    folder = new_run_folder(None, data, model)
    assert folder.resolve().is_relative_to(Path("runs").resolve())
    assert folder.resolve().parent == Path("runs").resolve()


def test_a_folder_that_holds_something_is_never_taken(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists and is not empty"):
        new_run_folder(str(full), "my", "tiny")
    assert (full / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    assert new_run_folder("empty", "my", "tiny") == Path("empty")


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to file"):
        new_run_folder("file", "my", "tiny")
    with pytest.raises(UsageError, match="cannot write to"):
        new_run_folder("file/inner", "my", "tiny")


def test_runs_are_listed_newest_first_and_found_by_path_or_name(tmp_path: Path) -> None:
    for seconds, name in enumerate(("c", "a", "b"), start=1):
        _make(name, seconds=seconds * 1000)
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / "file").touch()
    assert [run.name for run in list_runs()] == ["b", "a", "c"]
    assert open_run("a").path == Path("runs/a")
    assert open_run("runs/a").path == Path("runs/a")
    assert open_run(tmp_path / "runs" / "a").name == "a"
    assert newest_run().name == "b"


def test_an_unfinished_run_is_never_the_newest_and_is_refused_by_name() -> None:
    _make("old", seconds=1)
    _make("stopped", seconds=2000, is_finished=False, has_weights=False)
    assert newest_run().name == "old"
    with pytest.raises(UsageError, match="no trained weights: it did not finish") as caught:
        open_run("stopped")
    assert caught.value.fix == "duiti train --resume runs/stopped"


@pytest.mark.parametrize(
    ("is_finished", "has_weights"), [(False, True), (True, False), (False, False)]
)
def test_a_run_is_finished_by_weights_and_the_manifest_that_is_written_after_them(
    is_finished: bool, has_weights: bool
) -> None:
    _make("whole", seconds=1)
    _make("cut off", seconds=2000, is_finished=is_finished, has_weights=has_weights)
    assert open_run("whole").is_finished
    assert not Run(Path("runs/cut off")).is_finished
    assert newest_run().name == "whole"
    found = "weights, and no manifest.json" if has_weights else "no trained weights"
    with pytest.raises(UsageError, match=found) as caught:
        open_run("cut off")
    assert caught.value.fix == "duiti train --resume 'runs/cut off'"  # as a shell takes it


def test_a_name_that_is_no_run_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        open_run("x")
    assert caught.value.fix == "runs here: none yet"
    _make("a")
    with pytest.raises(UsageError) as caught:
        open_run("x")
    assert caught.value.fix == "runs here: a"


def test_without_runs_the_newest_is_an_explained_error() -> None:
    assert list_runs() == []
    with pytest.raises(UsageError, match="no run yet"):
        newest_run()


def test_metrics_are_read_line_by_line_and_missing_ones_are_none(tmp_path: Path) -> None:
    folder = _make("a")
    assert Run(folder).metrics == []
    lines = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    write_jsonl(folder / "metrics.jsonl", lines)
    assert Run(folder).metrics == lines
    assert is_run(folder)
    assert not is_run(tmp_path)


NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
SETTINGS = st.fixed_dictionaries(
    {
        "data": st.lists(NAME, max_size=2).map(tuple),
        "model": NAME,
        "epochs": st.integers(1, 9),
        "learning_rate": st.floats(1e-12, 10) | st.just("auto"),
        "max_length": st.integers(2, 9000) | st.just("auto"),
        "warmup_steps": st.integers(0, 9),
        "seed": st.integers(0, 2**63 - 1),
        "map": st.dictionaries(NAME, NAME, max_size=2),
        "template": NAME,
    },
    optional={
        "output": NAME,
        "max_steps": st.integers(1, 9),
        "dtype": st.just("float32"),
        "filter": NAME,
        "train_on": st.sampled_from(["assistant", "last", "all"]),
        "special_tokens": st.sampled_from(["reject", "escape", "allow"]),
        "date": st.dates().map(str),
        "over_length": st.sampled_from(["drop", "error", "truncate"]),
        "max_lost": st.floats(0, 1),
        "strict": st.booleans(),
        "cache": st.booleans(),
        "workers": st.integers(1, 256) | st.just("auto"),
    },
)
METHODS = st.one_of(
    st.builds(
        lambda rank, alpha, targets: {
            "lora": LoraConfig(rank=rank, alpha=alpha, target_modules=targets)
        },
        st.integers(1, 64),
        st.floats(1e-6, 1e6),
        st.sampled_from(["all-linear", ("q_proj",), ("q_proj", "v_proj")]),
    ),
    st.builds(
        lambda layers: {"method": "last-n", "last_n": LastNConfig(layers=layers)},
        st.integers(1, 4),
    ),
    st.just({"method": "full"}),
    st.just({"val": "5%", "eval_every": 3}),
)


@example(settings={"warmup_steps": 1, "template": "\x85"}, method={}, reason="because")
@given(
    settings=SETTINGS,
    method=METHODS,
    reason=st.sampled_from(["3 % of 90 updates", "no CUDA device here"]),
)
def test_settings_are_read_back_as_they_were(
    tmp_path: Path, settings: dict[str, object], method: dict[str, object], reason: str
) -> None:
    config = Config.model_validate({**settings, **method})
    write_config(tmp_path, config, {"warmup_steps": reason})
    assert Run(tmp_path).config == config
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert f"# {reason}\nwarmup_steps: {config.warmup_steps}" in text
