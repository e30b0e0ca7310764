"""Measure a model on rows: the loss of the expected answers, and scores of its own answers.

    tuned = score(model, examples, metrics=("exact_match",))
    with model.base():
        base = score(model, examples, metrics=("exact_match",))
    evaluation_dict(base, tuned, n=len(examples))
    mean = held_out_loss(sft, examples)

The loss is the mean over all supervised tokens of all rows, each counted with its weight as in
training: it does not depend on how rows are batched. What is kept of a row is a few numbers.
Nothing here moves a parameter or a random stream of training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from duiti.data.batch import collate, lengths_of, micro_batches
from duiti.errors import MetricError
from duiti.eval.bootstrap import Floats, Interval, interval, resampled
from duiti.eval.language import is_other_language
from duiti.eval.metrics import Metric, find_metrics, quotient
from duiti.eval.questions import Asked, answer_limit, answers, questions
from duiti.eval.token_losses import example_sums
from duiti.infer.generate import Answer
from duiti.infer.model import Model
from duiti.model.sft_model import SFTModel
from duiti.types import Example

__all__ = [
    "Asked",
    "Scores",
    "compare",
    "evaluation_dict",
    "held_out_loss",
    "questions",
    "score",
    "val_metrics",
]

VAL_ROWS = 200
"""Rows that are answered while training, at most."""
OF_ANSWERS = ("stop_rate", "length_ratio", "empty", "other_language")
"""What is told of every generated answer, whatever the metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A figure, as sums over rows."""

    sums: Floats
    """[U, K] of each row of the data; several examples may have been made of one."""
    value: Callable[[Floats], Floats]
    """[…, K] sums to […] figures; NaN where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One model on one set of rows."""

    measures: dict[str, Measure]
    """loss, perplexity, token_accuracy; and where answers were generated the metrics, `stop_rate`,
    `length_ratio`, `empty` and `other_language`."""
    supervised_tokens: int

    def value(self, name: str) -> float | None:
        """The figure over all rows; None where there is none."""
        measure = self.measures[name]
        return _finite(measure.value(measure.sums.sum(axis=0)))

    def of_rows(self, name: str) -> Floats:
        """[U] the figure of each row alone."""
        measure = self.measures[name]
        return measure.value(measure.sums)

    def as_dict(self) -> dict[str, float | None]:
        """The machine-readable form."""
        return {name: self.value(name) for name in self.measures}


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


def score(
    model: Model,
    examples: Sequence[Example],
    *,
    metrics: Collection[str] = ("exact_match",),
    is_packed: bool = True,
    compute_dtype: torch.dtype | None = None,
    max_new_tokens: int | None = None,
    seen: Callable[[Asked, Answer, str], None] | None = None,
) -> Scores:
    """Scores of the model as it is now.

    Args:
        metrics: names; without any, nothing is generated.
        is_packed: documents may share a pass (`why_alone`).
        compute_dtype: of the matrix products, where parameters are wider than those (as in
            training); None: the dtype of the parameters.
        max_new_tokens: of an answer; None: what `answer_limit` says.
        seen: is shown every question with the answer and its text; nothing keeps them.

    Raises:
        UsageError: a metric that is none, or one of the user's that failed.
    """
    found = find_metrics(metrics)
    dtype = compute_dtype or next(model.hf.parameters()).dtype
    sft = SFTModel(model.hf, compute_dtype=dtype, is_packed=is_packed)
    sums = example_sums(sft, examples)
    units = _units(examples)
    measures = {
        "loss": np.stack([sums.losses, sums.weights], axis=1),
        "perplexity": np.stack([sums.losses, sums.weights], axis=1),
        "token_accuracy": np.stack([sums.hits, sums.tokens], axis=1),
    }
    values: dict[str, Callable[[Floats], Floats]]
    values = {"loss": quotient, "perplexity": _perplexity, "token_accuracy": quotient}
    if found:
        limit = max_new_tokens or answer_limit(examples)
        told = _of_answers(model, examples, found, limit, compute_dtype, seen)
        measures |= told
        values |= {metric.name: metric.value for metric in found}
        values |= dict.fromkeys(OF_ANSWERS, quotient)
    return Scores(
        measures={
            name: Measure(sums=_by_unit(own, units), value=values[name])
            for name, own in measures.items()
        },
        supervised_tokens=int(sums.tokens.sum()),
    )


def val_metrics(
    model: Model, sft: SFTModel, examples: Sequence[Example], metrics: Collection[str]
) -> dict[str, float]:
    """The metrics alone, on at most VAL_ROWS examples spread evenly: cheap enough to be asked while
    training. Those that do not exist (nothing to divide by) are left out."""
    found = find_metrics(metrics)
    if not found or not len(examples):
        return {}
    chosen = np.unique(np.linspace(0, len(examples) - 1, VAL_ROWS).astype(int)).tolist()
    rows = [examples[i] for i in chosen]
    told = _of_answers(model, rows, found, answer_limit(rows), sft.compute_dtype, None)
    figures = {m.name: _finite(m.value(told[m.name].sum(axis=0))) for m in found}
    return {name: figure for name, figure in figures.items() if figure is not None}


def compare(base: Scores, tuned: Scores, *, seed: int = 0) -> dict[str, Interval]:
    """How each figure changed, tuned − base, with its 95 % interval by a paired bootstrap."""
    names = [name for name in base.measures if name in tuned.measures]
    before = [base.measures[name] for name in names]
    after = [tuned.measures[name] for name in names]
    drawn_before = resampled(np.concatenate([m.sums for m in before], axis=1), seed=seed)
    drawn_after = resampled(np.concatenate([m.sums for m in after], axis=1), seed=seed)
    changes, start = {}, 0
    for name, one, other in zip(names, before, after, strict=True):
        own = slice(start, start + one.sums.shape[1])
        start = own.stop
        point = other.value(other.sums.sum(axis=0)) - one.value(one.sums.sum(axis=0))
        draws = other.value(drawn_after[:, own]) - one.value(drawn_before[:, own])
        changes[name] = interval(float(point), draws)
    return changes


def evaluation_dict(base: Scores, tuned: Scores | None, *, n: int) -> dict[str, object]:
    """What `evaluation.json` holds and `duiti eval --json` prints.

    Args:
        n: rows that were measured on.
    """
    changes = {} if tuned is None else compare(base, tuned)
    return {
        "n": n,
        "supervised_tokens": base.supervised_tokens,
        "base": base.as_dict(),
        "tuned": None if tuned is None else tuned.as_dict(),
        "change": {name: change.as_dict() for name, change in changes.items()},
    }


def _of_answers(
    model: Model,
    examples: Sequence[Example],
    metrics: tuple[Metric, ...],
    limit: int,
    compute_dtype: torch.dtype | None,
    seen: Callable[[Asked, Answer, str], None] | None,
) -> dict[str, Floats]:
    """[E, K] sums of each example, by measure."""
    sums = {metric.name: np.zeros((len(examples), metric.num_sums)) for metric in metrics}
    sums |= {name: np.zeros((len(examples), 2)) for name in OF_ANSWERS}
    asking = answers(model, examples, max_new_tokens=limit, compute_dtype=compute_dtype)
    for asked, answer in asking:
        text = model.text(answer.ids)
        for metric in metrics:
            try:
                sums[metric.name][asked.example] += metric.sums(text, asked.expected)
            except MetricError as error:
                where = examples[asked.example].origin
                what = f"{where}: {error.what}"
                raise MetricError(what, why=error.why, fix=error.fix) from None
        is_other = is_other_language(text, asked.expected)
        sums["stop_rate"][asked.example] += answer.stopped, 1
        sums["length_ratio"][asked.example] += len(answer.ids), asked.num_expected
        sums["empty"][asked.example] += not text.strip(), 1
        sums["other_language"][asked.example] += is_other, 1
        if seen is not None:
            seen(asked, answer, text)
    return sums


def _units(examples: Sequence[Example]) -> np.ndarray:
    """[E] which row of the data each example was made of: those of a row stand side by side."""
    units = np.zeros(len(examples), np.int64)
    before = None
    for number in range(len(examples)):
        origin = examples[number].origin
        units[number] = units[number - 1] + (origin != before) if number else 0
        before = origin
    return units


def _by_unit(sums: Floats, units: np.ndarray) -> Floats:
    found = np.zeros((int(units[-1]) + 1 if len(units) else 0, sums.shape[1]))
    np.add.at(found, units, sums)
    return found


def _perplexity(sums: Floats) -> Floats:
    with np.errstate(over="ignore"):
        found: Floats = np.exp(quotient(sums))
    return found


def _finite(figure: Floats) -> float | None:
    return float(figure) if np.isfinite(figure) else None
