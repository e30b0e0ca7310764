"""A run that stops behind any update and goes on from disk is, bit for bit, the run that never
stopped. Every part of it is made anew in between: model, adapters, optimizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import document, make
from torch import Tensor, nn

from duiti.config import Config
from duiti.data.batch import epoch_updates
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training.log import RunLog, Talk
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.state import (
    RunState,
    load_tensors,
    read_state,
    snapshot,
    write_state,
)
from duiti.training.step import TIMED, StepMetrics, StepPlan, is_done, train_steps
from duiti.types import Example, Progress

LENGTHS = (4, 30, 13, 2, 22, 9, 40, 6, 17, 25, 11, 3, 8)
ROWS = [document(length, number) for number, length in enumerate(LENGTHS, 1)]
BATCH, STEPS = 5, 8  # 5, 5 and 3 rows an epoch: two whole epochs and a part of the third
METHODS = {
    "lora": Config(lora={"rank": 4, "dropout": 0.1}),
    "last-n": Config(method="last-n", last_n={"layers": 1}),
    "full": Config(method="full"),
}
DTYPES = [torch.float32, torch.bfloat16]


def plan(*, budget: int = 60, steps: int = STEPS) -> StepPlan:
    rate = RatePlan(peak=1e-2, schedule="cosine", warmup_steps=2, total_steps=steps)
    return StepPlan(
        rate=rate, batch_size=BATCH, micro_batch_tokens=budget, max_grad_norm=0.5, seed=4
    )


@dataclass
class Training:
    """All that a process that trains has in memory."""

    sft: SFTModel
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW

    def tensors(self) -> dict[str, Tensor]:
        own = snapshot(self.trained, self.optimizer)
        return {**own.trained, **own.optimizer}

    def load(self, folder: Path) -> RunState:
        load_tensors(folder, self.trained, self.optimizer)
        return read_state(folder)


def start(config: Config, dtype: torch.dtype = torch.float32) -> Training:
    model = copy.deepcopy(make("llama")).to(dtype)
    found = choose_trained(model, config)
    optimizer = make_optimizer(found.parameters.values(), weight_decay=0.1)
    return Training(SFTModel(model, compute_dtype=dtype), found.parameters, optimizer)


def steady(metrics: StepMetrics) -> dict[str, Any]:
    return {key: value for key, value in asdict(metrics).items() if key not in TIMED}


def run(
    training: Training, steps: StepPlan, state: RunState, folder: Path | None = None
) -> tuple[list[dict[str, Any]], RunState]:
    """Train to the end; with a folder, leave a checkpoint behind every update."""
    found = []
    steps = replace(steps, micro_batch_tokens=state.micro_batch_tokens)
    for metrics, progress in train_steps(
        training.sft, training.optimizer, ROWS, steps, start=state.progress
    ):
        found.append(steady(metrics))
        state = state.after(metrics, progress)
        if folder is not None:
            own = folder / f"{progress.step}"
            own.mkdir()
            write_state(own, state, snapshot(training.trained, training.optimizer))
            torch.rand(3)  # somebody draws from the global stream
    return found, state


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_stopped_behind_any_update_the_run_is_the_undisturbed_one(
    tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    beginning = RunState(micro_batch_tokens=plan().micro_batch_tokens)
    undisturbed = start(METHODS[method], dtype)
    expected, end = run(undisturbed, plan(), beginning)
    assert len(expected) == STEPS
    saved = start(METHODS[method], dtype)
    found, _ = run(saved, plan(), beginning, tmp_path)
    assert found == expected  # saving leaves no trace
    assert_same(saved.tensors(), undisturbed.tensors())
    for stop in range(1, STEPS):
        torch.manual_seed(stop)  # another process, with another stream
        resumed = start(METHODS[method], dtype)
        state = resumed.load(tmp_path / f"{stop}")
        assert state.progress.step == stop
        found, after = run(resumed, plan(), state)
        assert found == expected[stop:]
        assert_same(resumed.tensors(), undisturbed.tensors())
        assert after.progress == end.progress


def test_metrics_on_disk_are_those_of_the_undisturbed_run_but_for_the_time_they_took(
    tmp_path: Path,
) -> None:
    """The process dies two updates behind its last checkpoint, in the middle of a line."""

    def log(folder: Path, training: Training, state: RunState, until: int) -> RunState:
        talk = Talk(quiet=True)
        with RunLog(folder, talk, total_steps=STEPS, start=state.progress) as lines:
            for metrics, progress in train_steps(
                training.sft, training.optimizer, ROWS, plan(), start=state.progress
            ):
                lines.step(metrics)
                state = state.after(metrics, progress)
                if progress.step == until:
                    break
        return state

    for name in ("whole", "again", "stopped", "checkpoint"):
        (tmp_path / name).mkdir()
    beginning = RunState(micro_batch_tokens=60)
    for name in ("whole", "again"):
        log(tmp_path / name, start(METHODS["lora"]), beginning, STEPS)
    training = start(METHODS["lora"])
    state = log(tmp_path / "stopped", training, beginning, 4)
    write_state(tmp_path / "checkpoint", state, snapshot(training.trained, training.optimizer))
    log(tmp_path / "stopped", training, state, 6)
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    training = start(METHODS["lora"])
    state = training.load(tmp_path / "checkpoint")
    log(tmp_path / "stopped", training, state, STEPS)

    def text(name: str) -> str:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [
            {key: value for key, value in json.loads(line).items() if key not in TIMED}
            for line in lines
        ]
        return json.dumps(found)

    assert text("whole").count('"step"') == STEPS
    assert text("again") == text("whole")
    assert text("stopped") == text("whole")


def test_what_is_not_loaded_would_show(tmp_path: Path) -> None:
    """Guards the test above: fresh moments, a fresh cursor or a fresh model give other numbers."""
    beginning = RunState(micro_batch_tokens=60)
    expected, _ = run(start(METHODS["lora"]), plan(), beginning, tmp_path)
    state = read_state(tmp_path / "3")
    fresh, _ = run(start(METHODS["lora"]), plan(), state)
    assert fresh != expected[3:]
    resumed = start(METHODS["lora"])
    resumed.load(tmp_path / "3")
    rewound = replace(state.progress, cursor=0)
    other, _ = run(resumed, plan(), replace(state, progress=rewound))
    assert [line["loss"] for line in other] != [line["loss"] for line in expected[3:]]


def test_dropout_is_at_work_and_differs_from_update_to_update() -> None:
    quiet = Config(lora={"rank": 4})
    with_, _ = run(start(METHODS["lora"]), plan(), RunState(micro_batch_tokens=60))
    without, _ = run(start(quiet), plan(), RunState(micro_batch_tokens=60))
    # B is zero before the first update, so the first loss cannot tell; its gradient can.
    assert with_[0]["grad_norm"] != without[0]["grad_norm"]
    same_rows = replace(plan(steps=2), batch_size=len(ROWS))
    still = replace(same_rows, rate=replace(same_rows.rate, peak=0.0))
    training = start(METHODS["lora"])
    norms = [m.grad_norm for m, _ in train_steps(training.sft, training.optimizer, ROWS, still)]
    assert norms[0] != norms[1]  # the same weights and rows, other masks


@pytest.mark.parametrize(
    "config", [Config(lora={"rank": 4}), METHODS["full"]], ids=["lora", "full"]
)
def test_another_micro_batch_size_is_the_same_rows_and_the_same_numbers_but_for_rounding(
    tmp_path: Path, config: Config
) -> None:
    expected, _ = run(start(config), plan(), RunState(micro_batch_tokens=60), tmp_path)
    orders = []
    for budget in (60, 1, 4096):
        resumed = start(config)
        state = replace(resumed.load(tmp_path / "4"), micro_batch_tokens=budget)
        seen = watched(resumed.sft)
        found, _ = run(resumed, plan(), state)
        assert [line["micro_batch_tokens"] for line in found] == [budget] * 4
        assert [line["num_tokens"] for line in found] == [e["num_tokens"] for e in expected[4:]]
        # One update's rounding is some 1e-7 of its loss; four of them carry it on.
        for line, other in zip(found, expected[4:], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        orders.append(by_update(seen, [line["num_tokens"] for line in found]))
    assert orders[0] == orders[1] == orders[2]


def watched(sft: SFTModel) -> list[int]:
    """Lengths of the documents that go through the model; no two rows have the same."""
    seen: list[int] = []
    sft.register_forward_pre_hook(
        lambda _, given: seen.extend(len(own) for own in given[0].documents)
    )
    return seen


def by_update(lengths: Sequence[int], num_tokens: Sequence[int]) -> list[list[int]]:
    left, found = list(lengths), []
    for total in num_tokens:
        own: list[int] = []
        while sum(own) < total:
            own.append(left.pop(0))
        found.append(sorted(own))
    assert not left
    return found


@pytest.mark.parametrize("before", [5, 3, 13, 20])
@pytest.mark.parametrize("after", [5, 4, 13, 1])
def test_another_batch_size_uses_every_row_of_the_epoch_once(before: int, after: int) -> None:
    config = Config(lora={"rank": 2})
    training = start(config)
    seen = watched(training.sft)
    steps = replace(plan(steps=100), batch_size=before)
    stopped = Progress()
    for _, stopped in train_steps(training.sft, training.optimizer, ROWS, steps):
        if stopped.step == 3:
            break
    steps = replace(steps, batch_size=after)
    going = train_steps(training.sft, training.optimizer, ROWS, steps, start=stopped)
    while stopped.cursor < 4 * len(ROWS):
        _, stopped = next(going)
    num_epochs = len(seen) // len(ROWS)
    for number in range(num_epochs):
        own = seen[number * len(ROWS) : (number + 1) * len(ROWS)]
        order = [LENGTHS[i] for rows in epoch_updates(len(ROWS), 1, seed=4, epoch=number)
                 for i in rows]  # fmt: skip
        assert sorted(own) == sorted(order)


def test_a_run_that_is_done_makes_nothing_more() -> None:
    training = start(METHODS["lora"])
    *_, (_, end) = train_steps(training.sft, training.optimizer, ROWS, plan())
    assert is_done(end, plan())
    before = training.tensors()
    assert list(train_steps(training.sft, training.optimizer, ROWS, plan(), start=end)) == []
    assert_same(training.tensors(), before)


def test_only_the_last_update_is_the_last() -> None:
    training = start(METHODS["lora"])
    found = [
        is_done(p, plan()) for _, p in train_steps(training.sft, training.optimizer, ROWS, plan())
    ]
    assert found == [False] * (STEPS - 1) + [True]


def test_the_stream_of_the_caller_decides_nothing() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        training = start(METHODS["lora"])
        lines = []
        for metrics, _ in train_steps(training.sft, training.optimizer, ROWS, plan()):
            torch.rand(seed + 1)
            lines.append(steady(metrics))
        found.append((lines, training.tensors()))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])


def test_examples_may_be_any_sequence() -> None:
    class Reading(Sequence[Example]):
        """Rows that are read when they are asked for."""

        def __len__(self) -> int:
            return len(ROWS)

        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return ROWS[index]

    asked: list[int] = []
    training = start(METHODS["lora"])
    last = Progress(step=7, cursor=31)  # of the third epoch, behind its first update
    list(train_steps(training.sft, training.optimizer, Reading(), plan(), start=last))
    updates = list(epoch_updates(len(ROWS), BATCH, seed=4, epoch=2))
    assert asked == updates[1]
