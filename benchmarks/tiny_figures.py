"""What an embedded model can do and what it forgot: the figures that several benchmarks give."""

from __future__ import annotations

import json
import math
import random
from itertools import islice
from pathlib import Path

import torch
import transformers

import duiti
from duiti import tiny
from duiti.config import Config
from duiti.data.jobs import PrepareOptions
from duiti.data.prepare import prepare
from duiti.data.reading.sources import Source
from duiti.eval.evaluate import score
from duiti.fit import fit_memory
from duiti.infer.model import Model
from duiti.material import read_material
from duiti.plan import settle
from duiti.record import write_start
from duiti.tiny import DataName
from duiti.training.log import Talk
from duiti.workshop import Job, Workshop, set_up
from examples.tiny_world.text import HELDOUT_SEED, write_documents

NUM_QUESTIONS = 400
"""Of a kind, drawn with a fixed seed: a share of 98 % is known to within about 1.4 points."""
NUM_DOCUMENTS = 400
"""Held-out documents of the pretraining, some 40 tokens each."""


def versions() -> dict[str, str]:
    """Of what was measured with."""
    return {
        "duiti": duiti.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def not_begun(folder: Path, config: Config) -> tuple[Job, Workshop]:
    """A run in this folder, as it is before its first update."""
    material = read_material(config)
    config, reasons = settle(config, material)
    config, fit = fit_memory(config, material, reasons)
    write_start(folder, config, reasons, material)
    job = Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder)
    return job, set_up(job, Talk(quiet=True))


def exact(model: Model, kind: DataName) -> float:
    """Share of the questions of this kind that are answered exactly."""
    lines = tiny.data_path(kind).read_text(encoding="utf-8").splitlines()
    rows = random.Random(0).sample([json.loads(line) for line in lines], NUM_QUESTIONS)
    source = Source(name="<rows>", rows=rows)
    prepared = prepare([source], model.template, PrepareOptions(date=model.date))
    share = score(model, prepared.store).value("exact_match")
    assert share is not None  # there are questions
    return share


@torch.no_grad()
def perplexity(model: Model) -> float:
    """exp of the mean loss on held-out documents, by plain transformers: every token of a document
    is predicted from those before it, and its end too.

    The documents are of all kinds that the model was pretrained on (paragraphs, stories, talk),
    whole as it read them.
    """
    end = model.tokenizer.eos_token_id
    total = count = 0.0
    for text in islice(write_documents(HELDOUT_SEED), NUM_DOCUMENTS):
        ids = torch.tensor([[*model.tokenizer.encode(text), end]])
        total += float(model.hf(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return math.exp(total / count)
