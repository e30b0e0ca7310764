"""Adapters on disk: PEFT reads ours, we read PEFT's, and nothing that does not fit gets in."""

from __future__ import annotations

import dataclasses
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


KNOWN = {field.name for field in dataclasses.fields(peft.LoraConfig)} - {"runtime_config"}
ASIDE = {"task_type", "auto_mapping", "peft_version", "inference_mode", "megatron_core"}
READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora"}
READ |= {"target_modules", "fan_in_fan_out", "bias", "init_lora_weights", "revision"}


@pytest.mark.parametrize("key", sorted(KNOWN - ASIDE - READ - {"qalora_group_size"}))
def test_whatever_else_pefts_settings_have_is_refused_by_name_when_set(
    tmp_path: Path, key: str
) -> None:
    """All that this version of PEFT knows; 0 is a value, the first layer for one."""
    for value in (True, 0, 3, "x", ["x"], {"x": 1}, [0]):
        write_settings(tmp_path, **{key: value})
        with pytest.raises(UsageError, match=f'"{key}" is not supported'):
            read_adapter_config(tmp_path)


def test_all_of_pefts_settings_at_rest_are_plain_lora(tmp_path: Path) -> None:
    assert set(peft.LoraConfig().to_dict()) == KNOWN
    write_settings(tmp_path)
    found, _ = read_adapter_config(tmp_path)
    assert (found.rank, found.alpha, found.dropout, found.rslora) == (8, 8, 0, False)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_setting_of_tomorrow_is_refused_unless_it_is_unset(tmp_path: Path, value: Any) -> None:
    write_settings(tmp_path, use_tomorrow=value)
    read_adapter_config(tmp_path)
    write_settings(tmp_path, use_tomorrow=1)
    with pytest.raises(UsageError, match='"use_tomorrow" is not supported'):
        read_adapter_config(tmp_path)
    write_settings(tmp_path, **{"\x1b[2J a name that is none": 1})
    with pytest.raises(UsageError) as caught:
        read_adapter_config(tmp_path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("target_modules", r"(a+)+$", "is a pattern"),
        ("target_modules", [], "no list of names"),
        ("target_modules", ["q_proj", 3], "no list of names"),
        ("revision", "refs/pr/1", "revision is not supported"),
        ("init_lora_weights", ["pissa"], "init_lora_weights"),
        ("init_lora_weights", "lora_ga", "init_lora_weights"),
        ("bias", {"a": 1}, "bias"),
    ],
)
def test_values_that_mean_more_are_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    write_settings(tmp_path, **{key: value})
    with pytest.raises(UsageError, match=said):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    write_settings(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', f'"lora_alpha": {number}'))
    with pytest.raises(UsageError):
        read_adapter_config(tmp_path)


def test_a_configuration_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    for text in (" " * 2**24 + "{}", "[" * 10**5, '{"a":' * 10**5):
        path.write_text(text)
        with pytest.raises(UsageError, match="cannot be loaded"):
            read_adapter_config(tmp_path)


def by_peft(folder: Path, to: Path, **settings: Any) -> nn.Module:
    """An adapter that PEFT made and saved, with random numbers."""
    settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    torch.manual_seed(3)
    made = peft.get_peft_model(
        base(folder), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    )
    made.save_pretrained(to)
    return made.eval()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT has doubts about some
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_bias": True, "init_lora_weights": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": r".*\.layers\.1\..*q_proj"},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["mlp.gate_proj.weight"]},
        {"layer_replication": [[0, 1], [0, 2]]},
    ],
    ids=str,
)
def test_what_peft_makes_of_more_than_plain_lora_is_refused(
    llama_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    by_peft(llama_dir, tmp_path, **settings)
    with pytest.raises(UsageError) as caught:
        read_adapter_config(tmp_path)
    assert next(iter(settings)) in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT has doubts about it too
@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_an_adapter_on_the_embedding_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, which: str
) -> None:
    folder = request.getfixturevalue(which)
    by_peft(folder, tmp_path, target_modules=["q_proj", "embed_tokens"])
    config, _ = read_adapter_config(tmp_path)
    with pytest.raises(DuitiError, match="embed_tokens"):
        load_adapter(base(folder), tmp_path, config)
    # And where only the tensors are there, not the setting.
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**values, "target_modules": ["q_proj"]})
    )
    config, _ = read_adapter_config(tmp_path)
    with pytest.raises(DuitiError, match=r"embed_tokens\..* belongs nowhere"):
        load_adapter(base(folder), tmp_path, config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_in_half_precision_are_widened_exactly(
    llama_dir: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    theirs = by_peft(llama_dir, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
    ours = base(llama_dir)
    load_adapter(ours, tmp_path, read_adapter_config(tmp_path)[0])
    stored = load_file(path)
    for name, layer in lora_layers(ours).items():
        for part in ("lora_A", "lora_B"):
            found = getattr(layer, part)
            assert found.dtype == torch.float32
            key = f"base_model.model.{name}.{part}.weight"
            assert torch.equal(found, stored[key].float())
    theirs = peft.PeftModel.from_pretrained(base(llama_dir), tmp_path)
    with torch.no_grad():  # PEFT widens them too
        found, expected = ours(ids()).logits, theirs(ids()).logits
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_tensors_of_other_kinds_of_number_are_refused(
    llama_dir: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    saved(llama_dir, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    save_file({**tensors, key: tensors[key].to(dtype)}, path)
    with pytest.raises(DuitiError) as caught:
        load_adapter(base(llama_dir), tmp_path, read_adapter_config(tmp_path)[0])
    assert f"{key} holds {str(dtype).removeprefix('torch.')}" in caught.value.what


def test_a_statement_about_the_layers_that_is_not_true_is_refused(
    llama_dir: Path, tmp_path: Path
) -> None:
    edit(llama_dir, tmp_path, "fan_in_fan_out", True)
    with pytest.raises(DuitiError, match="fan_in_fan_out is true"):
        load_adapter(base(llama_dir), tmp_path, read_adapter_config(tmp_path)[0])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_pefts_adapter_on_gpt2s_layers_is_ours_too(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "base")
    theirs = by_peft(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn"])
    ours = base(tmp_path / "base")
    load_adapter(ours, tmp_path / "adapter", read_adapter_config(tmp_path / "adapter")[0])
    assert_same(ours, theirs)


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


def write_settings(folder: Path, **more: Any) -> None:
    """Settings as PEFT writes them."""
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def edit(folder: Path, to: Path, key: str, value: Any) -> None:
    saved(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
