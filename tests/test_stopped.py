"""Going on with a stopped run: the bytes of an undisturbed one, and nothing else under its name."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import write_rows

from duiti import sft
from duiti.config import Config
from duiti.errors import DuitiError, UsageError
from duiti.eval.row_losses import ROW_LOSSES_FILE, read_row_losses
from duiti.model.sft_model import SFTModel
from duiti.run import Run
from duiti.sft import finetune, go_on
from duiti.stopped import find_stopped, locate
from duiti.training.keeper import CHECKPOINTS
from duiti.training.log import Talk
from duiti.training.signals import Interrupted
from duiti.training.step import TIMED
from duiti.types import Batch

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(13)]
QUIET = Talk(quiet=True)
SETTINGS: dict[str, Any] = {
    "device": "cpu", "epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "workers": 1,
    "lora": {"rank": 4, "dropout": 0.2}, "val": "20%", "eval_every": 2, "proof": False,
    "save_every": "1", "keep": 99,
}  # fmt: skip
"""Three updates an epoch, the third one short; a checkpoint behind each."""


@pytest.fixture(scope="module")
def whole(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never disturbed."""
    place = tmp_path_factory.mktemp("whole")
    data = write_rows(place / "rows.jsonl", PAIRS)
    config = Config(data=(str(data),), model=str(llama_dir), output=str(place / "run"), **SETTINGS)
    return finetune(config, talk=QUIET)


Cut = Callable[[int], Path]


@pytest.fixture
def cut(whole: Run, tmp_path: Path) -> Cut:
    """The same run as it was when it was killed behind update `step`."""

    def make(step: int) -> Path:
        folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
        for path in folder.iterdir():
            if path.is_file() and path.name not in ("config.yaml", "env.json", "metrics.jsonl"):
                path.unlink()
        for path in (folder / CHECKPOINTS).iterdir():
            if int(path.name[-6:]) > step:
                shutil.rmtree(path)
        return folder

    return make


def left(run: Run) -> tuple[bytes, list[dict[str, Any]], bytes]:
    metrics = [{k: v for k, v in line.items() if k not in TIMED} for line in run.metrics]
    weights = (run.path / "adapter_model.safetensors").read_bytes()
    return weights, metrics, (run.path / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_it_ends_with_the_bytes_of_a_run_that_was_not_stopped(
    whole: Run, cut: Cut, step: int
) -> None:
    assert left(go_on(cut(step), {}, talk=QUIET)) == left(whole)


def test_a_checkpoint_that_is_named_is_the_one_it_goes_on_from(whole: Run, cut: Cut) -> None:
    folder = cut(4)
    assert find_stopped(locate(folder)).state.progress.step == 4
    named = folder / CHECKPOINTS / "step-000002"
    assert find_stopped(locate(named)).state.progress.step == 2
    (folder / "proof.json.tmp-999999999").touch()  # of a process that is gone
    assert left(go_on(named, {}, talk=QUIET)) == left(whole)
    names = {path.name for path in (folder / CHECKPOINTS).iterdir()}
    assert names == {
        *(f"step-00000{step}" for step in range(1, 7)),
        "step-000003.given-up", "step-000004.given-up",
    }  # fmt: skip
    assert not list(folder.glob("*.tmp-*"))


def test_another_micro_batch_size_sees_the_same_rows_in_the_same_updates(
    whole: Run, cut: Cut
) -> None:
    run = go_on(cut(3), {"micro_batch_tokens": 20}, talk=QUIET)
    for found, expected in zip(run.metrics, whole.metrics, strict=True):
        assert found["num_tokens"] == expected["num_tokens"]
    # Dropout draws for the layout, so losses differ with it, but not by much.
    assert run.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], rel=0.2)
    assert run.metrics[3]["micro_batch_tokens"] == 20


def test_a_finished_run_is_left_as_it_is(whole: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    before = {path: path.stat() for path in folder.rglob("*")}
    assert go_on(folder, {}, talk=QUIET) == Run(folder)
    after = {path: path.stat() for path in folder.rglob("*") if path.name != "run.lock"}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in after.items() if p.is_file()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in before.items() if p.is_file()
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 1e-3), ("batch_size", 2), ("max_length", 50), ("seed", 1), ("epochs", 3),
     ("schedule", "linear"), ("template", "chatml"), ("dtype", "bfloat16"), ("budget", "10m"),
     ("lora", {"alpha": 8.0}), ("val", "30%"), ("train_on", "all")],
)  # fmt: skip
def test_what_decides_the_training_cannot_change_unsaid(cut: Cut, key: str, value: Any) -> None:
    folder = cut(2)
    with pytest.raises(UsageError) as refused:
        go_on(folder, {key: value}, talk=QUIET)
    name = "lora.alpha" if key == "lora" else key
    assert f"{name}: " in refused.value.what
    assert f"--allow-change {name}" in refused.value.fix
    assert not Run(folder).is_finished


