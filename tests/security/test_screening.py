"""What a model's files could make a library do is refused by its key, before it is asked to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from duiti.errors import DuitiError, UsageError
from duiti.model.load import load_config, load_model, load_tokenizer, resolve

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
"""
CODE = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"model_type": "evil", "auto_map": CODE}, "wants to run Python code"),
    ("config.json", {"text_config": {"auto_map": CODE}}, "auto_map"),
    ("config.json", {"_attn_implementation": "evil/kernel"}, "_attn_implementation"),
    ("config.json", {"attn_implementation": "evil/kernel:flash"}, "attn_implementation"),
    ("config.json", {"attn_implementation": {"": "evil/kernel"}}, "attn_implementation"),
    ("config.json", {"sub": {"_attn_implementation": "evil/kernel"}}, "_attn_implementation"),
    ("config.json", {"_attn_implementation_internal": "evil/x"}, "_attn_implementation_internal"),
    ("config.json", {"_experts_implementation_internal": "x"}, "_experts_implementation_internal"),
    ("config.json", {"_experts_implementation": "evil/kernel"}, "_experts_implementation"),
    ("config.json", {"kernel_config": {"x": "y"}}, "kernel_config"),
    ("config.json", {"use_kernels": True}, "use_kernels"),
    ("config.json", {"fusion_config": {"x": True}}, "fusion_config"),
    ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ("config.json", {"custom_pipelines": {"x": {"impl": "evil.P"}}}, "custom_pipelines"),
    ("config.json", {"configuration_files": ["../config.9.0.0.json"]}, "configuration_files"),
    ("config.json", {"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
    ("config.json", {"backbone": "evil/model", "use_pretrained_backbone": True}, "backbone"),
    ("config.json", {"vision": {"use_timm_backbone": True}}, "use_timm_backbone"),
    ("config.json", {"model_type": "detr"}, "no architecture that continues text"),
    ("config.json", {"model_type": "rag"}, "no architecture that continues text"),
    ("config.json", {"model_type": "nothing"}, "not known"),
    ("config.json", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
    ("config.json", {"quantization_config": "evil"}, "quantization_config"),
    ("config.json", {"dtype": "load"}, "no type of number"),
    ("config.json", {"torch_dtype": "hub"}, "no type of number"),
    ("config.json", {"tokenizer_class": "Trainer"}, "names no tokenizer"),
    ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("config.json", {"n_layers": 10**5}, "n_layers"),
    ("config.json", {"num_labels": 10**10}, "num_labels"),
    ("config.json", {"num_local_experts": 10**7}, "num_local_experts"),
    ("config.json", {"num_hidden_layers": 1000, "num_experts": 1000}, "1000 layers of 1000"),
    ("config.json", {"vocab_size": 10**12}, "vocab_size"),
    ("config.json", {"hidden_size": -(10**12)}, "hidden_size"),
    ("config.json", {"head_dim": 10**10}, "head_dim"),
    ("config.json", {"text_config": {"n_embd": 10**9}}, "n_embd"),
    ("config.json", {"max_position_embeddings": 10**30}, "max_position_embeddings"),
    ("config.json", {"rope_theta": float("nan")}, "NaN"),
    ("generation_config.json", {"custom_generate": "evil/generate"}, "custom_generate"),
    ("generation_config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}, "names no tokenizer"),
    ("tokenizer_config.json", {"tokenizer_class": "pipeline"}, "names no tokenizer"),
    ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
    ("tokenizer_config.json", {"merges_file": "../../secret.txt"}, "merges_file"),
    ("tokenizer_config.json", {"gguf_file": "x.gguf"}, "gguf_file"),
    ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}, "init_inputs"),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["../x"]}, "fast_tokenizer_files"),
    ("tokenizer_config.json", {"added_tokens_decoder": {str(10**12): {}}}, "added_tokens_decoder"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
]


@pytest.fixture
def folder(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values))


def load(folder: Path, *, trust: bool = False) -> Any:
    return load_model(
        resolve(str(folder), trust_remote_code=trust), dtype=torch.float32, device="cpu"
    )


