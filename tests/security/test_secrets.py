"""Secrets of the environment, and what rows say, stay where they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from traced import ROW_CANARY, SECRETS, TRAIN, Traced, run_traced, write_canary_rows

from duiti.config import keys

CANARIES = [ROW_CANARY, *SECRETS.values()]


def leaks(traced: Traced, *, but: tuple[str, ...] = ()) -> list[str]:
    """Files, and streams, that hold a canary. The data itself may, and what `but` names."""
    found = [
        f"{name}: {line}"
        for name, text in (("stdout", traced.stdout), ("stderr", traced.stderr))
        for line in text.splitlines()
        if any(canary in line for canary in CANARIES)
    ]
    for path in traced.folder.rglob("*"):
        name = path.relative_to(traced.folder).as_posix()
        if not path.is_file() or name.startswith(("cache/", *but)):
            continue
        content = path.read_bytes()
        found += [f"{name}: {canary}" for canary in CANARIES if canary.encode() in content]
    return found


def test_nothing_that_every_verb_writes_or_says_holds_a_secret_or_a_row(everything: Traced) -> None:
    """rows.jsonl is the data; the page shows rows, token by token, for that it is asked for."""
    assert leaks(everything, but=("rows.jsonl",)) == []
    assert ROW_CANARY in (everything.folder / "rows.jsonl").read_text()


def test_the_prepared_data_holds_no_secret(everything: Traced) -> None:
    for path in (everything.folder / "cache").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [s for s in SECRETS.values() if s.encode() in content]


REFUSES = "{{ raise_exception('no: ' + messages[0].content) }}"
FAILS = "{{ messages[0].content + 1 }}"


@pytest.fixture(scope="session")
def failures(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """Everything that can go wrong with rows in hand, with tracebacks asked for."""
    folder = tmp_path_factory.mktemp("failures")
    write_canary_rows(folder / "rows.jsonl")
    good = (folder / "rows.jsonl").read_text()
    bad = [
        '{"prompt": "' + ROW_CANARY + '", "response": ',
        json.dumps({"prompt": ROW_CANARY, "response": {"a": ROW_CANARY}}),
        json.dumps({"prompt": ROW_CANARY, "response": f"{ROW_CANARY}\0"}),
        json.dumps({f"{ROW_CANARY} is no name": 1, "response": "x"}),
        json.dumps({"messages": [{"role": ROW_CANARY, "content": ROW_CANARY}]}),
        json.dumps([ROW_CANARY]),
        json.dumps({"prompt": f"{ROW_CANARY} <|im_start|>", "response": f"{ROW_CANARY}<|im_end|>"}),
    ]
    (folder / "rows-bad.jsonl").write_text(good + "\n".join(bad) + "\n")
    (folder / "rows.csv").write_text(f'prompt,response\n{ROW_CANARY},"{ROW_CANARY}"{ROW_CANARY}\n')
    (folder / "rows-filter.py").write_text("def keep(row):\n    raise ValueError(row['prompt'])\n")
    for name in ("model", "refuses", "fails", "poisoned"):
        shutil.copytree(llama_dir, folder / name)
    (folder / "refuses" / "chat_template.jinja").write_text(REFUSES)
    (folder / "fails" / "chat_template.jinja").write_text(FAILS)
    tensors = load_file(folder / "poisoned" / "model.safetensors")
    # Finite numbers, of which the loss is not.
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], 3e38)
    save_file(tensors, folder / "poisoned" / "model.safetensors", metadata={"format": "pt"})
    debug = ["--debug"]
    return run_traced(
        folder,
        ["check", "rows-bad.jsonl", "-m", "./model", "--show", "0", *debug],
        ["train", "rows-bad.jsonl", "-m", "./model", "-o", "bad", *TRAIN, *debug],
        ["train", "rows-bad.jsonl", "-m", "./model", "-o", "drop", "--on-bad-row", "drop", *TRAIN],
        ["check", "rows.csv", "-m", "./model", "--show", "0", *debug],
        ["check", "rows.jsonl", "-m", "./model", "--filter", "rows-filter.py:keep", "--show", "0"],
        ["train", "rows.jsonl", "-m", "./refuses", "-o", "refuses-run", *TRAIN, *debug],
        ["train", "rows.jsonl", "-m", "./fails", "-o", "fails-run", *TRAIN, *debug],
        ["train", "rows.jsonl", "-m", "./poisoned", "-o", "nan", *TRAIN, *debug],
        ["train", "rows.jsonl", "-m", "./model", "--max-length", "2", "-o", "cut", *TRAIN, *debug],
        ["chat", "./refuses", "-p", ROW_CANARY[:5], *debug],
    )


def test_failures_tell_where_and_never_what(failures: Traced) -> None:
    given = ("rows.jsonl", "rows-bad.jsonl", "rows.csv", "rows-filter.py")
    assert leaks(failures, but=given) == []
    assert "crash" not in failures.codes, failures.stderr[-3000:]
    assert failures.codes[:2] == ["3", "3"]
    assert "rows-bad.jsonl:13" in failures.stderr
    assert failures.codes[5:8].count("0") == 0


def test_no_setting_takes_a_secret() -> None:
    """So the command line, which `env.json` keeps, holds none."""
    words = ("token=", "secret", "password", "api_key", "credential")
    assert [key for key in keys() if any(word in f"{key}=" for word in words)] == []
