"""Adapters on disk: PEFT reads ours, we read PEFT's, and nothing that does not fit gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from duiti.config import LoraConfig
from duiti.errors import DuitiError, UsageError
from duiti.model.adapter import load_adapter, read_adapter_config, save_adapter
from duiti.model.lora import add_lora, find_targets, lora_layers, merge

# PEFT 0.21 asks transformers for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

# Both add s·BA to the same W x in float32, PEFT by two layers and a factor, we by two products: a
# few roundings of 2^-24 in each of 14 layers.
TOLERANCE = 1e-5
CONFIGS = [
    LoraConfig(rank=4, alpha=8),
    LoraConfig(rank=4, alpha=3, rslora=True),
    LoraConfig(rank=8, alpha=0.5, target_modules=("q_proj", "down_proj")),
    LoraConfig(rank=2, alpha=2, target_modules=("model.layers.1.self_attn.q_proj",)),
]


def base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(folder: Path, config: LoraConfig) -> PreTrainedModel:
    model = base(folder)
    add_lora(model, find_targets(model, config.target_modules), config, seed=0)
    torch.manual_seed(9)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.1)
    return model


def saved(folder: Path, to: Path, config: LoraConfig = CONFIGS[0]) -> PreTrainedModel:
    model = adapted(folder, config)
    save_adapter(model, to, config, base=str(folder))
    return model


def ids() -> Tensor:
    return torch.arange(3, 63).reshape(3, 20)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model(input_ids=ids(), labels=ids()).loss.backward()
    return {
        name.replace(".default.weight", "").removeprefix("base_model.model."): p.grad
        for name, p in model.named_parameters()
        if "lora_" in name and p.grad is not None
    }


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    with torch.no_grad():
        found, expected = ours(ids()).logits, theirs(ids()).logits
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    mine, reference = gradients(ours), gradients(theirs)
    assert mine.keys() == reference.keys()
    for name, grad in reference.items():
        assert (mine[name] - grad).abs().max() <= TOLERANCE * max(1, grad.abs().max()), name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_peft_loads_ours_with_the_same_logits_and_gradients(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, config: LoraConfig
) -> None:
    folder = request.getfixturevalue(which)
    ours = saved(folder, tmp_path, config)
    theirs = peft.PeftModel.from_pretrained(base(folder), tmp_path, is_trainable=True)
    assert sum("lora_A" in n for n, _ in theirs.named_parameters()) == len(lora_layers(ours))
    assert_same(ours, theirs)


def test_an_adapter_on_gpt2s_layers_is_pefts_too(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """They store their weights the other way round, which PEFT must be told."""
    torch.manual_seed(4)
    folder = tmp_path / "base"
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, initializer_range=0.1
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    config = LoraConfig(rank=4, alpha=8)
    ours = saved(folder, tmp_path, config)
    theirs = peft.PeftModel.from_pretrained(base(folder), tmp_path, is_trainable=True)
    assert_same(ours, theirs)
    again, (read, _) = base(folder), read_adapter_config(tmp_path)
    load_adapter(again, tmp_path, read)
    merge(again)
    with torch.no_grad():
        merged, expected = again(ids()).logits, theirs(ids()).logits
    assert (merged - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_we_load_pefts_with_the_same_logits_and_gradients(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, config: LoraConfig
) -> None:
    folder = request.getfixturevalue(which)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        target_modules=config.target_modules
        if isinstance(config.target_modules, str)
        else list(config.target_modules),
        task_type="CAUSAL_LM",
        init_lora_weights=False,  # B is random too
    )
    torch.manual_seed(3)
    theirs = peft.get_peft_model(base(folder), settings)
    theirs.save_pretrained(tmp_path)
    theirs.eval()
    found, _ = read_adapter_config(tmp_path)
    ours = base(folder)
    load_adapter(ours, tmp_path, found)
    assert len(lora_layers(ours)) == sum("lora_A" in n for n, _ in theirs.named_parameters())
    assert_same(ours.eval(), theirs)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_saved_and_loaded_is_bitwise_the_same(
    llama_dir: Path, tmp_path: Path, config: LoraConfig
) -> None:
    ours = saved(llama_dir, tmp_path, config)
    found, named = read_adapter_config(tmp_path)
    assert named == str(llama_dir)
    again = base(llama_dir)
    load_adapter(again, tmp_path, found)
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, ours(ids()).logits)
    assert (found.rank, found.alpha, found.rslora) == (config.rank, config.alpha, config.rslora)


def test_the_saved_tensors_are_the_trained_ones(llama_dir: Path, tmp_path: Path) -> None:
    model = saved(llama_dir, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {f"base_model.model.{n}.weight" for n in trained} == stored.keys()
    for name, parameter in trained.items():
        assert torch.equal(stored[f"base_model.model.{name}.weight"], parameter)


def break_missing(tensors: dict[str, Tensor], key: str) -> None:
    del tensors[key]


def break_surplus(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key.replace("layers.0", "layers.9")] = tensors[key].clone()


def break_shape(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key] = tensors[key].T.contiguous()


def break_nan(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key][0, 0] = float("nan")


def break_inf(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key][0, 0] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (break_missing, "layers.0.self_attn.q_proj.lora_A.weight is missing"),
        (break_surplus, "layers.9.self_attn.q_proj.lora_A.weight belongs nowhere"),
        (break_shape, "layers.0.self_attn.q_proj.lora_A.weight has shape"),
        (break_nan, "layers.0.self_attn.q_proj.lora_A.weight holds numbers that are not finite"),
        (break_inf, "layers.0.self_attn.q_proj.lora_A.weight holds numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    llama_dir: Path, tmp_path: Path, spoil: Callable[[dict[str, Tensor], str], None], said: str
) -> None:
    saved(llama_dir, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    spoil(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, path)
    with pytest.raises(DuitiError) as caught:
        load_adapter(base(llama_dir), tmp_path, read_adapter_config(tmp_path)[0])
    assert said in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_is_not_whole_is_refused(llama_dir: Path, tmp_path: Path, keep: int) -> None:
    saved(llama_dir, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DuitiError, match=r"adapter_model\.safetensors: cannot be read"):
        load_adapter(base(llama_dir), tmp_path, read_adapter_config(tmp_path)[0])


def test_an_adapter_of_a_deeper_model_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    saved(llama_dir, tmp_path)
    shallow = base(llama_dir)
    shallow.model.layers = shallow.model.layers[:1]
    with pytest.raises(DuitiError, match="do not fit"):
        load_adapter(shallow, tmp_path, read_adapter_config(tmp_path)[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [3]),
        ("peft_type", "IA3"),
        ("target_modules", None),
        # Each of these changes what PEFT computes from the very same A and B.
        ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
    ],
)
def test_settings_that_are_not_plain_lora_are_refused_by_name(
    llama_dir: Path, tmp_path: Path, key: str, value: Any
) -> None:
    edit(llama_dir, tmp_path, key, value)
    with pytest.raises(UsageError) as caught:
        read_adapter_config(tmp_path)
    assert key in str(caught.value) or key == "peft_type"


@pytest.mark.parametrize(
    ("key", "value"), [("r", 0), ("r", "four"), ("lora_alpha", -1), ("r", None), ("lora_alpha", "")]
)
def test_settings_that_make_no_sense_are_refused(
    llama_dir: Path, tmp_path: Path, key: str, value: Any
) -> None:
    edit(llama_dir, tmp_path, key, value)
    with pytest.raises(DuitiError):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_missing_setting_is_refused(llama_dir: Path, tmp_path: Path, key: str) -> None:
    saved(llama_dir, tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises(DuitiError):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UsageError):
        read_adapter_config(tmp_path)


def edit(folder: Path, to: Path, key: str, value: Any) -> None:
    saved(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
