"""All verbs in one process, under a tracer of connections, with secrets in its environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SECRETS = {
    "HF_TOKEN": "hf_canaryTokenOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "canaryOfTheCloud/wJalrXUtnFEMI",
    "OPENAI_API_KEY": "sk-canaryOfAnApi",
    "DATABASE_URL": "postgres://me:canaryPassword@host/db",
    "MY_SETTING": "canaryOfNoName",
}
ROW_CANARY = "zebrafinch-8841"
"""A word that stands in every row."""

VERBS = """
import json, sys, traceback
from duiti.cli import main
for tokens in json.load(sys.stdin):
    print("===", *tokens, flush=True)
    print("===", *tokens, file=sys.stderr, flush=True)
    try:
        main(tokens)
    except SystemExit as end:
        print("exit", end.code, flush=True)
    except BaseException:
        traceback.print_exc()
        print("exit crash", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Traced:
    """What a process did."""

    folder: Path
    """In which it ran."""
    stdout: str
    stderr: str
    connections: tuple[str, ...]
    """What it, and its children, tried to reach."""

    @property
    def codes(self) -> list[str]:
        return [line[5:] for line in self.stdout.splitlines() if line.startswith("exit ")]


def run_traced(folder: Path, *commands: list[str], **environment: str) -> Traced:
    """Command lines, one after the other in one process that starts in `folder`."""
    tracer = folder / "tracer"
    shutil.copytree(Path(__file__).with_name("tracer"), tracer)
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {
        **SECRETS,
        "PYTHONPATH": str(tracer),
        "HF_HOME": str(folder / "hub"),
        "DUITI_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", VERBS],
        input=json.dumps(commands),
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    notes = tracer / "connections.txt"
    found = tuple(notes.read_text().splitlines()) if notes.exists() else ()
    shutil.rmtree(tracer)
    return Traced(folder, done.stdout, done.stderr, found)


def write_canary_rows(path: Path, count: int = 12) -> None:
    """Rows that all hold the canary."""
    rows = [
        {"prompt": f"What is {ROW_CANARY} number {n}?", "response": f"It is {ROW_CANARY} {n}."}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


TRAIN = ["--batch-size", "4", "--epochs", "1", "--method", "lora", "--device", "cpu", "--plain"]
