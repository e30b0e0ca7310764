"""A state on disk: it comes back as it was, or it is refused with the first difference."""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_models import document, make
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duiti.config import Config
from duiti.errors import DuitiError
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.optim import CoolDown, RatePlan, make_optimizer
from duiti.training.state import (
    FILES,
    Best,
    RunState,
    checkpoint_bytes,
    load_tensors,
    read_state,
    snapshot,
    snapshot_bytes,
    write_state,
)
from duiti.training.step import StepMetrics, StepPlan, train_steps

ROWS = [document(length, number) for number, length in enumerate((9, 20, 5, 13, 30), 1)]
CONFIG = Config(lora={"rank": 4, "target_modules": ("q_proj", "v_proj")})
METRICS = StepMetrics(
    step=2, epoch=0.8, loss=1.25, num_tokens=34, supervised_tokens=17, lr=1e-3, grad_norm=0.1 + 0.2,
    tokens_per_s=100.0, peak_memory_bytes=10**9, micro_batch_tokens=64, out_of_memory=0,
)  # fmt: skip

Trained = dict[str, nn.Parameter]


def start(config: Config = CONFIG) -> tuple[SFTModel, Trained, torch.optim.AdamW]:
    model = copy.deepcopy(make("llama"))
    trained = choose_trained(model, config).parameters
    return SFTModel(model), trained, make_optimizer(trained.values(), weight_decay=0.0)


def plan() -> StepPlan:
    rate = RatePlan(peak=1e-2, schedule="constant", warmup_steps=0, total_steps=3)
    return StepPlan(rate=rate, batch_size=2, micro_batch_tokens=64, max_grad_norm=1.0, seed=0)


def trained_state() -> tuple[RunState, Trained, torch.optim.AdamW]:
    sft, trained, optimizer = start()
    state = RunState(micro_batch_tokens=64)
    for metrics, progress in train_steps(sft, optimizer, ROWS, plan()):
        state = state.after(metrics, progress)
    return state, trained, optimizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    state, trained, optimizer = trained_state()
    write_state(folder, state, snapshot(trained, optimizer))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint of our own, to spoil."""
    for name in FILES:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    return tmp_path


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state, trained, optimizer = trained_state()
    unusual = replace(METRICS, anomaly="the loss is 9", rows=("a b.jsonl:1", "\N{SNOWMAN}\n:2"))
    for given in (
        state,
        replace(state, val_before=0.1 + 0.2, val_after=1 / 3, best=Best(step=2, val_loss=1e-320)),
        replace(state, last=unusual, out_of_memory=3),
        replace(state, cool_down=CoolDown(start_step=3, num_steps=7, rate=1e-5)),
    ):
        write_state(tmp_path, given, snapshot(trained, optimizer))
        found = read_state(tmp_path)
        assert found == given
        assert found.progress.spent_s == given.progress.spent_s > 0  # left out of `==`
        assert found.progress.typical_s == given.progress.typical_s > 0


def test_three_files_of_json_and_safetensors_named_as_what_is_trained_is_named(whole: Path) -> None:
    _, trained, _ = start()
    assert sorted(path.name for path in whole.iterdir()) == sorted(FILES)
    json.loads((whole / "state.json").read_text())
    assert load_file(whole / "trained.safetensors").keys() == trained.keys()
    moments = {f"{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step")}
    assert load_file(whole / "optimizer.safetensors").keys() == moments


def test_tensors_come_back_into_the_tensors_that_are_there(whole: Path) -> None:
    _, trained, optimizer = trained_state()
    expected = snapshot(trained, optimizer)
    _, fresh, other = start()
    places = {name: parameter.data_ptr() for name, parameter in fresh.items()}
    load_tensors(whole, fresh, other)
    found = snapshot(fresh, other)
    for one, two in ((expected.trained, found.trained), (expected.optimizer, found.optimizer)):
        assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    assert {name: parameter.data_ptr() for name, parameter in fresh.items()} == places


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    sft, trained, optimizer = start()
    steps = train_steps(sft, optimizer, ROWS, plan())
    next(steps)
    kept = snapshot(trained, optimizer)
    before = {name: tensor.clone() for name, tensor in (kept.trained | kept.optimizer).items()}
    next(steps)
    now = kept.trained | kept.optimizer
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


def test_without_a_copy_nothing_on_the_host_is_copied() -> None:
    _, trained, optimizer = start()
    kept = snapshot(trained, optimizer, copy=False)
    assert all(kept.trained[name].data_ptr() == p.data_ptr() for name, p in trained.items())


@pytest.mark.parametrize(
    "config", [CONFIG, Config(), Config(method="full"), Config(method="last-n")], ids=str
)
def test_sizes_are_those_of_what_is_made(tmp_path: Path, config: Config) -> None:
    if config.method == "last-n":
        config = Config(method="last-n", last_n={"layers": 1})
    _, trained, optimizer = start(config)
    kept = snapshot(trained, optimizer)
    assert snapshot_bytes(trained) == kept.num_bytes
    write_state(tmp_path, RunState(micro_batch_tokens=64), kept)
    found = sum((tmp_path / name).stat().st_size for name in FILES)
    assert found <= checkpoint_bytes(trained) <= found + 2**16 + 1000 * len(trained)


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    state, trained, optimizer = trained_state()
    name, parameter = next(iter(trained.items()))
    for tensor in (parameter.data, *optimizer.state[parameter].values()):
        before = tensor.clone()
        for value in (float("nan"), float("inf"), -float("inf")):
            tensor.view(-1)[-1] = value
            with pytest.raises(DuitiError, match="is not saved") as caught:
                write_state(tmp_path, state, snapshot(trained, optimizer))
            assert name in caught.value.what
            assert list(tmp_path.iterdir()) == []
        tensor.copy_(before)
    write_state(tmp_path, state, snapshot(trained, optimizer))


@contextmanager
def small_files() -> Iterator[None]:
    """Around the writing alone: what pytest prints goes into a file, too, where its output does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_is_told_with_path_and_reason(tmp_path: Path) -> None:
    state, trained, optimizer = trained_state()
    with small_files(), pytest.raises(DuitiError) as caught:
        write_state(tmp_path, state, snapshot(trained, optimizer))
    assert str(tmp_path) in caught.value.what
    assert "are needed" in caught.value.why


