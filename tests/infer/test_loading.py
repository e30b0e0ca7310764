"""Loading is strict: what is not as it was written, or not together, is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import peft
import pytest
import torch
import yaml
from made import write_rows
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from duiti import api
from duiti.errors import DuitiError, UsageError
from duiti.infer.model import Model, load
from duiti.manifest import Damaged
from duiti.model.artefact import LOADED, read_artefact, write_artefact
from duiti.model.fetch import SMALL_FILES
from duiti.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

ROWS = [{"prompt": f"Who is number {n}?", "response": f"Nobody knows {n * 7}."} for n in range(8)]
ASK = [{"role": "user", "content": "Who is number 3?"}]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path_factory.mktemp("base") / "base"))


def train(base: Path, folder: Path, **settings: object) -> Run:
    data = write_rows(folder.parent / "rows.jsonl", ROWS)
    return api.train(
        str(data), model=str(base), output=str(folder), epochs=1, batch_size=4, learning_rate=1e-2,
        device="cpu", quiet=True, **{"proof": False, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(base, tmp_path_factory.mktemp("runs") / "adapter", lora={"rank": 4}).path


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(base, tmp_path_factory.mktemp("runs") / "whole", method="full").path


@pytest.fixture
def run(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "run"))


def opened(folder: Path) -> Model:
    return load(folder, device="cpu")


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        return model.hf(torch.arange(3, 43).reshape(2, 20)).logits


def flip(path: Path, *, at: float = 0.9) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 4
    path.write_bytes(content)


def swap(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def rename_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    key = sorted(tensors)[0]
    tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)
    save_file(tensors, path, metadata={"format": "pt"})


def add_a_tensor(path: Path) -> None:
    save_file({**load_file(path), "more": torch.ones(2)}, path, metadata={"format": "pt"})


def save_again(path: Path) -> None:
    """The same numbers in other bytes."""
    save_file(load_file(path), path, metadata={"format": "pt", "by": "another"})


EDITS: list[tuple[str, Callable[[Path], None]]] = [
    (WEIGHTS, flip),
    (WEIGHTS, rename_a_tensor),
    (WEIGHTS, add_a_tensor),
    (WEIGHTS, save_again),
    (WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    (WEIGHTS, lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    ("adapter_config.json", swap('"lora_alpha": 32.0', '"lora_alpha": 64.0')),
    ("adapter_config.json", swap('"r": 4', '"r": 8')),
    ("adapter_config.json", swap('"use_rslora": false', '"use_rslora": true')),
    ("chat_template.jinja", swap("Human", "human")),
    ("template.yaml", swap("Human", "human")),
    ("tokenizer.json", swap('"Human"', '"Humam"')),
    ("tokenizer.json", flip),
    ("tokenizer_config.json", swap("<|endoftext|>", "<|im_end|>")),
    ("generation_config.json", swap("[", "[5, ")),
]


@pytest.mark.parametrize(
    ("name", "edit"), EDITS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(EDITS)]
)
def test_an_edit_of_a_file_that_matters_is_refused_by_its_name(
    run: Path, name: str, edit: Callable[[Path], None]
) -> None:
    before = (run / name).read_bytes()
    edit(run / name)
    assert (run / name).read_bytes() != before
    with pytest.raises(Damaged, match=name):
        opened(run)


def listed(folder: Path) -> list[str]:
    return sorted(json.loads((folder / "manifest.json").read_text())["files"])


def test_the_manifest_names_every_file_that_is_loaded(adapter: Path, whole: Path) -> None:
    common = {"chat_template.jinja", "generation_config.json", "template.yaml", "tokenizer.json"}
    common |= {"tokenizer_config.json"}
    assert set(listed(adapter)) == common | {WEIGHTS, "adapter_config.json"}
    assert set(listed(whole)) == common | {"model.safetensors", "config.json"}


def test_each_file_that_is_gone_is_named(run: Path) -> None:
    for name in listed(run):
        aside = (run / name).rename(run / "aside")
        with pytest.raises(DuitiError, match=name if name != WEIGHTS else "no trained weights"):
            opened(run)
        aside.rename(run / name)
    opened(run)


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "model.safetensors.index.json", "tokenizer.model", "vocab.json"),
        *("added_tokens.json", "special_tokens_map.json", "tokenization_own.py", "config.json"),
        *("additional_chat_templates/rag.jinja", "adapter_model.bin"),
    ],
)
def test_a_file_that_a_library_would_load_and_that_came_later_is_refused(
    run: Path, name: str
) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("{}")
    with pytest.raises(Damaged, match="was not there when it was written"):
        opened(run)


def test_what_decides_no_answer_may_be_edited(run: Path, adapter: Path) -> None:
    (run / "README.md").write_text("my own words")
    (run / "notes.txt").write_text("more of them")
    (run / "env.json").write_text("{}")
    model = opened(run)
    assert torch.equal(logits(model), logits(opened(adapter)))
    assert model.notes == ()


def test_a_run_without_its_manifest_is_not_finished(run: Path) -> None:
    (run / "manifest.json").unlink()
    for name in (run, Run(run)):
        with pytest.raises(UsageError, match="did not finish"):
            load(name, device="cpu")


@pytest.mark.parametrize("content", ["", "{}", '{"duiti": "0.1"', "[]"])
def test_a_manifest_that_is_none_is_refused(run: Path, content: str) -> None:
    (run / "manifest.json").write_text(content)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        opened(run)


def test_the_manifest_of_another_run_is_refused(run: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "manifest.json", run)
    with pytest.raises(Damaged):
        opened(run)


def test_a_manifest_that_was_edited_is_refused(run: Path) -> None:
    swap('"rank": 4', '"rank": 5')(run / "manifest.json")
    with pytest.raises(Damaged, match=r"manifest\.json has changed"):
        opened(run)


def test_settings_that_tell_of_another_method_are_refused(run: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["lora"]
    (run / "config.yaml").write_text(yaml.safe_dump({**values, "method": "full"}))
    with pytest.raises(DuitiError, match="method full"):
        opened(run)


@pytest.mark.parametrize("key", ["tokenizer", "template"])
def test_files_that_are_read_otherwise_than_in_training_are_refused(run: Path, key: str) -> None:
    """As by another version of a library: the files are what was written, what is made of them
    is not what was trained with."""
    artefact = read_artefact(run)
    other = replace(artefact, trained_on=replace(artefact.trained_on, **{key: "0" * 64}))
    write_artefact(run, other, listed(run))
    with pytest.raises(DuitiError, match=f"its {key} is not the one"):
        opened(run)


def test_every_name_that_is_fetched_of_a_model_is_one_that_may_not_come_later() -> None:
    for name in SMALL_FILES:
        first = name.partition("/")[0]
        assert any(fnmatch(first, pattern) for pattern in LOADED), name


# The base


def other_base(base: Path, to: Path) -> Path:
    """The same shapes, other numbers."""
    copied = Path(shutil.copytree(base, to))
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    return copied


def on_base(run: Path, base: Path, other: Path) -> None:
    swap(f"model: {base}", f"model: {other}")(run / "config.yaml")


def test_another_base_of_the_same_shape_is_refused_with_both_named(
    run: Path, base: Path, tmp_path: Path
) -> None:
    other = other_base(base, tmp_path / "other")
    on_base(run, base, other)
    with pytest.raises(DuitiError) as caught:
        opened(run)
    assert str(other) in caught.value.what
    assert "weights" in caught.value.what
    assert str(base) in caught.value.why


def test_a_base_that_is_described_otherwise_is_refused(
    run: Path, base: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 1e-3}))
    on_base(run, base, other)
    with pytest.raises(DuitiError, match=r"its config\.json differs"):
        opened(run)


def test_a_base_that_moved_is_found_by_the_name_in_the_settings(
    run: Path, adapter: Path, base: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    on_base(run, base, moved)
    assert torch.equal(logits(opened(run)), logits(opened(adapter)))


def test_a_whole_model_needs_its_base_only_to_compare_and_then_the_right_one(
    whole: Path, base: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    on_base(run, base, other_base(base, tmp_path / "other"))
    model = opened(run)
    assert torch.equal(logits(model), logits(opened(whole)))
    with pytest.raises(DuitiError, match="was not trained on this base"), model.base():
        pass
    with opened(whole).base():
        pass
    flip(run / "model.safetensors")
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        opened(run)


# Adapters by themselves


def test_an_adapter_without_its_run_is_as_strict_and_brings_its_template(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in (*listed(adapter), "manifest.json"):
        shutil.copy(adapter / name, alone / name)
    model, expected = opened(alone), opened(adapter)
    assert torch.equal(logits(model), logits(expected))
    assert model.template.source == expected.template.source
    assert model.stop_ids == expected.stop_ids
    assert model.notes == ()
    artefact = read_artefact(alone)
    other = replace(artefact, trained_on=replace(artefact.trained_on, weights="0" * 64))
    write_artefact(alone, other, listed(alone))
    with pytest.raises(DuitiError, match="was not trained on this base"):
        opened(alone)
    flip(alone / WEIGHTS)
    with pytest.raises(Damaged, match=WEIGHTS):
        opened(alone)


def test_an_adapter_that_peft_made_is_loaded_with_a_note(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    theirs.save_pretrained(tmp_path / "peft")
    model = opened(tmp_path / "peft")
    (note,) = model.notes
    assert "carries no hashes" in note
    assert str(base) in note
    with torch.no_grad():
        expected = theirs.eval()(torch.arange(3, 43).reshape(2, 20)).logits
    # Float32, two orders of the same sums: a few units in the last place of logits of order 10.
    assert (logits(model) - expected).abs().max() <= 1e-4
    (tmp_path / "peft" / "manifest.json").write_text('{"name": "of another tool"}')
    assert opened(tmp_path / "peft").notes == (note,)


def test_ours_is_opened_by_peft_with_the_manifest_beside_it(adapter: Path, base: Path) -> None:
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        expected = theirs.eval()(torch.arange(3, 43).reshape(2, 20)).logits
    assert (logits(opened(adapter)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name_in_adapter_and_base(
    base: Path, tmp_path: Path, bad: float
) -> None:
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    made.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = sorted(tensors)[-1]
    tensors[key][0, 0] = bad
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(DuitiError, match=f"{key} holds numbers that are not finite"):
        opened(tmp_path)
    other = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][1] = bad
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DuitiError, match=r"model\.norm\.weight holds numbers that are not finite"):
        opened(other)
