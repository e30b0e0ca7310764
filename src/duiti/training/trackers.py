"""Adapters to experiment trackers: TensorBoard, Weights & Biases, Trackio, MLflow.

    check_trackers(["wandb"])                       # before anything is read
    tracker = TRACKERS["wandb"]()
    tracker.start(run); tracker.log(12, {"loss": 1.5}); tracker.finish()

Each is imported when it is started, and only then. Each keeps to this machine unless the tracker's
own variables in the environment say otherwise. `tracking.py` runs them beside training.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from duiti.errors import UsageError, did_you_mean

PROJECT = "duiti"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What a tracker is told about a run."""

    folder: Path
    id: str
    """Of the run: a tracker that can, goes on where the run goes on."""
    settings: Mapping[str, bool | int | float | str]
    start_step: int
    """The update behind which the run begins or goes on."""

    @property
    def name(self) -> str:
        return self.folder.absolute().name


class Tracker(Protocol):
    """One of them."""

    def start(self, run: Tracked) -> str:
        """Begin, and say where the numbers go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Those of one update."""

    def finish(self) -> None:
        """Nothing comes any more."""


class TensorBoard:
    """An event file in the run's folder. Nothing leaves the machine."""

    def start(self, run: Tracked) -> str:
        from torch.utils.tensorboard import SummaryWriter

        place = run.folder / "tensorboard"
        # What an earlier session wrote behind this step never happened.
        self._writer = SummaryWriter(place, purge_step=run.start_step + 1)
        rows = "".join(f"| {key} | {value} |\n" for key, value in run.settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
        return f"tensorboard --logdir {run.folder.parent}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: offline, unless WANDB_MODE says otherwise. It is kept from looking around:
    output, code, git, the command line and the machine are not recorded."""

    def start(self, run: Tracked) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", save_code=False, disable_code=True, disable_git=True,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
            x_save_requirements=False, login_timeout=30,
        )  # fmt: skip
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.id,
            resume="allow", config=dict(run.settings), dir=str(run.folder),
            mode=mode, settings=quiet,
        )  # fmt: skip
        if mode == "offline":
            return f"offline; to upload it: wandb sync {run.folder}/wandb/offline-*"
        return self._run.url or mode

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio: its own database on this machine, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL
    names another place."""

    def start(self, run: Tracked) -> str:
        import trackio

        with redirect_stdout(sys.stderr):  # it greets, and stdout is for results
            self._run = trackio.init(
                project=PROJECT, name=f"{run.name}-{run.id[:8]}", resume="allow",
                config=dict(run.settings), embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        return f"trackio show --project {PROJECT}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


class MLflow:
    """MLflow: its own database on this machine, unless MLFLOW_TRACKING_URI names a server. Its
    reports about how it is used are switched off."""

    def start(self, run: Tracked) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # The default is minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient, get_tracking_uri

        self._metric = Metric
        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = client.search_runs([number], filter_string=f"tags.duiti_run = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            made = client.create_run(number, run_name=run.name, tags={"duiti_run": run.id})
            self._id = made.info.run_id
            params = [Param(key, str(value)) for key, value in run.settings.items()]
            client.log_batch(self._id, params=params)
        return f"{get_tracking_uri()}, experiment {name}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now_ms = round(time.time() * 1000)
        metrics = [self._metric(key, value, now_ms, step) for key, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""By the name that `--track` gives, which is that of the module and of the extra, too."""


def check_trackers(names: Sequence[str]) -> None:
    """Whether they are known and installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            fix = f"one of {', '.join(TRACKERS)}"
            raise UsageError(f'track: there is no tracker "{name}".{hint}', fix=fix)
        if find_spec(name) is None:
            raise UsageError(f"track: {name} is not installed", fix=f"pip install 'duiti[{name}]'")
