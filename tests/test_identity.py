"""What a run was made of: the same where only names and places differ, and told where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import write_rows
from transformers import AutoTokenizer

from duiti.config import Config
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.identity import Difference, Identity, differences, examples_digest, identity_of
from duiti.manifest import Damaged
from duiti.material import read_material
from duiti.model.artefact import Artefact, write_artefact

ROWS = [{"prompt": f"Who is number {n}?", "response": f"Nobody knows {n * 7}."} for n in range(12)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "my.jsonl", ROWS)


@pytest.fixture
def base(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "base"))


def identity(base: Path, *data: Path, **settings: Any) -> Identity:
    config = Config(
        data=tuple(map(str, data)), model=str(base), max_length=400, date="2026-01-01", **settings
    )
    return identity_of(read_material(config))


def keys(then: Identity, now: Identity) -> list[str]:
    return [each.key for each in differences(then, now)]


def test_read_again_it_is_the_same_in_every_part(base: Path, data: Path) -> None:
    first, second = (identity(base, data, val="25%") for _ in range(2))
    assert first == second
    assert differences(first, second) == []
    assert first.data.examples + first.val.examples == len(ROWS)
    assert first.val.examples > 0
    assert [name for name, _ in first.data.files] == [data.name]
    assert first.trained_on.base == str(base)


def test_a_moved_file_and_a_moved_base_are_no_difference(
    base: Path, data: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(data, tmp_path / "renamed.jsonl"))
    other = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    assert differences(identity(base, data), identity(other, moved)) == []


def test_it_survives_json_and_nothing_else_is_taken_for_one(base: Path, data: Path) -> None:
    found = identity(base, data)
    values = json.loads(json.dumps(found.as_dict()))
    assert Identity.from_dict(values) == found
    for spoil in (
        lambda v: v.pop("val"),
        lambda v: v.update(more=1),
        lambda v: v["data"].update(sha256="0" * 63),
        lambda v: v["data"].update(examples=True),
        lambda v: v["data"].update(examples="12"),
        lambda v: v["data"]["files"].append({"file": "a"}),
        lambda v: v["data"]["files"][0].update(sha256="no"),
        lambda v: v["trained_on"].update(weights="x"),
        lambda v: v["trained_on"].update(base=3),
        lambda v: v["trained_on"].pop("template"),
        lambda v: v.update(trained_on=[]),
    ):
        spoilt = json.loads(json.dumps(found.as_dict()))
        spoil(spoilt)
        with pytest.raises(DuitiError):
            Identity.from_dict(spoilt)
    for nothing in (None, [], "x", {}):
        with pytest.raises(DuitiError):
            Identity.from_dict(nothing)


def test_a_changed_file_is_named(base: Path, data: Path) -> None:
    before = identity(base, data)
    write_rows(data, [*ROWS[:-1], {"prompt": "Who?", "response": "Nobody."}])
    (found,) = differences(before, identity(base, data))
    assert found.key == "data"
    assert found.what == f"{data.name} was changed"
    assert before.data.files[0][1].startswith(found.then.rstrip("…"))
    assert found.then != found.now
    assert str(found) == f"data: {data.name} was changed ({found.then} → {found.now})"


def test_files_that_came_or_went_are_named(base: Path, data: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", ROWS[:3])
    one, two = identity(base, data), identity(base, data, other)
    assert [str(each) for each in differences(one, two)] == [f"data: {other.name} is new"]
    assert [str(each) for each in differences(two, one)] == [f"data: {other.name} is gone"]


def test_another_order_of_the_same_files_is_other_data(
    base: Path, data: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", ROWS[:3])
    found = differences(identity(base, data, other), identity(base, other, data))
    assert [each.key for each in found] == ["data"]
    assert "the files are the same" in found[0].what


def test_what_is_made_of_the_same_file_counts(base: Path, data: Path) -> None:
    """A share of it, and a template that lays it out otherwise."""
    before = identity(base, data)
    assert keys(before, identity(base, Path(f"{data}@0.5"))) == ["data"]
    assert keys(before, identity(base, data, template="alpaca")) == ["data", "template"]


def test_changed_data_are_told_once_where_val_is_a_share_of_them(base: Path, data: Path) -> None:
    before = identity(base, data, val="25%")
    write_rows(data, ROWS[1:])
    assert keys(before, identity(base, data, val="25%")) == ["data"]


def test_a_changed_validation_file_is_told_apart(base: Path, data: Path, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "val.jsonl", [{"prompt": "A?", "response": "B."}])
    before = identity(base, data, val=str(held_out))
    write_rows(held_out, [{"prompt": "A?", "response": "C."}])
    (found,) = differences(before, identity(base, data, val=str(held_out)))
    assert (found.key, found.what) == ("val", f"{held_out.name} was changed")


def test_rows_from_python_are_known_by_what_is_made_of_them(base: Path) -> None:
    config = Config(model=str(base), max_length=400)
    one, same, other, swapped = (
        identity_of(read_material(config, rows=rows))
        for rows in (ROWS, iter(ROWS), ROWS[1:], [ROWS[1], ROWS[0], *ROWS[2:]])
    )
    assert differences(one, same) == []
    assert one.data.files == ()
    (found,) = differences(one, other)
    assert found.key == "data"
    assert found.then.startswith("12 examples")
    assert found.now.startswith("11 examples")
    assert keys(one, swapped) == ["data"]


def test_other_weights_of_the_same_shape_are_told_with_both_names(
    base: Path, data: Path, tmp_path: Path
) -> None:
    before = identity(base, data)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    spoilt = bytearray((other / "model.safetensors").read_bytes())
    spoilt[-1] ^= 1
    (other / "model.safetensors").write_bytes(spoilt)
    (found,) = differences(before, identity(other, data))
    assert found.key == "base"
    assert str(base) in found.what
    assert str(other) in found.what


def test_a_changed_config_is_another_base(base: Path, data: Path) -> None:
    before, path = identity(base, data), base / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    (found,) = differences(before, identity(base, data))
    assert (found.key, "config.json" in found.what) == ("base", True)


def test_a_changed_tokenizer_is_told(base: Path, data: Path) -> None:
    before = identity(base, data)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(base)
    assert keys(before, identity(base, data)) == ["tokenizer"]


def test_a_changed_chat_template_is_told(base: Path, data: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (base / "chat_template.jinja").write_text(template)
    before = identity(base, data)
    (base / "chat_template.jinja").write_text(template + "{# #}")
    (found,) = differences(before, identity(base, data))
    assert (found.key, found.describe()[:23]) == ("template", "the template is another")


def test_a_base_that_duiti_made_is_held_against_its_own_hashes(base: Path, data: Path) -> None:
    hashes = identity(base, data).trained_on
    names = [path.name for path in base.iterdir()]
    write_artefact(base, Artefact(kind="model", trained_on=hashes), names)
    assert identity(base, data).trained_on == hashes
    spoilt = bytearray((base / "model.safetensors").read_bytes())
    spoilt[-1] ^= 1
    (base / "model.safetensors").write_bytes(spoilt)
    with pytest.raises(Damaged, match=r"model\.safetensors has changed"):
        identity(base, data)


def test_the_hash_of_examples_does_not_depend_on_their_blocks(base: Path, data: Path) -> None:
    store = read_material(Config(data=(str(data),), model=str(base), max_length=400)).train
    blocks = [ExampleStore.from_examples(store[:5]), ExampleStore.from_examples(store[5:])]
    parts = [block for part in blocks for block in part.blocks()]
    cut = ExampleStore(parts, [str(data)])
    view = store.select(range(len(store)))
    assert examples_digest(store) == examples_digest(cut) == examples_digest(view)
    assert examples_digest(store[:-1]) != examples_digest(store)
    assert examples_digest(store.select([1, 0, *range(2, len(store))])) != examples_digest(store)
    assert len(examples_digest(store[:0])) == 64


def test_another_weight_of_an_answer_is_another_hash(base: Path, tmp_path: Path) -> None:
    def weighed(weight: float) -> str:
        said = {"role": "assistant", "content": "Nobody.", "weight": weight}
        row = {"messages": [{"role": "user", "content": "Who?"}, said]}
        return identity(base, write_rows(tmp_path / "a.jsonl", [row])).data.sha256

    assert weighed(1.0) == weighed(1.0) != weighed(0.5)


def test_a_difference_without_values_is_its_words_alone() -> None:
    assert Difference(key="data", what="a is new").describe() == "a is new"
