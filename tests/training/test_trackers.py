"""Trackers get numbers and plain settings, never rows; one that fails costs the run nothing.

TensorBoard is the real one; of the others the module is made up, at their edge."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_log import lines_of, metrics

from duiti.config import Config
from duiti.errors import UsageError
from duiti.run import write_config, write_json
from duiti.training import tracking
from duiti.training.log import RunLog, Talk
from duiti.training.trackers import TRACKERS, Tracked, check_trackers
from duiti.training.tracking import Trackers, numbers_of, sent_settings, start_trackers

SECRET = "my-secret-rows"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-tiny"
    folder.mkdir()
    write_json(folder / "env.json", {"id": "0123456789abcdef"})
    write_config(folder, config(), {})
    return folder


def config(**more: Any) -> Config:
    values = {"data": (f"{SECRET}.jsonl",), "model": "tiny", "val": f"{SECRET}.val.jsonl",
              "output": f"/home/{SECRET}", "map": {SECRET: "prompt"}, "filter": f"{SECRET}.py:f",
              "template": f"{SECRET}.yaml", "learning_rate": 1e-3, "device": "cpu",
              "lora": {"rank": 4, "target_modules": ("q_proj",)}, **more}  # fmt: skip
    return Config(**values)


def run(folder: Path, **more: Any) -> Tracked:
    return Tracked(**{"folder": folder, "id": "0123456789abcdef", "start_step": 0,
                      "settings": sent_settings(config()), **more})  # fmt: skip


# What is sent


def test_settings_are_sent_and_no_path_or_name_of_the_user() -> None:
    sent = sent_settings(config())
    assert SECRET not in json.dumps(sent)
    assert sent["learning_rate"] == 1e-3
    assert sent["lora.rank"] == 4
    assert sent["method"] == "lora"
    assert sent["model"] == "tiny"
    assert sent["device"] == "cpu"
    assert sent["proof"] is True
    assert "template" not in sent


@pytest.mark.parametrize("model", ["/home/me/model", "./model", "~/model", "FOLDER"])
def test_a_model_in_a_folder_is_not_named(model: str, tmp_path: Path) -> None:
    assert "model" not in sent_settings(config(model=str(tmp_path) if model == "FOLDER" else model))
    assert sent_settings(config(model="Qwen/Qwen3-0.6B"))["model"] == "Qwen/Qwen3-0.6B"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_no_setting_in_free_words_is_sent_unless_it_is_one_of_three() -> None:
    """Also none that is added one day."""
    words = {name: "free words" for name, value in Config().model_dump().items()
             if value is None or isinstance(value, str)}  # fmt: skip
    sent = sent_settings(Config().model_copy(update=words))
    assert {key for key, value in sent.items() if value == "free words"} <= {
        "model", "device", "budget",
    }  # fmt: skip


def test_only_finite_numbers_are_sent() -> None:
    values = {**asdict(metrics(3, rows=("a.jsonl:1",), anomaly="odd")), "val_loss": float("nan"),
              "anchor_kl": 0.5, "row_losses": (1.0,), "drift_kl": None}  # fmt: skip
    found = numbers_of(values)
    assert {"step", "rows", "anomaly", "val_loss", "row_losses", "drift_kl"}.isdisjoint(found)
    assert "skipped" not in found
    assert (found["loss"], found["anchor_kl"]) == (1.5, 0.5)


# Names


def test_a_name_that_is_unknown_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='Did you mean "wandb"') as error:
        check_trackers(["tensorboard", "wanbd"])
    assert "trackio" in error.value.fix
    with pytest.raises(UsageError, match="no tracker"):
        check_trackers(["os"])


def test_one_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duiti.training.trackers.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UsageError, match="is not installed") as error:
            check_trackers([name])
        assert error.value.fix == f"pip install 'duiti[{name}]'"


def test_none_is_imported_that_was_not_asked_for(folder: Path) -> None:
    assert start_trackers((), folder, config()) is None
    assert {"wandb", "trackio", "mlflow"}.isdisjoint(sys.modules)


# The real TensorBoard


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulation.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written_and_a_resumed_run_has_every_step_once(
    folder: Path,
) -> None:
    pytest.importorskip("tensorboard")
    for begin, end in ((0, 6), (4, 8)):  # steps 5 and 6 were lost with the first session
        trackers = start_trackers(["tensorboard"], folder, config(), start_step=begin)
        assert trackers is not None
        for step in range(begin + 1, end + 1):
            trackers.log(step, {"step": step, "loss": begin + step / 2, "rows": ["a.jsonl:1"]})
        trackers.close()
        assert trackers.news()[0].startswith("tensorboard: tensorboard --logdir ")
        assert trackers.summary() == []
    found = events(folder)
    assert found.keys() == {"loss"}
    assert found["loss"] == [(s, s / 2) for s in range(1, 5)] + [
        (s, 4 + s / 2) for s in (5, 6, 7, 8)
    ]
    content = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    assert SECRET.encode() not in content
    assert b"learning_rate" in content


# The others, from their edge on


class Recorder:
    """What a made-up module was asked to do."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0
        self.url = "https://example.org/run"

    def init(self, **given: Any) -> Recorder:
        self.begun.append(given)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.num_finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    module = ModuleType(request.param)
    module.init = found.init  # type: ignore[attr-defined]
    module.Settings = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, request.param, module)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return found