def test_what_is_allowed_to_change_does_and_is_recorded(whole: Run, cut: Cut) -> None:
    folder = cut(2)
    run = go_on(folder, {"learning_rate": 1e-3}, allowed=("learning_rate",), talk=QUIET)
    assert run.config.learning_rate == 1e-3
    assert "0.01 → 0.001" in (folder / "config.yaml").read_text()
    assert run.metrics[1]["lr"] == whole.metrics[1]["lr"]
    assert run.metrics[2]["lr"] < whole.metrics[2]["lr"] / 5


def test_a_key_that_does_not_exist_cannot_be_allowed(cut: Cut) -> None:
    with pytest.raises(UsageError, match=r"no such key: learning_rat\."):
        go_on(cut(2), {}, allowed=("learning_rat",), talk=QUIET)


def test_other_rows_under_the_same_name_are_refused(
    whole: Run, llama_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)
    config = Config(data=(str(data),), model=str(llama_dir), output=str(tmp_path / "run"),
                    **SETTINGS)  # fmt: skip
    with pytest.raises(Interrupted):
        finetune(config, talk=Stopper())
    write_rows(data, [*PAIRS[:-1], {"prompt": "What is 12?", "response": "It is 145."}])
    with pytest.raises(UsageError, match=r"data: .*rows\.jsonl"):
        go_on(tmp_path / "run", {}, talk=QUIET)
    write_rows(data, PAIRS)
    moved = data.rename(tmp_path / "moved.jsonl")
    run = go_on(tmp_path / "run", {"data": (str(moved),)}, talk=QUIET)
    assert left(run) == left(whole)


class Stopper(Talk):
    """Asks the process to stop while the first update is told of."""

    def __init__(self) -> None:
        super().__init__(plain=True, quiet=True)

    def say(self, label: str, text: str) -> None:
        if label == "step":
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_makes_a_checkpoint_and_says_how_to_go_on(
    whole: Run, llama_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)
    config = Config(data=(str(data),), model=str(llama_dir), output=str(tmp_path / "run"),
                    **SETTINGS | {"save_every": "never"})  # fmt: skip
    with pytest.raises(Interrupted) as stopped:
        finetune(config, talk=Stopper())
    assert stopped.value.exit_code == 130
    assert f"duiti train --resume {tmp_path / 'run'}" in stopped.value.fix
    assert [path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()] == ["step-000001"]
    assert left(go_on(tmp_path / "run", {}, talk=QUIET)) == left(whole)


def test_a_cool_down_ends_the_run_annealed(cut: Cut) -> None:
    run = go_on(cut(2), {}, cool_down=2, talk=QUIET)
    rates = [line["lr"] for line in run.metrics]
    assert len(rates) == 4
    assert rates[2] == pytest.approx(rates[1] * 2 / 3)
    assert rates[3] == pytest.approx(rates[1] / 3)


def test_damaged_checkpoints_are_passed_over_and_named(cut: Cut, whole: Run) -> None:
    folder = cut(4)
    newest = folder / CHECKPOINTS / "step-000004" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    (folder / CHECKPOINTS / "step-000003" / "state.json").unlink()
    (folder / CHECKPOINTS / "step-000999").mkdir()
    found = find_stopped(locate(folder))
    assert found.state.progress.step == 2
    assert [each.path.name for each in found.skipped] == [
        "step-000999", "step-000004", "step-000003",
    ]  # fmt: skip
    assert left(go_on(folder, {}, talk=QUIET)) == left(whole)


def test_where_no_checkpoint_is_whole_it_stops_with_the_list(cut: Cut) -> None:
    folder = cut(2)
    for path in (folder / CHECKPOINTS).iterdir():
        (path / "trained.safetensors").write_bytes(b"")
    with pytest.raises(DuitiError) as failed:
        go_on(folder, {}, talk=QUIET)
    assert "no checkpoint to go on from" in failed.value.what
    assert "step-000002: trained.safetensors" in failed.value.why
    assert "step-000001: trained.safetensors" in failed.value.why


def test_the_settings_of_a_checkpoint_are_those_that_count(cut: Cut, whole: Run) -> None:
    """An edit of `config.yaml` behind its back changes nothing."""
    folder = cut(3)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.5"))
    assert left(go_on(folder, {}, talk=QUIET)) == left(whole)


def test_the_record_says_where_it_went_on(cut: Cut) -> None:
    run = go_on(cut(3), {}, talk=QUIET)
    (resumed,) = json.loads((run.path / "env.json").read_text())["resumed"]
    assert resumed["from"] == "step-000003"


def test_a_run_whose_every_update_is_left_out_has_trained_nothing(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SFTModel, "forward", _not_a_number)
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)
    config = Config(data=(str(data),), model=str(llama_dir), output=str(tmp_path / "run"),
                    **SETTINGS | {"val": None, "eval_every": "auto",
                                  "skip_bad_steps": 99})  # fmt: skip
    with pytest.raises(DuitiError, match="every update was left out"):
        finetune(config, talk=QUIET)
    assert not Run(tmp_path / "run").is_finished


