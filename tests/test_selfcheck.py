"""`--selfcheck` passes where layouts are right, on every architecture and in both dtypes; it finds
what is wrong; and nobody can tell afterwards that it ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import write_rows
from made_models import documents, make
from torch import Tensor, nn

from duiti import selfcheck
from duiti.cli import main
from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import DuitiError
from duiti.model.freeze import choose_trained
from duiti.model.lora import lora_layers
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.selfcheck import MARGIN, Proof, check_layouts
from duiti.types import Batch, Example

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

LENGTHS = (24, 5, 13, 30, 9, 17, 2, 21)
ROWS = documents(LENGTHS)
METHODS = {
    "lora": {"lora": {"rank": 2}},
    "last-n": {"method": "last-n", "last_n": {"layers": 1}},
    "full": {"method": "full"},
}
DENSE = [
    "llama", "qwen2-biased", "qwen2-sliding", "qwen3-tied", "gemma", "gemma2-capped",
    "gemma3-sliding", "mistral-sliding", "phi3-fused", "gpt2", "granite", "cohere", "olmo2",
]  # fmt: skip
EXPERTS = ["mixtral", "qwen3-moe", "gpt-oss-sinks"]
DTYPES = [torch.float32, torch.bfloat16]


def start(
    name: str, method: str = "lora", dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[SFTModel, list[nn.Parameter]]:
    model = make(name).to(dtype)
    is_packed = why_alone(model, collate(probe_rows(model, ROWS))) is None
    trained = choose_trained(model, Config(**{**METHODS[method], **more}))
    sft = SFTModel(model, compute_dtype=dtype, is_packed=is_packed)
    return sft, list(trained.parameters.values())


def check(
    sft: SFTModel, parameters: list[nn.Parameter], rows: list[Example] | None = None
) -> Proof:
    """In two parts: 70 and 51 tokens."""
    return check_layouts(sft, parameters, rows or ROWS, micro_batch_tokens=70, seed=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DENSE)
def test_layouts_are_apart_by_what_one_rounding_does(
    name: str, method: str, dtype: torch.dtype
) -> None:
    """The margin of the check is derived from this: 1.2 roundings at most, 3 are allowed."""
    proof = check(*start(name, method, dtype))
    assert (proof.num_rows, proof.num_parts) == (8, 2)
    for apart in (proof.alone, proof.dense):
        assert apart.gradient <= 1.2 / MARGIN * apart.gradient_allowed
        assert apart.loss <= apart.loss_allowed
    if dtype == torch.float32:
        assert proof.alone.gradient_allowed < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_pass_too(name: str, method: str, dtype: torch.dtype) -> None:
    """In bfloat16 a rounding sends a token to another expert now and then, in one layout and not in
    the other. Roundings of the input do so as well."""
    proof = check(*start(name, method, dtype))
    assert proof.alone.gradient < 0.3
    if dtype == torch.float32:
        assert proof.alone.gradient_allowed < 1e-5


@pytest.mark.parametrize("name", ["mamba", "qwen2-moe-sliding"])
def test_what_is_not_packed_passes(name: str) -> None:
    sft, parameters = start(name, "full")
    assert not sft.is_packed
    assert check(sft, parameters).alone.gradient < 1e-6


def test_dropout_does_not_disturb_it() -> None:
    sft, parameters = start("gpt2", lora={"rank": 2, "dropout": 0.5})
    assert sft.model.config.resid_pdrop > 0
    assert check(sft.train(), parameters).alone.gradient < 1e-6
    assert sft.training


def test_rows_with_weights_pass() -> None:
    rows = [
        replace(row, weights=np.resize(np.array([0.5, 3.0, 1.0], np.float32), len(row)))
        for row in ROWS
    ]
    assert check(*start("llama"), rows).dense.gradient < 1e-5


@pytest.mark.parametrize("lengths", [(12,), (3,), (40, 40)])
def test_an_update_of_few_rows_passes(lengths: tuple[int, ...]) -> None:
    check(*start("llama"), documents(lengths))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is dep:FutureWarning")
def test_layers_run_again_in_the_backward_pass_where_training_will_do_so() -> None:
    """Activation checkpointing works in training only; the check is not training, for dropout."""
    counts = []
    for is_checkpointed in (False, True):
        sft, parameters = start("llama")
        sft.is_packed = False
        if is_checkpointed:
            how = {"use_reentrant": False}
            sft.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        ran: list[int] = []
        layer = sft.model.model.layers[0].self_attn
        layer.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        before = traces(sft)
        assert check(sft, parameters).alone.gradient < 1e-6
        assert_same(before, traces(sft))
        counts.append(len(ran))
    # The eight rows as trained, and the one row, once more each.
    assert counts[1] - counts[0] == 8 + 1


# What is wrong is found. Faults are put into the model that is to be trained; the reference within
# the check is another one.

Change = Callable[[Batch], Batch]


def with_batches(sft: SFTModel, change: Change) -> None:
    right = sft.forward
    sft.forward = lambda batch: right(change(batch))  # type: ignore[method-assign]


def with_losses(sft: SFTModel, change: Callable[[Tensor], Tensor]) -> None:
    right = sft.forward

    def wrong(batch: Batch) -> tuple[Tensor, int | float]:
        loss, weight_sum = right(batch)
        return change(loss), weight_sum

    sft.forward = wrong  # type: ignore[method-assign]


def neighbours_are_seen(sft: SFTModel) -> None:
    with_batches(sft, lambda batch: replace(batch, cu_seqlens=(0, batch.num_tokens)))


def borders_are_off_by_one(sft: SFTModel) -> None:
    def change(batch: Batch) -> Batch:
        inner = tuple(border + 1 for border in batch.cu_seqlens[1:-1])
        return replace(batch, cu_seqlens=(0, *inner, batch.num_tokens))

    with_batches(sft, change)


def positions_go_on(sft: SFTModel) -> None:
    """Through the whole batch. (Rotary positions are relative; GPT-2's are not.)"""
    with_batches(sft, lambda b: replace(b, position_ids=torch.arange(b.num_tokens)))


def labels_are_not_shifted(sft: SFTModel) -> None:
    with_batches(sft, lambda batch: replace(batch, supervised=batch.supervised + 1))


def a_token_is_lost(sft: SFTModel) -> None:
    with_batches(sft, lambda b: replace(b, supervised=b.supervised[1:], targets=b.targets[1:]))


def the_loss_is_a_mean_per_batch(sft: SFTModel) -> None:
    with_losses(sft, lambda loss: loss / 2)


def the_loss_is_off_by_a_hundredth(sft: SFTModel) -> None:
    with_losses(sft, lambda loss: 1.01 * loss)


def the_gradient_is_off_by_a_hundredth(sft: SFTModel) -> None:
    with_losses(sft, lambda loss: loss + 0.01 * (loss - loss.detach()))


def a_has_no_gradient(sft: SFTModel) -> None:
    """With B at zero this would not show."""
    right = sft.forward

    def wrong(batch: Batch) -> tuple[Tensor, int | float]:
        layers = lora_layers(sft).values()
        for layer in layers:
            layer.lora_A.requires_grad_(False)
        try:
            return right(batch)
        finally:
            for layer in layers:
                layer.lora_A.requires_grad_(True)

    sft.forward = wrong  # type: ignore[method-assign]


def the_loss_is_not_a_number(sft: SFTModel) -> None:
    with_losses(sft, lambda loss: loss * float("nan"))


COARSE = [neighbours_are_seen, positions_go_on, labels_are_not_shifted, a_token_is_lost,
          the_loss_is_a_mean_per_batch, a_has_no_gradient, the_loss_is_not_a_number]  # fmt: skip
FINE = [borders_are_off_by_one, the_loss_is_off_by_a_hundredth, the_gradient_is_off_by_a_hundredth]


@pytest.mark.parametrize(
    ("dtype", "break_it"),
    [(torch.float32, fault) for fault in COARSE + FINE] + [(torch.bfloat16, f) for f in COARSE],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_wrong_is_found_and_leaves_no_trace_either(
    break_it: Callable[[SFTModel], None], dtype: torch.dtype
) -> None:
    """In bfloat16 a hundredth is less than rounding."""
    sft, parameters = start("gpt2", dtype=dtype)
    before = traces(sft)
    break_it(sft)
    with pytest.raises(DuitiError) as caught:
        check(sft, parameters)
    assert caught.value.exit_code == 1
    assert "from each row alone: loss " in caught.value.what
    assert "gradient " in caught.value.what
    assert_same(before, traces(sft))


@pytest.mark.parametrize("factor", [1.01, 0.5])
def test_logits_that_are_not_those_of_the_model_are_found(factor: float) -> None:
    """Both layouts agree with one another, and not with the model."""
    sft, parameters = start("llama")
    sft.model.lm_head.register_forward_hook(lambda module, given, output: output * factor)
    with pytest.raises(DuitiError, match="from dense cross-entropy"):
        check(sft, parameters)


def test_memory_that_runs_out_is_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    sft, parameters = start("llama")
    before = traces(sft)

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    sft.model.model.layers[1].register_forward_pre_hook(refuse)
    with pytest.raises(DuitiError, match="--selfcheck: out of memory"):
        check(sft, parameters)
    assert_same(before, traces(sft))


# No trace


def traces(sft: SFTModel) -> dict[str, Any]:
    parameters = dict(sft.model.named_parameters())
    found: dict[str, Any] = {name: p.detach().clone() for name, p in parameters.items()}
    found |= {f"{name} open": p.requires_grad for name, p in parameters.items()}
    found |= {f"{name} gradient": p.grad for name, p in parameters.items()}
    found |= {f"{name} mode": module.training for name, module in sft.named_modules()}
    embedding = sft.model.get_input_embeddings()
    found["hooks"] = len(embedding._forward_hooks)
    found["random"] = torch.get_rng_state()
    return found


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, Tensor) else value == two[name]
        assert same, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_it_leaves_no_trace(method: str, dtype: torch.dtype) -> None:
    sft, parameters = start("gpt2", method, dtype)
    sft.train()
    before = traces(sft)
    check(sft, parameters)
    assert_same(before, traces(sft))
    assert all(parameter.grad is None for parameter in parameters)


def test_the_same_seed_gives_the_same_proof_and_another_one_another() -> None:
    proofs = [
        check_layouts(*start("llama"), ROWS, micro_batch_tokens=70, seed=seed) for seed in (0, 0, 1)
    ]
    assert proofs[0] == proofs[1] != proofs[2]


# From the command line

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}, I think."} for n in range(12)]


