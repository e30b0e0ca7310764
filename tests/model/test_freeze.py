"""What each method trains: exactly these parameters, in float32, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from duiti.config import Config
from duiti.errors import UsageError
from duiti.model.freeze import choose_trained

MATRICES = {f"self_attn.{x}_proj.weight" for x in "qkvo"} | {
    f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")
}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


def layer(index: int) -> set[str]:
    return {f"model.layers.{index}.{name}" for name in MATRICES | NORMS}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": 1}, layer(1) | {"model.norm.weight"}),
        ({"layers": 1, "train_norm": False}, layer(1)),
        (
            {"layers": 2, "train_head": True},
            layer(0) | layer(1) | {"model.norm.weight", "lm_head.weight"},
        ),
    ],
)
def test_last_n_trains_exactly_the_last_layers_and_what_is_asked_for(
    llama_dir: Path, options: dict[str, int | bool], expected: set[str]
) -> None:
    model = load(llama_dir)
    trained = choose_trained(model, Config(method="last-n", last_n=options))
    assert trained.parameters.keys() == expected
    assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert trained.num_parameters == sum(sizes[name] for name in expected)
    assert trained.total == sum(sizes.values())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_adapters_on_the_last_layers_lie_there_and_start_as_they_would_on_all(
    llama_dir: Path, targets: tuple[str, ...] | str
) -> None:
    some, all_ = load(llama_dir), load(llama_dir)
    config = Config(lora={"target_modules": targets, "layers": 1})
    found = choose_trained(some, config).parameters
    everywhere = choose_trained(all_, Config(lora={"target_modules": targets})).parameters
    assert found.keys() == {name for name in everywhere if name.startswith("model.layers.1.")}
    assert found.keys() == {n for n, p in some.named_parameters() if p.requires_grad}
    assert all(torch.equal(parameter, everywhere[name]) for name, parameter in found.items())


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"layers": 3}, r"lora\.layers is 3, and the model has 2"),
        (
            {"layers": 1, "target_modules": ("model.layers.0.self_attn.q_proj",)},
            "names nothing in the last 1 of 2 layers",
        ),
    ],
)
def test_adapters_on_layers_that_are_not_there_are_refused(
    llama_dir: Path, lora: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        choose_trained(load(llama_dir), Config(lora=lora))


def test_last_n_of_gpt2_finds_its_own_names() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=3, n_head=2))
    names = choose_trained(model, Config(method="last-n", last_n={"layers": 1})).parameters
    assert all(n.startswith(("transformer.h.2.", "transformer.ln_f.")) for n in names)
    assert "transformer.ln_f.bias" in names


@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_full_trains_everything_a_tied_head_once(
    request: pytest.FixtureRequest, which: str
) -> None:
    model = load(request.getfixturevalue(which))
    trained = choose_trained(model, Config(method="full"))
    assert trained.parameters.keys() == {n for n, _ in model.named_parameters()}
    assert trained.num_parameters == trained.total
    if which == "qwen3_dir":
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    "config",
    [
        Config(method="lora"),
        Config(method="last-n", last_n={"layers": 1}),
        Config(method="full"),
    ],
    ids=lambda c: c.method,
)
def test_what_is_trained_is_float32_also_with_a_bfloat16_base(
    llama_dir: Path, config: Config
) -> None:
    model = load(llama_dir, torch.bfloat16)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = choose_trained(model, config)
    assert {p.dtype for p in trained.parameters.values()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained.parameters)
        if name not in trained.parameters:
            assert parameter.dtype == torch.bfloat16
        if name in before:  # widening changes no value
            assert torch.equal(parameter.float(), before[name].float())


def test_a_tied_head_is_not_trained_by_last_n(qwen3_dir: Path) -> None:
    with pytest.raises(UsageError, match="tied"):
        choose_trained(load(qwen3_dir), Config(method="last-n", last_n={"train_head": True}))


def test_more_layers_than_the_model_has_are_refused(llama_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"last_n\.layers is 3, and the model has 2"):
        choose_trained(load(llama_dir), Config(method="last-n", last_n={"layers": 3}))


def test_the_table_says_how_much_is_trained(llama_dir: Path) -> None:
    trained = choose_trained(load(llama_dir), Config(method="lora", lora={"rank": 2}))
    # Per layer: q, o 64→64, k, v 64→32, gate, up 64→128, down 128→64; rank 2 each.
    per_layer = 2 * (2 * 128 + 2 * 96 + 2 * 192 + 192)
    assert trained.num_parameters == 2 * per_layer
    assert trained.describe().startswith("0.00 M of 0.1")
