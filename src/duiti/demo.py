"""The demo: a base model that only continues text learns to answer, on questions it was never
trained on.

`tiny` has read running text about a small world (`duiti.tiny`). It is fine-tuned on questions about
60 % of its entities and then asked about the other 40 %, in trained and in new words; and, as a
control, about entities that it never read of, which nobody could know.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from duiti import tiny
from duiti.api import evaluate
from duiti.config import Config
from duiti.infer.model import Model, load
from duiti.report.page import REPORT_FILE
from duiti.run import VERDICT_FILE, Run, write_json
from duiti.sft import finetune
from duiti.tiny import DataName
from duiti.training.log import Talk, clock

NUM_QUESTIONS = 200
"""Of each kind: a sample of the shipped ones, drawn with a fixed seed. `duiti eval` takes all."""
KINDS: dict[DataName, str] = {
    "heldout": "entities never asked about in training",
    "unseen": "… in words never used in training",
    "control": "entities that it never read of",
}
SHOWN = 4
RECIPE: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 4e-3}
"""One pass in many small updates: a model this narrow takes large steps well."""


def run_demo(output: str) -> Run:
    """Train, ask, and show both on stdout. Leaves a run in `output`."""
    console, talk = Console(highlight=False), Talk()
    # The model is so small that waking a second thread costs more than it brings.
    torch.set_num_threads(1)
    started = time.perf_counter()
    config = Config(
        data=(str(tiny.data_path("train")),),
        val=f"{tiny.data_path('heldout')}#{NUM_QUESTIONS}",
        model="tiny",
        output=output,
        **RECIPE,
    )
    run = finetune(config, talk=talk)
    trained = time.perf_counter()
    model = load(run)

    talk.say("asking", f"{NUM_QUESTIONS} questions of each kind, before and after")
    table = Table("exact answers", "before", "after", "", box=None, padding=(0, 2, 0, 0))
    results = {}
    for kind, meaning in KINDS.items():
        found = evaluate(model, _sample(kind))
        results[kind] = found
        before, after = (found[who]["exact_match"] for who in ("base", "tuned"))
        table.add_row(kind, f"{before:.1%}", f"{after:.1%}", meaning)
    write_json(run.path / "demo.json", results)

    console.print()
    _show_answers(model, console)
    console.print(table)
    console.print()
    seconds = time.perf_counter() - started
    spent = f"{clock(trained - started)} to train, {clock(seconds)} in all"
    console.print("The facts were in the running text; training taught it to answer.", spent)
    console.print()
    console.print(str(run.read_json(VERDICT_FILE)["sentence"]), style="bold", soft_wrap=True)
    console.print(f"The whole report: {run.path / REPORT_FILE}     (open it in a browser)")
    console.print(f"Ask it yourself:  duiti chat {run.path}     (/both shows base and tuned)")
    return run


def _show_answers(model: Model, console: Console) -> None:
    """A few held-out questions, both languages, with both answers."""
    for row in _sample("heldout")[:SHOWN]:
        question = [{"role": "user", "content": row["prompt"]}]
        with model.base():
            before = model.chat(question, max_new_tokens=40)
        after = model.chat(question, max_new_tokens=80)
        for label, text in (("Q", row["prompt"]), ("before", before), ("after", after)):
            style = "bold" if label == "Q" else "green" if label == "after" else "dim"
            console.print(f"{label:>7}  ", end="")
            console.print(" ".join(text.split()), style=style, markup=False, soft_wrap=True)
        console.print()


def _sample(kind: DataName) -> list[dict[str, str]]:
    lines = Path(tiny.data_path(kind)).read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, str]] = [json.loads(line) for line in lines]
    return random.Random(0).sample(rows, NUM_QUESTIONS)
