"""Names to models: what is found, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duiti.errors import DuitiError, UsageError
from duiti.model.load import choose_device, load_model, longest_text, resolve


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def load(folder: Path) -> object:
    return load_model(resolve(str(folder)), dtype=torch.float32, device="cpu")


def test_a_folder_is_a_model_in_the_dtype_that_is_asked_for(llama_dir: Path) -> None:
    model = load_model(resolve(str(llama_dir)), dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "", "tinny", "~/nowhere-xyz"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        resolve(name)


def test_a_hub_id_is_not_looked_up() -> None:
    assert not resolve("owner/name").is_local


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    llama_dir: Path, tmp_path: Path, value: float
) -> None:
    folder = copy(llama_dir, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DuitiError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_weight_that_is_missing_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    """transformers fills it with random numbers and goes on."""
    folder = copy(llama_dir, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DuitiError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_weight_of_another_shape_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy(llama_dir, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DuitiError):
        load(folder)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_weight_file_that_is_not_whole_is_refused(
    llama_dir: Path, tmp_path: Path, keep: int
) -> None:
    path = copy(llama_dir, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DuitiError):
        load(path.parent)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="device"):
        choose_device("cuda:63")


def test_the_longest_text_is_what_positions_and_tokenizer_allow(llama_dir: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    assert longest_text(config, tokenizer) == config.max_position_embeddings
    tokenizer.model_max_length = 100
    assert longest_text(config, tokenizer) == 100