# Everything else is refused, and nothing is changed by it.


def in_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "state.json").read_text())
        change(values)
        (folder / "state.json").write_text(json.dumps(values))

    return spoil


def in_text(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / "state.json").read_text()
        assert old in text
        (folder / "state.json").write_text(text.replace(old, new, 1))

    return spoil


def in_tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / f"{name}.safetensors")
        change(tensors)
        save_file(tensors, folder / f"{name}.safetensors")

    return spoil


def first(tensors: dict[str, Tensor], ending: str = "") -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def with_(name: str, ending: str, value: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        key = first(tensors, ending)
        tensors[key] = value(tensors[key])

    return in_tensors(name, change)


def number(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[index] = value
        return tensor

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return spoil


def all_counts(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors |= {n: change(t) for n, t in tensors.items() if n.endswith(".step")}

    return in_tensors("optimizer", spoil)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state": (lambda f: (f / "state.json").unlink(), "missing"),
    "an empty state": (cut("state.json", 0), "not valid JSON"),
    "half a state": (cut("state.json", 0.5), "not valid JSON"),
    "a list": (lambda f: (f / "state.json").write_text("[]"), "not a JSON object"),
    "a huge state": (lambda f: (f / "state.json").write_text(" " * 2**21), "too large"),
    "NaN": (in_text('"loss": ', '"loss": NaN, "x": '), "NaN"),
    "a key twice": (in_text('"cursor": ', '"cursor": 0, "cursor": '), "twice"),
    "a key too many": (in_json(lambda v: v["state"].update(more=1)), "keys"),
    "a key too few": (in_json(lambda v: v["state"]["progress"].pop("cursor")), "keys"),
    "a default": (in_json(lambda v: v["state"].pop("best")), "keys"),
    "a text": (in_json(lambda v: v["state"]["progress"].update(step="3")), "progress.step"),
    "a truth": (in_json(lambda v: v["state"]["progress"].update(step=True)), "progress.step"),
    "a fraction": (in_json(lambda v: v["state"]["progress"].update(cursor=0.5)), "cursor"),
    "another version": (in_json(lambda v: v.update(version=2)), "version"),
    "more skipped than made": (
        in_json(lambda v: v["state"]["progress"].update(skipped_steps=9)), "skipped"),
    "steps of another update": (in_json(lambda v: v.update(optimizer_steps=2)), "of step 3"),
    "a state of another update": (
        in_json(lambda v: v["state"]["progress"].update(step=2)), "3 steps"),
    "no parameters": (lambda f: (f / "trained.safetensors").unlink(), "missing"),
    "half the parameters": (cut("trained.safetensors", 0.5), "trained.safetensors"),
    "an empty file": (cut("trained.safetensors", 0), "trained.safetensors"),
    "a parameter too few": (
        in_tensors("trained", lambda t: t.pop(first(t))), "q_proj.lora_A is missing"),
    "a parameter too many": (
        in_tensors("trained", lambda t: t.update(more=torch.zeros(1))), "does not belong"),
    "another shape": (with_("trained", "lora_A", lambda t: t[:2].clone()), "[2, 32]"),
    "the same numbers in another shape": (
        with_("trained", "lora_A", lambda t: t.T.contiguous()), "[32, 4]"),
    "another dtype": (with_("trained", "", lambda t: t.bfloat16()), "BF16"),
    "a parameter of NaN": (with_("trained", "lora_B", number(-1, float("nan"))), "not finite"),
    "an infinite parameter": (with_("trained", "", number(0, float("inf"))), "not finite"),
    "no optimizer": (lambda f: (f / "optimizer.safetensors").unlink(), "fresh optimizer"),
    "half an optimizer": (cut("optimizer.safetensors", 0.7), "optimizer.safetensors"),
    "a moment too few": (
        in_tensors("optimizer", lambda t: t.pop(first(t, "exp_avg_sq"))), "exp_avg_sq is missing"),
    "a moment of NaN": (with_("optimizer", "exp_avg", number(0, float("nan"))), "not finite"),
    "a square below zero": (with_("optimizer", "exp_avg_sq", number(3, -1e-9)), "below zero"),
    "half a step": (with_("optimizer", "step", number(0, 2.5)), "counts 2.5"),
    "steps below zero": (with_("optimizer", "step", number(0, -1.0)), "counts -1"),
    "a step too many": (with_("optimizer", "step", number(0, 4.0)), "of step 4"),
    "no steps at all": (all_counts(torch.zeros_like), "of step 0"),
    "counts of another update": (all_counts(lambda t: t - 1), "of step 2"),
    "parameters as optimizer": (
        lambda f: (f / "optimizer.safetensors").write_bytes(
            (f / "trained.safetensors").read_bytes()), "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_not_a_state_of_this_run_is_refused_and_changes_nothing(
    folder: Path, what: str
) -> None:
    spoil, said = SPOILT[what]
    _, trained, optimizer = start()
    before = snapshot(trained, optimizer)
    load_tensors(folder, trained, optimizer)  # it is good until it is spoilt
    _, trained, optimizer = start()
    spoil(folder)
    with pytest.raises(DuitiError) as caught:
        load_tensors(folder, trained, optimizer)
    assert said in str(caught.value)
    assert str(folder) in caught.value.what
    after = snapshot(trained, optimizer)
    for one, two in ((before.trained, after.trained), (before.optimizer, after.optimizer)):
        assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize(
    "config", [Config(lora={"rank": 2, "target_modules": ("q_proj", "v_proj")}), Config(),
               Config(method="full")], ids=["rank", "targets", "method"],
)  # fmt: skip
def test_a_state_of_another_model_is_refused(whole: Path, config: Config) -> None:
    _, trained, optimizer = start(config)
    with pytest.raises(DuitiError, match="not the state of this run"):
        load_tensors(whole, trained, optimizer)


# What a state counts


def test_the_best_is_the_first_of_the_lowest_and_a_loss_that_is_no_number_is_none() -> None:
    state = RunState(micro_batch_tokens=64)
    for step, loss in enumerate([2.0, None, 1.5, 1.5, float("nan"), 1.7, float("-inf")], 1):
        metrics = replace(METRICS, step=step)
        state = state.after(metrics, replace(state.progress, step=step), loss)
    assert state.best == Best(step=3, val_loss=1.5)
    assert state.val_after == 1.7
    assert state.last is not None
    assert state.last.step == 7


def test_an_update_that_was_left_out_is_not_the_last_that_was_made() -> None:
    state = RunState(micro_batch_tokens=64)
    state = state.after(METRICS, replace(state.progress, step=2))
    bad = replace(METRICS, step=3, loss=float("nan"), skipped=True, micro_batch_tokens=32,
                  out_of_memory=1)  # fmt: skip
    state = state.after(bad, replace(state.progress, step=3, skipped_steps=1))
    assert state.last == METRICS
    assert state.progress.step == 3
    assert (state.micro_batch_tokens, state.out_of_memory) == (32, 1)
