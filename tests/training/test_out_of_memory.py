"""Memory that runs out anywhere in an update: the run that comes of it is, bit for bit, the run
that nothing disturbed and that used the smaller micro-batches from there on.

Errors are injected where PyTorch would raise them; one test has the machine itself refuse memory.
"""

from __future__ import annotations

import copy
import gc
import itertools
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from duiti.config import Config
from duiti.data.batch import epoch_updates, micro_batches
from duiti.errors import DuitiError
from duiti.model import sft_model
from duiti.model.freeze import choose_trained
from duiti.model.sft_model import SFTModel
from duiti.training import update
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.out_of_memory import is_out_of_memory, smaller_budget
from duiti.training.step import StepMetrics, StepPlan, train_step, train_steps
from duiti.types import Example, Origin

LENGTHS = (4, 30, 13, 2, 22, 9, 40, 6, 17, 25, 11, 3, 8)
BATCH, STEPS, BUDGET = 5, 4, 60
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
CPU_MESSAGE += " memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(CPU_MESSAGE),
]
METHODS = {
    "full": Config(method="full"),
    "last-n": Config(method="last-n", last_n={"layers": 1}),
    "lora": Config(lora={"rank": 4}),
    "lora with dropout": Config(lora={"rank": 4, "dropout": 0.3}),
}