def test_wandb_and_trackio_get_the_numbers_under_the_runs_name(
    folder: Path, recorder: Recorder, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["recorder"]
    with RunLog(folder, Talk(quiet=True), total_steps=2,
                trackers=start_trackers([name], folder, config())) as log:  # fmt: skip
        log.step(metrics(1, rows=(f"{SECRET}.jsonl:7",), anomaly="the loss is odd"))
        log.step(metrics(2), {"val_loss": 0.25})
    (begun,) = recorder.begun
    assert begun["name"].startswith("my-tiny")
    assert begun["config"]["learning_rate"] == 1e-3
    assert begun["resume"] == "allow"
    assert [step for step, _ in recorder.logged] == [1, 2]
    assert recorder.logged[1][1]["val_loss"] == 0.25
    assert recorder.num_finished == 1
    assert SECRET not in repr((begun, recorder.logged))
    if name == "wandb":
        assert begun["mode"] == "offline"
        assert (begun["settings"].console, begun["settings"].disable_git) == ("off", True)


def test_wandb_goes_online_where_the_user_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Recorder()
    module = ModuleType("wandb")
    module.init, module.Settings = found.init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert TRACKERS["wandb"]().start(run(folder)) == "https://example.org/run"
    assert found.begun[0]["mode"] == "online"


class Client:
    """MLflow's, with as much of it as is used."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.status: list[str] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, numbers: list[str], filter_string: str) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key, tags in self.runs.items()
                if filter_string == f"tags.duiti_run = '{tags['duiti_run']}'"]  # fmt: skip

    def create_run(self, number: str, run_name: str, tags: dict[str, str]) -> Any:
        self.runs[f"run-{len(self.runs)}"] = tags
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{len(self.runs) - 1}"))

    def update_run(self, run_id: str, status: str) -> None:
        self.status.append(status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert all(SECRET not in str(value) for _, value in params)
        self.metrics += [(key, value, step) for key, value, _, step in metrics]

    def set_terminated(self, run_id: str) -> None:
        self.status.append("FINISHED")


def test_mlflow_goes_on_with_the_run_that_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking")}
    modules["mlflow.entities"].Metric = lambda *given: given  # type: ignore[attr-defined]
    modules["mlflow.entities"].Param = lambda *given: given  # type: ignore[attr-defined]
    modules["mlflow.tracking"].MlflowClient = lambda: client  # type: ignore[attr-defined]
    modules["mlflow.tracking"].get_tracking_uri = lambda: "sqlite:///x"  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    for begin in (0, 2):
        tracker = TRACKERS["mlflow"]()
        assert "sqlite" in tracker.start(run(folder, start_step=begin))
        tracker.log(begin + 1, {"loss": 0.5})
        tracker.finish()
    assert len(client.runs) == 1
    assert client.metrics == [("loss", 0.5, 1), ("loss", 0.5, 3)]
    assert client.status == ["FINISHED", "RUNNING", "FINISHED"]


# Failures


class Failing:
    """Fails where it is told to."""

    def __init__(self, at: str) -> None:
        self.at = at

    def start(self, run: Tracked) -> str:
        if self.at == "start":
            raise ValueError("no key\nsecond line")
        return "somewhere"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.at == "log" and step == 3:
            raise ConnectionError("the server is gone")

    def finish(self) -> None:
        if self.at == "finish":
            raise OSError("too late")


@pytest.mark.parametrize(("at", "missing"), [("start", 9), ("log", 7), ("finish", 0)])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], at: str, missing: int
) -> None:
    trackers = Trackers({"broken": Failing(at), "whole": Failing("never")}, run(folder))
    with RunLog(folder, Talk(plain=True), total_steps=9, trackers=trackers) as log:
        for step in range(1, 10):
            log.step(metrics(step))
    assert len(lines_of(folder)) == 9
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("track")]
    failures = [line for line in said if "broken failed and is left out" in line]
    assert len(failures) == 1
    assert "second line" not in failures[0]
    counted = [line for line in said if "updates were not recorded" in line]
    if missing:
        assert counted == [f"track     broken: {missing} of 9 updates were not recorded;"
                           " metrics.jsonl has them all"]  # fmt: skip
    else:
        assert counted == []


class Stuck(Failing):
    """Never comes back, until the test is over."""

    over = threading.Event()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.over.wait(60)


def test_training_does_not_wait_for_a_tracker_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MAX_CLOSE_S", 0.05)
    monkeypatch.setattr(tracking, "MAX_WAITING", 4)
    trackers = Trackers({"stuck": Stuck("never")}, run(folder))
    for step in range(1, 10):  # would take a minute each
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    news = trackers.news()
    assert any("it is 4 updates behind" in line for line in news)
    assert trackers.summary() == [
        "stuck: 9 of 9 updates were not recorded; metrics.jsonl has them all"
    ]
    Stuck.over.set()
