"""A few mutations for every parser, the same in every run; `make fuzz` tries others, for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import fuzz
from targets import OURS, TARGETS, Target, manifest_seed, mutated

NATIVE = [name for name, target in TARGETS.items() if target.is_native]
NUM_INPUTS = 40


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in NATIVE])
def test_a_parser_answers_to_whatever_it_is_given(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seeds = target.seeds or (manifest_seed(tmp_path),)
    rng = random.Random(name)
    for seed in seeds:
        target.run(seed, tmp_path)
        for _ in range(NUM_INPUTS // len(seeds)):
            target.run(mutated(seed, target.words, rng), tmp_path)


@pytest.mark.parametrize("name", NATIVE)
def test_a_parser_that_could_crash_answers_in_a_child(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where findings would be kept
    assert fuzz(name, 1, 60, count=NUM_INPUTS) == ""


@pytest.mark.parametrize("name", TARGETS)
def test_good_input_is_good(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for seed in target.seeds or (manifest_seed(tmp_path),):
        if seed:
            target.parse(seed, tmp_path)


def test_a_parser_that_fails_is_a_finding(tmp_path: Path) -> None:
    def fails(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        Target("broken", (), (), fails).run(b"", tmp_path)
    assert KeyError not in OURS
