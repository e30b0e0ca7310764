"""A tokenizer.json may hold patterns that do not come to an end, and orders to fill memory."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_faults import in_child

from duiti.data.templates.template import load_template
from duiti.errors import DuitiError, UsageError
from duiti.model.load import load_tokenizer, resolve
from duiti.model.tokenizer_patterns import KNOWN, screen_patterns


def limited(folder: Path) -> str:
    """What some text is, or the error, in a child that may take a gigabyte more and a minute."""
    answer = folder / "answer.txt"

    def answered() -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        try:
            text = str(load_tokenizer(resolve(str(folder))).encode("a b"))
        except DuitiError as error:
            text = str(error)
        answer.write_text(text, encoding="utf-8")

    assert in_child(answered, lambda: None) == 0
    return answer.read_text(encoding="utf-8")


@pytest.fixture
def folder(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "model"))


def with_part(folder: Path, **parts: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    return folder


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(\p{L}+\s?)+$", r"(a|a)*$"])
def test_a_pattern_that_does_not_come_to_an_end_is_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="does not come to an end"):
        load_tokenizer(resolve(str(with_part(folder, pre_tokenizer=split(pattern)))))


def test_it_is_found_wherever_it_stands(folder: Path) -> None:
    hidden = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    nested = {"type": "Sequence", "normalizers": [{"type": "NFC"}, hidden]}
    with pytest.raises(UsageError, match="does not come to an end"):
        screen_patterns(with_part(folder, normalizer=nested), "x")
    escaped = (folder / "tokenizer.json").read_text().replace('"Regex"', '"Re\\u0067ex"')
    (folder / "tokenizer.json").write_text(escaped)
    with pytest.raises(UsageError, match="does not come to an end"):
        screen_patterns(folder, "x")


def test_a_pattern_without_measure_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="longer than patterns are"):
        screen_patterns(with_part(folder, pre_tokenizer=split("a|" * 10_000)), "x")
    many = {"type": "Sequence", "pretokenizers": [split("a")] * 200}
    with pytest.raises(UsageError, match="longer than patterns are"):
        screen_patterns(with_part(folder, pre_tokenizer=many), "x")


def test_what_is_not_a_tokenizer_is_left_to_the_library_to_say(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_tokenizer(resolve(str(with_part(folder, pre_tokenizer=split("(")))))


@pytest.mark.parametrize("pattern", [*sorted(KNOWN), r"\d+|\s+|[^\d\s]+"])
def test_patterns_of_real_tokenizers_pass(folder: Path, pattern: str) -> None:
    load_tokenizer(resolve(str(with_part(folder, pre_tokenizer=split(pattern)))))


def test_padding_and_cutting_that_a_file_asks_for_are_not_done(folder: Path) -> None:
    """Padding to 10^12 would take all memory, cutting to three would lose the rest."""
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"}  # fmt: skip
    cutting = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    with_part(folder, padding=padding, truncation=cutting)
    assert limited(folder).startswith("[")
    from duiti.data.jobs import make_encoder

    tokenizer = load_tokenizer(resolve(str(folder)))
    encoder = make_encoder(load_template("human-assistant", tokenizer))
    from duiti.types import Message

    assert len(encoder.prompt_ids([Message(role="user", content="one two three four")], [])) > 3


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": -1}]}',
        '{"version": "1.0", "model": {"type": "Unigram", "vocab": [], "unk_id": 9}}',
        '{"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 99999999999999}}}',
    ],
)
def test_a_file_that_is_none_ends_in_an_error_in_bounded_time_and_memory(
    folder: Path, text: str
) -> None:
    (folder / "tokenizer.json").write_text(text)
    assert str(folder) in limited(folder)
