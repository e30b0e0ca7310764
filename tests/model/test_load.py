"""A model's small files may be damaged or hostile: every one of them ends in an explanation."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from duiti.errors import UsageError
from duiti.model.load import load_config, load_tokenizer, longest_text, resolve


@pytest.fixture
def folder(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def merge_too_long(values: dict[str, Any]) -> None:
    """A merge that is longer than any token: the Rust library panics on it."""
    longest = max(values["model"]["vocab"], key=len)
    values["model"]["merges"].append([longest, longest])


def test_a_panic_of_the_rust_library_is_a_usage_error_and_leaves_no_trace(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "tokenizer.json", merge_too_long)
    with pytest.raises(BaseException, match="out of range") as panic:
        AutoTokenizer.from_pretrained(folder)
    assert not isinstance(panic.value, Exception)  # this is what has to be caught
    assert "panicked" in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"tokenizer\.json is damaged") as caught:
        load_tokenizer(resolve(str(folder)))
    assert caught.value.fix
    assert capfd.readouterr() == ("", "")


def test_what_else_is_said_while_a_tokenizer_is_loaded_is_still_said(folder: Path) -> None:
    wrong = {"tokenizer_class": "LlamaTokenizerFast"}
    edit(folder / "tokenizer_config.json", lambda values: values.update(wrong))
    code = (
        "import sys; from duiti.model.load import load_tokenizer, resolve;"
        "load_tokenizer(resolve(sys.argv[1])); print('loaded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    )
    assert "TokenizersBackend" in done.stderr
    assert done.stdout == "loaded\n"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "5", '{"model": {}}', '{"version": "1.0"', "\x00\x01"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_a_tokenizer_that_is_none_is_a_usage_error(
    folder: Path, name: str, text: str
) -> None:
    (folder / name).write_text(text)
    source = resolve(str(folder))
    if name == "tokenizer_config.json" and text.startswith("{") and text.endswith("}"):
        load_tokenizer(source)  # nothing in it is needed
        return
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        load_tokenizer(source)
    assert caught.value.why


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"model_type": 5}', "\x00\x01"])
def test_a_config_that_is_none_is_a_usage_error(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_config(resolve(str(folder)))


@pytest.mark.parametrize(
    ("stated", "found"), [(300, 300), (10**30, 512), ("many", 512), (-1, 512), (None, 512)]
)
def test_the_longest_text_is_what_positions_and_tokenizer_allow(
    folder: Path, stated: object, found: int
) -> None:
    edit(folder / "tokenizer_config.json", lambda values: values.update(model_max_length=stated))
    source = resolve(str(folder))
    assert longest_text(load_config(source), load_tokenizer(source)) == found
