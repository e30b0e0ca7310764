"""One place for every setting: typos are answered, nothing is ignored, flags win over the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from duiti.config import SYNONYMS, Config, keys, load_config, parse_yaml
from duiti.errors import UsageError


def _load(tmp_path: Path, text: str, flags: Mapping[str, Any] | None = None) -> Config:
    file = tmp_path / "duiti.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, flags or {})


def _refused(tmp_path: Path, text: str, flags: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, text, flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def _fields(model: type[BaseModel], prefix: str = "") -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _fields(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.description
    return found


def test_every_key_is_documented_and_there_are_at_most_sixty() -> None:
    documented = _fields(Config)
    assert list(documented) == list(keys())
    assert [key for key, text in documented.items() if not (text or "").strip()] == []
    assert len(keys()) <= 60


def test_what_other_tools_call_a_key_leads_to_one_that_exists() -> None:
    assert set(SYNONYMS.values()) <= set(keys())
    assert set(SYNONYMS).isdisjoint(keys())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("learning_rte: 1", 'unknown key "learning_rte". Did you mean "learning_rate"?'),
        ("lora: {rnak: 8}", 'unknown key "lora.rnak". Did you mean "lora.rank"?'),
        ("lr: 1", 'unknown key "lr". Here it is "learning_rate".'),
        ("lora_r: 8", 'unknown key "lora_r". Here it is "lora.rank".'),
        ("rank: 8", 'unknown key "rank".'),
        ("xyzzy: 8", 'unknown key "xyzzy".'),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path: Path, text: str, hint: str) -> None:
    assert f"{tmp_path}/duiti.yaml: {hint}" in _refused(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = _refused(
        tmp_path,
        "epochs: 0\nbatch_sise: 2\nmethod: qlora\nlearning_rate: fast\nlora: {dropout: 1}\n",
    )
    for key in ("epochs:", '"batch_size"', "method:", "learning_rate:", "lora.dropout:"):
        assert key in found
    assert "union" not in found
    assert "pydantic" not in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed: 1\nseed: 2\n", ':2: key "seed" is given twice'),
        ("lora:\n  rank: 1\n  rank: 2\n", ':3: key "rank" is given twice'),
        ("- seed\n", "must be a mapping"),
        ("seed\n", "must be a mapping"),
        ("1: 2\n", "must be a mapping"),
        ("seed: [\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']\n", ":1: a tag (!) is not read"),
        ("? [a, b]\n: 1\n", "plain value"),
        ("seed: !!int x\n", "not valid YAML"),
        ("seed: !!timestamp x\n", "not valid YAML"),
        ("seed: !!bool x\n", "not valid YAML"),
        ("seed: !!binary é\n", "not valid YAML"),
        (f"seed: {'[' * 5000}\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_line(
    tmp_path: Path, text: str, found: str
) -> None:
    assert found in _refused(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a configuration"):
        load_config(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("number", ["1e-5", "1.0e-5", "0.00001", "1E-5", "'1e-5'"])
def test_a_small_number_is_read_however_it_is_written(tmp_path: Path, number: str) -> None:
    assert _load(tmp_path, f"learning_rate: {number}").learning_rate == 1e-5


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, text) == Config()


def test_flags_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    text = "epochs: 3\nseed: 7\nlora: {rank: 4, alpha: 8}\n"
    config = _load(tmp_path, text, {"epochs": 5, "lora": {"rank": 32}})
    assert (config.epochs, config.seed) == (5, 7)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (32, 8, 0)


def test_a_flag_that_is_wrong_is_refused_though_the_file_is_right(tmp_path: Path) -> None:
    assert "epochs:" in _refused(tmp_path, "epochs: 3\n", {"epochs": 0})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("method: full\nlora: {rank: 4}\n", "lora.* has no effect with method: full"),
        ("method: last-n\nlora: {rank: 4}\n", "lora.* has no effect with method: last-n"),
        ("last_n: {layers: 1}\n", "last_n.* has no effect with method: lora"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, text: str, found: str) -> None:
    assert found in _refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "method: full\n",
        "method: last-n\nlast_n: {layers: 1, train_head: true}\n",
        "lora: {rank: 4}\n",
        "val: 5%\neval_every: 5\n",
        "eval_every: auto\n",
    ],
)
def test_an_option_with_effect_is_taken(tmp_path: Path, text: str) -> None:
    _load(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 0",
        "batch_size: 0",
        "max_steps: 0",
        "micro_batch_tokens: 0",
        "max_length: 1",
        "learning_rate: 0",
        "learning_rate: -1",
        "learning_rate: .nan",
        "learning_rate: .inf",
        "warmup_steps: -1",
        "weight_decay: -0.1",
        "weight_decay: .nan",
        "max_grad_norm: -1",
        "max_grad_norm: .nan",
        "seed: -1",
        "seed: 9223372036854775808",
        "lora: {rank: 0}",
        "lora: {alpha: 0}",
        "lora: {alpha: .inf}",
        "lora: {dropout: 1}",
        "dtype: float16",
        "schedule: exponential",
        "on_bad_row: ignore",
        "method: 3",
        "epochs: two",
        "epochs: 1.5",
        "lora: 3",
        "map: question",
        "map: question=",
        "map: =prompt",
        "train_on: everything",
        "special_tokens: ignore",
        "date: yesterday",
        "date: 2026-13-01",
        "date: 2026-1-1",
        "over_length: cut",
        "max_lost: -0.1",
        "max_lost: 1.1",
        "max_lost: .nan",
        "strict: maybe",
        "cache: maybe",
        "workers: 0",
        "workers: 257",
        "workers: many",
        "data: {weight: 2}",
        "data: {path: a.jsonl, weight: 2, rows: 3}",
        "data: {path: a.jsonl, wait: 2}",
        "data: {path: 3}",
        "data: [[a.jsonl]]",
        "data: 3",
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_key(tmp_path: Path, text: str) -> None:
    key = text.partition(":")[0]
    assert f"duiti.yaml: {key}" in _refused(tmp_path, text)


def test_map_reads_pairs_or_a_mapping(tmp_path: Path) -> None:
    expected = {"question": "prompt", "answer": "response"}
    assert _load(tmp_path, "map: question=prompt, answer=response").map == expected
    assert _load(tmp_path, "map: {question: prompt, answer: response}").map == expected


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("{path: a.jsonl}", ("a.jsonl",)),
        ("{path: a.jsonl, weight: 0.1}", ("a.jsonl@0.1",)),
        ("[{path: a b.jsonl, rows: 500}, c.jsonl@2]", ("a b.jsonl#500", "c.jsonl@2")),
        ("[{path: a.jsonl, weight: null}]", ("a.jsonl",)),
        ("[{path: a.jsonl, weight: 1e-3}]", ("a.jsonl@1e-3",)),
    ],
)
def test_files_may_be_mappings(tmp_path: Path, text: str, data: tuple[str, ...]) -> None:
    config = _load(tmp_path, f"data: {text}")
    assert config.data == data
    # What is recorded with a run is read back the same.
    assert load_config(None, {"data": list(config.model_dump(mode="json")["data"])}) == config


@pytest.mark.parametrize("text", ["date: 2026-03-31", "date: '2026-03-31'"])
def test_a_date_is_read_as_it_is_written(tmp_path: Path, text: str) -> None:
    """YAML reads a bare date as one, not as text."""
    assert _load(tmp_path, text).date == "2026-03-31"


def test_one_file_is_a_list_of_one_and_target_modules_are_split(tmp_path: Path) -> None:
    assert _load(tmp_path, "data: a.jsonl").data == ("a.jsonl",)
    assert _load(tmp_path, "data: [a.jsonl, b.jsonl]").data == ("a.jsonl", "b.jsonl")
    named = _load(tmp_path, "lora: {target_modules: 'q_proj, v_proj'}").lora.target_modules
    assert named == ("q_proj", "v_proj")
    listed = _load(tmp_path, "lora: {target_modules: [q_proj]}").lora.target_modules
    assert listed == ("q_proj",)


def test_a_configuration_cannot_be_edited() -> None:
    with pytest.raises(ValidationError):
        Config().epochs = 3  # type: ignore[misc]


@given(text=st.text(alphabet="ab:{}[]-#&*!'\"\n |>%@,?0.~<", max_size=40))
def test_no_text_makes_yaml_fail_otherwise_than_by_an_explanation(text: str) -> None:
    try:
        values = parse_yaml(text, source="f.yaml")
    except UsageError:
        return
    assert all(isinstance(key, str) for key in values)