@pytest.mark.parametrize(("file", "values", "reason"), REFUSED)
def test_a_key_that_makes_a_library_act_is_refused_by_name(
    folder: Path, file: str, values: dict[str, Any], reason: str
) -> None:
    load(folder)  # as it was
    edit(folder / file, lambda found: found.update(values))
    with pytest.raises(UsageError) as caught:
        (load_tokenizer if file.startswith("tokenizer") else load_config)(resolve(str(folder)))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(UsageError):
        load(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": CODE}),  # not followed: transformers knows the architecture
        ("config.json", {"_attn_implementation": "flash_attention_2"}),
        ("config.json", {"_name_or_path": "evil/model", "quantization_config": None}),
        ("config.json", {"time_step_limit": [0.0, float("inf")], "rope_theta": 10**10}),
        ("config.json", {"max_position_embeddings": 10_485_760, "pad_token_id": -1}),
        ("config.json", {"id2label": {"0": "backbone"}, "label2id": {"backbone": 0}}),
        ("tokenizer_config.json", {"special_tokens_map_file": "/root/.cache/x.json"}),
        ("tokenizer_config.json", {"tokenizer_file": "/home/x/tokenizer.json", "init_inputs": []}),
        ("tokenizer_config.json", {"model_max_length": 10**30, "vocab_file": None}),
        ("added_tokens.json", {"backbone": 3}),
    ],
)
def test_what_models_really_say_is_read(folder: Path, file: str, values: dict[str, Any]) -> None:
    (folder / "evil.py").write_text(EVIL.format(mark=str(folder / "mark")))
    edit(folder / file, lambda found: found.update(values))
    assert load_tokenizer(resolve(str(folder))).encode("a")
    model = load(folder)
    assert model.config._attn_implementation in ("eager", "sdpa")
    assert not (folder / "mark").exists()


def test_code_runs_only_by_the_flag_and_that_is_said(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    edit(folder / "config.json", lambda found: found.update(model_type="evil", auto_map=CODE))
    with pytest.raises(UsageError, match="wants to run Python code") as caught:
        load(folder)
    assert "--trust-remote-code" in caught.value.fix
    assert not mark.exists()
    assert "that came with it is run" not in capsys.readouterr().err
    load(folder, trust=True)
    assert mark.read_text() == "ran"
    said = capsys.readouterr().err
    assert said.count(f"{folder}: Python code that came with it is run") == 1


@pytest.mark.parametrize(
    "code",
    [
        {"AutoConfig": "evil/other--evil.EvilConfig"},
        {"AutoConfig": "../evil.EvilConfig"},
        {"AutoTokenizer": [None, "other/repo--tok.Fast"]},
        {"AutoConfig": 5},
    ],
)
def test_the_flag_is_about_the_models_own_code(folder: Path, code: dict[str, Any]) -> None:
    edit(folder / "config.json", lambda found: found.update(model_type="evil", auto_map=code))
    with pytest.raises(UsageError, match="another place"):
        load(folder, trust=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_not_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UsageError, match=name) as caught:
        load(folder)
    assert "program" in caught.value.why
    assert "safetensors" in caught.value.fix


def test_an_adapter_beside_a_model_is_not_put_into_it(folder: Path) -> None:
    """transformers hands it to PEFT unasked, with whatever its configuration says."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": {}}')
    with pytest.raises(UsageError, match="adapter beside a model"):
        load(folder)


def _index(folder: Path, name: object) -> None:
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../part-1.safetensors",
        "/part-1.safetensors",
        "sub/part-1.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "part-1.bin",
        "part 1.safetensors",
        "part-1.safetensors\0",
        "part-1.safetensors\n",
        "C:\\part-1.safetensors",
        5,
        None,
        ["part-1.safetensors"],
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(folder: Path, name: object) -> None:
    _index(folder, name)
    with pytest.raises(UsageError, match="as a file of weights"):
        load(folder)


def test_an_index_is_read_where_it_is_one(folder: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    _index(folder, "part-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "part-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path, file: str
) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="leads out of the folder"):
        load(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"link to a file that is not there|no config\.json"):
        load(folder)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    _index(folder, "part-1.safetensors")
    (folder / "part-1.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "part-1.safetensors").symlink_to("../elsewhere.safetensors")
    with pytest.raises(UsageError, match="leads out of the folder"):
        load(folder)


def test_the_hubs_cache_is_made_of_links_and_is_read(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "abc").mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repo / "blobs" / str(number))
        (repo / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{number}")
    load(repo / "snapshots" / "abc")
    (tmp_path / "links").mkdir()
    for path in (repo / "snapshots" / "abc").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    load(tmp_path / "links")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_a_device_and_a_long_file_are_not_read(folder: Path, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(UsageError, match=r"no regular file|no config\.json"):
        load(folder)
    (folder / file).unlink()
    with (folder / file).open("wb") as sparse:
        sparse.truncate(2**33)
    with pytest.raises(UsageError, match="more than 8 MiB"):
        load(folder)


def test_a_description_of_more_than_the_files_hold_is_refused_before_memory_is_asked_for(
    folder: Path,
) -> None:
    edit(folder / "config.json", lambda found: found.update(vocab_size=2**24, hidden_size=2**16))
    with pytest.raises(DuitiError, match=r"describes .* numbers, and the files of weights hold"):
        load(folder)


def test_masks_of_a_description_are_counted_too(folder: Path) -> None:
    """GPT-2 keeps a mask of positions times positions: 10 GB for a file of 1 MB."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=97, n_embd=2, n_layer=1, n_head=1, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    load(folder)
    edit(folder / "config.json", lambda found: found.update(n_positions=100_000))
    with pytest.raises(DuitiError):
        load(folder)
    save_file({"x": torch.zeros(2**20)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DuitiError):
        load(folder)
