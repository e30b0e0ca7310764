"""One process that does everything, for the tests that ask what it did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from traced import TRAIN, Traced, run_traced, write_canary_rows


@pytest.fixture(scope="session")
def everything(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """Every verb on a model in a folder, on the embedded one, and on the runs that come of it."""
    folder = tmp_path_factory.mktemp("every verb")
    write_canary_rows(folder / "rows.jsonl")
    shutil.copytree(llama_dir, folder / "model")
    return run_traced(
        folder,
        ["check", "rows.jsonl", "-m", "./model", "--show", "0"],
        ["check", "rows.jsonl", "-m", "tiny", "--show", "0", "--html", "page.html"],
        ["train", "rows.jsonl", "-m", "./model", "-o", "run", *TRAIN],
        ["chat", "run", "-p", "Hello"],
        ["chat", "tiny", "-p", "Hello", "--max-new-tokens", "4"],
        ["eval", "run", "rows.jsonl", "--json"],
        ["export", "merged", "run", "-o", "merged"],
        ["chat", "merged", "-p", "Hello", "--max-new-tokens", "4"],
        ["runs"],
        ["doctor"],
        ["--version"],
    )