def row(length: int, number: int) -> Example:
    ids = np.random.default_rng(number).integers(4, 440, length).astype(np.int32)
    labels = ids.copy()
    labels[: length // 2] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("rows.jsonl", number + 1))


ROWS = [row(length, number) for number, length in enumerate(LENGTHS)]


def plan(budget: int = BUDGET) -> StepPlan:
    rate = RatePlan(peak=1e-2, schedule="cosine", warmup_steps=2, total_steps=STEPS)
    return StepPlan(
        rate=rate, batch_size=BATCH, micro_batch_tokens=budget, max_grad_norm=0.5, seed=0
    )


@dataclass
class Training:
    """A model that is being trained, and what is to go wrong."""

    model: PreTrainedModel
    sft: SFTModel
    optimizer: torch.optim.AdamW
    faults: list[int] = field(default_factory=list)
    """Numbers of the calls, from 1, of the place chosen that fail."""
    error: BaseException = field(default_factory=lambda: ERRORS[0])
    calls: int = 0

    def fail_if_due(self, *_: object) -> None:
        self.calls += 1
        if self.calls in self.faults:
            raise copy.copy(self.error)  # one that is kept would keep its frames

    def state(self) -> dict[str, Tensor]:
        """All that an update changes: parameters, moments and counts."""
        found = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for number, own in enumerate(self.optimizer.state.values()):
            found |= {f"{number}.{key}": value.clone() for key, value in own.items()}
        return found


@cache
def base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def start(folder: Path, method: str) -> Training:
    torch.manual_seed(7)
    model = copy.deepcopy(base(folder))
    found = choose_trained(model, METHODS[method])
    optimizer = make_optimizer(found.parameters.values(), weight_decay=0.1)
    return Training(model, SFTModel(model), optimizer)


def steady(metrics: StepMetrics) -> dict[str, Any]:
    timing = ("tokens_per_s", "peak_memory_bytes", "out_of_memory")
    return {key: value for key, value in asdict(metrics).items() if key not in timing}


def assert_same_state(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@cache
def undisturbed(
    folder: Path, method: str, budgets: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The same updates, written out, each with its own budget: what is left, and the metrics."""
    training = start(folder, method)
    updates = [
        rows
        for epoch in range(STEPS)
        for rows in epoch_updates(len(ROWS), BATCH, seed=0, epoch=epoch)
    ]
    found, seen = [], 0
    for number, budget in enumerate(budgets):
        rows = [ROWS[index] for index in updates[number]]
        seen += len(rows)
        metrics = train_step(
            training.sft, training.optimizer, rows, plan(budget),
            step=number + 1, epoch=seen / len(ROWS),
        )  # fmt: skip
        found.append(steady(metrics))
    return training.state(), found


# Where it may happen. Each arms a training: the calls of that place are counted, and fail if due.

Arm = Callable[[Training, pytest.MonkeyPatch], None]


def wrapped(training: Training, function: Any, *, after: bool = False) -> Any:
    def call(*args: Any, **more: Any) -> Any:
        if not after:
            training.fail_if_due()
        found = function(*args, **more)
        if after:
            training.fail_if_due()
        return found

    return call


def in_the_data(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(update, "collate", wrapped(training, update.collate))


def in_the_forward(training: Training, patch: pytest.MonkeyPatch) -> None:
    training.model.model.layers[1].register_forward_pre_hook(training.fail_if_due)


def in_the_loss(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        sft_model, "supervised_losses", wrapped(training, sft_model.supervised_losses, after=True)
    )


def in_the_backward(training: Training, patch: pytest.MonkeyPatch) -> None:
    """While the gradients of the last layer are there and those of the first are not."""
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    parameters[len(parameters) // 2].register_hook(training.fail_if_due)


def in_the_norm(training: Training, patch: pytest.MonkeyPatch) -> None:
    """Once gradients are divided."""
    function = torch.nn.utils.get_total_norm
    patch.setattr(torch.nn.utils, "get_total_norm", wrapped(training, function))


def before_the_optimizer(training: Training, patch: pytest.MonkeyPatch) -> None:
    training.optimizer.register_step_pre_hook(training.fail_if_due)


BEFORE = [in_the_data, in_the_forward, in_the_loss, in_the_backward, in_the_norm,
          before_the_optimizer]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arm", BEFORE, ids=lambda arm: arm.__name__)
def test_the_run_is_that_with_smaller_micro_batches_from_that_update_on(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm, method: str
) -> None:
    # In the last call of the third update: with the gradients of other micro-batches there.
    counted = start(llama_dir, method)
    with monkeypatch.context() as patch:
        arm(counted, patch)
        training = train_steps(counted.sft, counted.optimizer, ROWS, plan())
        passed = [counted.calls for _ in itertools.islice(training, 3)]
    assert passed[2] > passed[1] > 0

    disturbed = start(llama_dir, method)
    disturbed.faults = [passed[2]]
    with monkeypatch.context() as patch:
        arm(disturbed, patch)
        found = [m for m, _ in train_steps(disturbed.sft, disturbed.optimizer, ROWS, plan())]
    assert [metrics.out_of_memory for metrics in found] == [0, 0, 1, 0]
    budgets = tuple(metrics.micro_batch_tokens for metrics in found)
    assert budgets[:2] == (BUDGET, BUDGET)
    assert BUDGET > budgets[2] == budgets[3] >= BUDGET // 3

    state, expected = undisturbed(llama_dir, method, budgets)
    assert [steady(metrics) for metrics in found] == expected
    assert_same_state(disturbed.state(), state)
    # The layouts do differ in their last bits, or this says nothing.
    other, _ = undisturbed(llama_dir, method, (BUDGET,) * STEPS)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in state.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arm", BEFORE, ids=lambda arm: arm.__name__)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_rows_that_go_alone_are_tried_again_and_the_run_is_the_undisturbed_one(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm, method: str, error: BaseException
) -> None:
    """There is no smaller layout, so nothing but the count may tell the two runs apart."""
    disturbed = start(llama_dir, method)
    disturbed.faults, disturbed.error = [2], error
    arm(disturbed, monkeypatch)
    found = [m for m, _ in train_steps(disturbed.sft, disturbed.optimizer, ROWS, plan(1))]
    monkeypatch.undo()
    state, expected = undisturbed(llama_dir, method, (1,) * STEPS)
    assert [steady(metrics) for metrics in found] == expected
    assert sum(metrics.out_of_memory for metrics in found) == 1
    assert_same_state(disturbed.state(), state)


# In the optimizer itself: what it has written stays, the rest is written after it.


def before_the_group(training: Training, patch: pytest.MonkeyPatch) -> None:
    function = torch.optim.AdamW._init_group
    patch.setattr(torch.optim.AdamW, "_init_group", wrapped(training, function))


def before_the_kernel(training: Training, patch: pytest.MonkeyPatch) -> None:
    """Steps are counted already, nothing is written."""
    patch.setattr(torch, "_fused_adamw_", wrapped(training, torch._fused_adamw_))


def after_the_kernel(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "_fused_adamw_", wrapped(training, torch._fused_adamw_, after=True))


def after_the_optimizer(training: Training, patch: pytest.MonkeyPatch) -> None:
    training.optimizer.register_step_post_hook(training.fail_if_due)


GROUPS = [before_the_group, before_the_kernel, after_the_kernel]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arm", [*GROUPS, after_the_optimizer], ids=lambda arm: arm.__name__)
@pytest.mark.parametrize("group", [1, 2], ids=["first group", "second group"])
def test_a_step_that_fails_in_the_middle_is_the_whole_step_once(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm, method: str, group: int
) -> None:
    """Matrices are one group of the optimizer, vectors another; LoRA has no vectors. Where nothing
    was written yet the update is made anew, in smaller micro-batches; else it is completed."""
    disturbed = start(llama_dir, method)
    num_groups = len(disturbed.optimizer.param_groups)
    if group > num_groups:
        pytest.skip("this method trains no vectors")
    per_step = 1 if arm is after_the_optimizer else num_groups
    disturbed.faults = [2 * per_step + min(group, per_step)]  # in the third update
    arm(disturbed, monkeypatch)
    found = [m for m, _ in train_steps(disturbed.sft, disturbed.optimizer, ROWS, plan())]
    monkeypatch.undo()
    assert [metrics.out_of_memory for metrics in found] == [0, 0, 1, 0]
    budgets = tuple(metrics.micro_batch_tokens for metrics in found)
    is_untouched = group == 1 and arm in (before_the_group, before_the_kernel)
    assert (budgets == (BUDGET,) * STEPS) != is_untouched
    state, expected = undisturbed(llama_dir, method, budgets)
    assert [steady(metrics) for metrics in found] == expected
    assert_same_state(disturbed.state(), state)


def test_a_step_that_cannot_be_completed_ends_the_run_and_says_so(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = start(llama_dir, "full")
    disturbed.faults = [2, 3]  # the second group, and again
    before_the_kernel(disturbed, monkeypatch)
    with pytest.raises(DuitiError, match="while the optimizer was writing"):
        list(train_steps(disturbed.sft, disturbed.optimizer, ROWS, plan()))


# Again and again, and in the end


def test_micro_batches_are_halved_until_they_fit(llama_dir: Path) -> None:
    """A device that takes no more than 15 tokens at once: rows of up to 11 and no more than fit."""
    rows = [row(length, number) for number, length in enumerate((11, 7, 9, 8, 10, 5, 6, 4))]
    disturbed = start(llama_dir, "lora with dropout")
    seen: list[int] = []

    def limited(_: object, given: tuple[Tensor]) -> None:
        seen.append(given[0].shape[1])
        if seen[-1] > 15:
            raise ERRORS[0]

    disturbed.model.model.layers[1].register_forward_pre_hook(limited)
    steps = replace(plan(4096), batch_size=8)
    found = [m for m, _ in train_steps(disturbed.sft, disturbed.optimizer, rows, steps)]
    # 60 tokens in one; 30, in which the first part still holds more than 15; 15.
    assert [metrics.out_of_memory for metrics in found] == [2, 0, 0, 0]
    assert [metrics.micro_batch_tokens for metrics in found] == [15] * STEPS
    assert [metrics.num_tokens for metrics in found] == [60] * STEPS  # every row, every update
    assert all(length <= 15 for length in seen[2:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arm", BEFORE, ids=lambda arm: arm.__name__)
def test_a_row_that_does_not_fit_alone_ends_the_run_and_nothing_has_changed(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm, method: str
) -> None:
    training = start(llama_dir, method)
    train_step(training.sft, training.optimizer, ROWS[:5], plan(), step=1, epoch=1.0)
    before = training.state()
    training.faults, training.error = list(range(1, 1000)), ERRORS[2]
    arm(training, monkeypatch)
    with pytest.raises(DuitiError) as caught:
        train_step(training.sft, training.optimizer, ROWS[5:10], plan(), step=2, epoch=1.0)
    monkeypatch.undo()
    assert "step 2: out of memory" in caught.value.what
    assert "rows.jsonl:7, has 40 tokens" in caught.value.why
    assert "DefaultCPUAllocator" in caught.value.why
    assert "--max-length" in caught.value.fix
    # The layouts tried: at most 60 tokens, 40 (the longest row), and that once more.
    assert training.calls == 3
    after = training.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in training.model.parameters())


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError(),
                                   DuitiError("out of memory")], ids=str)  # fmt: skip
def test_another_error_is_passed_on_at_once(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    training = start(llama_dir, "lora")
    training.faults, training.error = [1], error
    in_the_forward(training, monkeypatch)
    with pytest.raises(type(error)):
        list(train_steps(training.sft, training.optimizer, ROWS, plan()))
    assert training.calls == 1


@pytest.mark.parametrize("arm", [in_the_forward, in_the_loss, in_the_backward, in_the_norm],
                         ids=lambda arm: arm.__name__)  # fmt: skip
def test_nothing_of_the_failed_attempt_is_alive_when_the_update_begins_anew(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm
) -> None:
    """An error keeps its frames, and these keep tensors: what was to be freed would stay."""
    training = start(llama_dir, "full")
    training.faults = [1]
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(_: object, __: object, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if training.faults[0] <= training.calls:
            alive.append(sum(ref() is not None for ref in made))
            training.faults = [1000]
        made.append(weakref.ref(output))

    training.model.model.embed_tokens.register_forward_hook(watch)
    arm(training, monkeypatch)
    gc.disable()  # freeing must not wait for the collector to pass by
    try:
        next(train_steps(training.sft, training.optimizer, ROWS, plan()))
    finally:
        gc.enable()
    assert made
    assert alive == [0]


@pytest.mark.parametrize("error", [
    *ERRORS,
    np._core._exceptions._ArrayMemoryError((3,), np.dtype("f4")),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory"),
], ids=lambda error: str(error)[:40])  # fmt: skip
def test_what_says_that_memory_ran_out_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_what_this_machine_says_is_recognised() -> None:
    for ask in (lambda: torch.empty(2**50), lambda: np.ones(2**50)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            ask()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    OSError("Cannot allocate memory"), DuitiError("out of memory"), KeyboardInterrupt(),
], ids=str)  # fmt: skip
def test_what_says_something_else_is_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 400))
def test_budgets_shrink_until_the_longest_row_decides(lengths: list[int], budget: int) -> None:
    def largest(budget: int) -> int:
        parts = micro_batches(range(len(lengths)), lengths, budget=budget)
        return max(sum(lengths[row] for row in part) for part in parts)

    tried = 0
    while (smaller := smaller_budget(budget, lengths)) is not None:
        assert max(lengths) <= smaller
        assert largest(smaller) < largest(budget)
        budget, tried = smaller, tried + 1
    assert largest(budget) == max(lengths)
    assert tried <= 10  # log2 of 20 rows of 50 tokens


HUNGRY = """
import resource, sys
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from duiti.model.sft_model import SFTModel
from duiti.training.optim import RatePlan, make_optimizer
from duiti.training.step import StepPlan, train_steps
from duiti.types import Example, Origin

torch.set_num_threads(1)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=8192,
                                     num_hidden_layers=2, num_attention_heads=2))
rows = []
for number in range(16):
    ids = np.random.default_rng(number).integers(4, 64, 128).astype(np.int32)
    rows.append(Example(input_ids=ids, labels=ids.copy(), origin=Origin("f", number)))
def run(budget, steps):
    optimizer = make_optimizer(model.parameters(), weight_decay=0.0)
    rate = RatePlan(peak=1e-3, schedule="constant", warmup_steps=0, total_steps=steps)
    plan = StepPlan(rate=rate, batch_size=16, micro_batch_tokens=budget, max_grad_norm=1.0, seed=0)
    return [metrics for metrics, _ in train_steps(SFTModel(model), optimizer, rows, plan)]

run(128, 1)  # everything that is loaded once
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = run(2048, 2)
print([m.out_of_memory for m in found], [m.micro_batch_tokens for m in found])
assert found[0].out_of_memory >= 1
# Each update goes on from the size of the one before, halved for every refusal. Which size just
# fits is decided by where memory happens to lie, so the second may be refused once more.
size = 2048
for m in found:
    assert m.micro_batch_tokens == size >> m.out_of_memory
    size = m.micro_batch_tokens
assert size >= 128
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set and measured as Linux does")
def test_a_machine_that_refuses_memory_does_not_end_the_run() -> None:
    """2048 tokens at once keep 2048 x 8192 float32 numbers, 64 MiB, several times per layer; the
    process may have 200 MiB more than it has."""
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _random_stream() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Memory is collected after every failure; all that tests have piled up need not be searched
    each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