@pytest.fixture
def run(llama_dir: Path, tmp_path: Path) -> Callable[..., int]:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS)

    def train(*flags: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["train", str(data), "-m", str(llama_dir), "-o", str(tmp_path / "run"),
                  "--max-steps", "2", "--batch-size", "4", "--workers", "1", "--no-proof",
                  *flags])  # fmt: skip
        return int(ended.value.code or 0)

    return train


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--method", "full"),
        ("--dtype", "bfloat16"),
        ("--method", "last-n", "--last-n.layers", "1", "--epochs", "3"),
    ],
)
def test_a_run_says_its_proof_and_goes_on(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
) -> None:  # fmt: skip
    assert run("--selfcheck", *flags) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfcheck")]
    assert len(said) == 1
    assert "4 rows in 1 micro-batch, against each alone: loss " in said[0]
    proof = json.loads((tmp_path / "run" / "selfcheck.json").read_text())
    assert proof["num_rows"] == 4
    assert 0 <= proof["alone"]["gradient"] <= proof["alone"]["gradient_allowed"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


def test_a_run_that_fails_it_is_not_made(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selfcheck, "collate", spoilt)
    assert run("--selfcheck") == 1
    said = capsys.readouterr().err
    assert "--selfcheck: the first update differs from each row alone" in said
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def spoilt(rows: list[Example], device: Any) -> Batch:
    """More than one row: the first of them loses its last trained token."""
    batch = collate(rows, device)
    if len(rows) == 1:
        return batch
    return replace(batch, supervised=batch.supervised[1:], targets=batch.targets[1:])


@pytest.fixture(autouse=True)
def _random_stream() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
