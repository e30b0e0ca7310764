"""Measure a model on rows: the loss of the expected answers, and scores of its own answers.

    scores, answers = score(load(run), examples)
    mean = held_out_loss(sft, examples)

The loss is the mean over all supervised tokens of all rows, each counted with its weight as in
training: it does not depend on how rows are batched. Nothing here moves a parameter or a random
stream of training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from duiti.data.batch import collate, lengths_of, micro_batches
from duiti.eval.metrics import METRICS
from duiti.infer.model import Model
from duiti.model.sft_model import SFTModel
from duiti.types import IGNORE_INDEX, Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One model on one set of rows."""

    loss: float
    """Weighted mean over supervised tokens, in nats."""
    metrics: dict[str, float]
    """Mean over answers, by metric; empty if nothing was generated."""
    stop_rate: float | None
    """Share of the answers that ended by a stop token."""

    def as_dict(self) -> dict[str, float]:
        """The machine-readable form."""
        values = {"loss": self.loss, **self.metrics}
        return values if self.stop_rate is None else {**values, "stop_rate": self.stop_rate}


@dataclass(frozen=True, slots=True)
class Asked:
    """A trained answer as a question: the prompt's ids and the answer that is expected."""

    prompt: list[int]
    expected: str


@torch.no_grad()
def held_out_loss(
    sft: SFTModel, examples: Sequence[Example], *, micro_batch_tokens: int = 4096
) -> float:
    """Mean loss over all supervised tokens, in nats. Leaves the model's mode as it was.

    It is what training minimizes, on other rows: a token counts with its weight, so that training
    and validation loss can be compared. Without weights it is the plain mean."""
    was_training = sft.training
    sft.eval()
    device = next(sft.parameters()).device
    # Summed on the device, so that a GPU is waited for once; in float64 where it has that.
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=wide, device=device)
    weight_sum = 0.0
    lengths = lengths_of(examples)
    try:
        for part in micro_batches(range(len(examples)), lengths, budget=micro_batch_tokens):
            loss, part_weight = sft(collate([examples[i] for i in part], device))
            total += loss
            weight_sum += part_weight
    finally:
        sft.train(was_training)
    return total.item() / weight_sum


def questions(examples: Sequence[Example], model: Model) -> list[Asked]:
    """Every trained answer of the examples, with the prompt that precedes it."""
    asked = []
    for example in examples:
        ids, is_answer = example.input_ids, example.labels != IGNORE_INDEX
        starts = (is_answer[1:] & ~is_answer[:-1]).nonzero()[0] + 1
        for start in starts.tolist():
            after = (~is_answer[start:]).nonzero()[0]
            answer = ids[start : start + after[0] if len(after) else None].tolist()
            if answer[-1] in model.stop_ids:
                answer.pop()
            asked.append(Asked(ids[:start].tolist(), model.text(answer)))
    return asked


def score(
    model: Model,
    examples: Sequence[Example],
    *,
    metrics: Collection[str] = ("exact_match",),
    is_packed: bool = True,
) -> tuple[Scores, list[str]]:
    """Scores of the model as it is now, and its answers (empty without metrics)."""
    dtype = next(model.hf.parameters()).dtype
    sft = SFTModel(model.hf, compute_dtype=dtype, is_packed=is_packed)
    loss = held_out_loss(sft, examples)
    if not metrics:
        return Scores(loss=loss, metrics={}, stop_rate=None), []
    asked = questions(examples, model)
    # Twice the longest expected answer: enough to see that one does not stop.
    limit = 2 * max(int((e.labels != IGNORE_INDEX).sum()) for e in examples) + 8
    answers = model.generate([item.prompt for item in asked], max_new_tokens=limit)
    texts = [model.text(answer.ids) for answer in answers]
    means = {
        name: sum(METRICS[name](t, a.expected) for t, a in zip(texts, asked, strict=True))
        / len(asked)
        for name in metrics
    }
    stopped = sum(answer.stopped for answer in answers) / len(answers)
    return Scores(loss=loss, metrics=means, stop_rate=stopped), texts