def test_a_device_that_fails_in_an_update_ends_the_run_and_saves_nothing_of_it(
    whole: Run, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)
    config = Config(data=(str(data),), model=str(llama_dir), output=str(tmp_path / "run"),
                    **SETTINGS)  # fmt: skip
    run, forward = Run(tmp_path / "run"), SFTModel.forward

    def lost(sft: SFTModel, batch: Batch, **rest: Any) -> tuple[torch.Tensor, int | float]:
        if sft.training and len(run.metrics) == 2:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return forward(sft, batch, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(SFTModel, "forward", lost)
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            finetune(config, talk=QUIET)
    assert not run.is_finished
    assert not list(run.path.glob("*.safetensors"))
    saved = {path.name for path in (run.path / "checkpoints").iterdir()}
    assert saved == {"step-000001", "step-000002"}
    assert left(go_on(run.path, {}, talk=QUIET)) == left(whole)


def _not_a_number(
    sft: SFTModel, batch: Batch, *, each: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, int | float]:
    total = torch.stack([p.sum() for p in sft.parameters() if p.requires_grad]).sum()
    if each is not None:
        each.append(torch.full((batch.num_supervised,), float("nan")))
    return total * float("nan"), batch.weight_sum


def test_a_whole_checkpoint_of_another_run_is_named_and_passed_over(
    whole: Run, cut: Cut, llama_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)
    other = Config(data=(str(data),), model=str(llama_dir), output=str(tmp_path / "other"),
                   **SETTINGS)  # fmt: skip
    finetune(other, talk=QUIET)  # the very same settings, even
    folder = cut(3)
    newest = folder / CHECKPOINTS / "step-000006"
    shutil.copytree(tmp_path / "other" / CHECKPOINTS / "step-000006", newest)
    found = find_stopped(locate(folder))
    assert found.state.progress.step == 3
    assert [(each.path, each.problem) for each in found.skipped] == [
        (newest, "it belongs to another run")
    ]
    assert left(go_on(folder, {}, talk=QUIET)) == left(whole)


def test_a_setting_that_makes_other_rows_is_allowed_with_its_rows(cut: Cut) -> None:
    run = go_on(cut(2), {"train_on": "all"}, allowed=("train_on",), talk=QUIET)
    assert run.is_finished
    assert run.metrics[-1]["supervised_tokens"] > run.metrics[1]["supervised_tokens"]


def test_a_run_whose_proof_fails_is_not_finished(
    cut: Cut, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DuitiError("the saved adapter changes nothing")

    monkeypatch.setattr(sft, "prove", refuse)
    folder = cut(5)
    with pytest.raises(DuitiError, match="changes nothing"):
        go_on(folder, {"proof": True}, talk=QUIET)
    assert (folder / "adapter_model.safetensors").is_file()
    assert not Run(folder).is_finished
    assert left(go_on(folder, {"proof": False}, talk=QUIET)) == left(whole)
    assert Run(folder).is_finished


def test_the_same_files_may_be_named_by_shorter_names(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", PAIRS)
    write_rows(tmp_path / "val.jsonl", PAIRS[:2])
    named = {"data": ("rows.jsonl",), "val": "val.jsonl"}
    config = Config(model=str(llama_dir), output="run", **SETTINGS | named)
    with pytest.raises(Interrupted):
        finetune(config, talk=Stopper())
    assert go_on("run", named, talk=QUIET).is_finished


def test_losses_of_rows_stay_where_a_change_that_was_allowed_is_not_made(
    whole: Run, cut: Cut
) -> None:
    expected = read_row_losses(whole.path / ROW_LOSSES_FILE)
    run = go_on(cut(3), {}, allowed=("data", "seed"), talk=QUIET)
    assert np.array_equal(read_row_losses(run.path / ROW_LOSSES_FILE), expected)


def test_losses_of_rows_are_unknown_where_the_order_was_another(whole: Run, cut: Cut) -> None:
    num_done = len(read_row_losses(whole.path / ROW_LOSSES_FILE)) // 2  # the first of two epochs
    run = go_on(cut(3), {"seed": 9}, allowed=("seed",), talk=QUIET)
    found = read_row_losses(run.path / ROW_LOSSES_FILE)
    assert np.isnan(found[:num_done]).all()
    assert not np.isnan(found[num_done:]).any()


def test_older_checkpoints_are_removed_where_none_is_left_to_be_made(whole: Run, cut: Cut) -> None:
    """As when a process is killed between its last checkpoint and their removal."""
    best = min((line for line in whole.metrics if "val_loss" in line), key=lambda m: m["val_loss"])
    folder = cut(6)
    run = go_on(folder, {"keep": 1}, talk=QUIET)
    assert left(run) == left(whole)
    kept = {path.name for path in (folder / CHECKPOINTS).iterdir()}
    assert kept == {"step-000006", f"step-{best['step']:06}"}


def test_what_a_killed_process_left_half_written_is_removed(whole: Run, cut: Cut) -> None:
    folder = cut(3)
    left_over = folder / "data" / "row_keys.u64.tmp-999999"
    left_over.write_bytes(b"half")
    assert left(go_on(folder, {}, talk=QUIET)) == left(whole)
    assert not left_over.exists()
