"""What a run finds out about itself: before its first update, while it trains, and at its end.

    before = look_before(shop, material, talk)            # the model is still its base
    figures = look(shop, material, before, folder, step, talk)  # in the loop: val_loss, …
    look_after(shop, material, before, state, folder, talk)

Validation rows tell what was learned, the anchor what was forgotten (`duiti.eval.drift`). Nothing
here moves a weight or a random stream: a run that is measured and one that is not end with the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from duiti.errors import MetricError
from duiti.eval.anchor import Anchor, make_anchor, read_anchor
from duiti.eval.drift import Watch, anchor_dict
from duiti.eval.evaluate import (
    Asked,
    Scores,
    evaluation_dict,
    held_out_loss,
    score,
    val_metrics,
)
from duiti.eval.judge import held_out, write_rows
from duiti.eval.questions import answers
from duiti.eval.strength import STRENGTH_FILE, sweep_strength
from duiti.eval.token_losses import answer_token_losses, token_texts
from duiti.infer.generate import Answer
from duiti.material import Material
from duiti.run import (
    ANCHOR_FILE,
    ANSWERS_FILE,
    EVALUATION_FILE,
    SAMPLES_FILE,
    read_records,
    write_json,
    write_jsonl,
)
from duiti.training.log import Talk
from duiti.types import Example, Json
from duiti.workshop import Workshop

NUM_ROWS = 64
"""Validation rows that are answered before and after training; `duiti eval` takes all."""
NUM_SAMPLES = 8
"""Questions whose answers are kept to be read."""
NUM_WATCHED = 2
"""Rows whose answers are kept each time that the model is measured."""
WATCHED_TOKENS = 128
"""Of such an answer, at most."""
METRICS = ("exact_match", "token_f1")
"""Of the answers, where the run names no others."""


@dataclass(slots=True, kw_only=True)
class Answered:
    """What a model made of the rows."""

    scores: Scores
    asked: list[Asked] = field(default_factory=list)
    """The first NUM_SAMPLES questions."""
    texts: list[str] = field(default_factory=list)
    """Its answers to them."""
    losses: list[list[float]] = field(default_factory=list)
    """Of the tokens of the answers that are expected, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What is known of the model before its first update."""

    rows: tuple[Example, ...]
    """Of validation, which are answered; evenly over all of them."""
    answered: Answered | None
    """None: there are no such rows."""
    anchor: Anchor | None
    watch: Watch | None
    """None: forgetting is not measured."""


def look_before(shop: Workshop, material: Material, talk: Talk) -> Before:
    """Measure the base. The model must not have been trained yet.

    Raises:
        UsageError: there is no anchor to be had.
    """
    anchor = make_watched(shop, material)
    watch = None
    if anchor is not None:
        watch = Watch(shop.sft, anchor, is_adapter=shop.config.method == "lora")
        talk.say("anchor", f"{anchor.describe()}: what is forgotten is measured on it")
    rows = tuple(spread(material.val, NUM_ROWS))
    return Before(
        rows=rows,
        answered=answer(shop, rows) if rows else None,
        anchor=anchor,
        watch=watch,
    )


def make_watched(shop: Workshop, material: Material) -> Anchor | None:
    """The text on which forgetting is measured, as the run's settings say."""
    config = shop.config
    if config.anchor == "none":
        return None
    if config.anchor == "auto":
        return make_anchor(shop.sft.model, material.tokenizer, seed=config.seed,
                           compute_dtype=shop.sft.compute_dtype)  # fmt: skip
    assert config.max_length != "auto"  # it is settled
    return read_anchor(Path(config.anchor), material.tokenizer, max_length=config.max_length)


def look(
    shop: Workshop, material: Material, before: Before, folder: Path, step: int, talk: Talk
) -> dict[str, float]:
    """The model as it is now, in the figures of `metrics.jsonl`. What it answers to the first
    validation rows is kept in `answers.jsonl`. A metric that fails on an answer costs its figure,
    not the run."""
    figures: dict[str, float] = {}
    if material.val:
        figures["val_loss"] = held_out_loss(shop.sft, material.val)
        try:
            metrics = val_metrics(shop.tuned, shop.sft, material.val, shop.config.metrics)
            figures |= {f"val_{name}": value for name, value in metrics.items()}
        except MetricError as error:
            talk.say("metric", f"left out behind update {step:,}: {error.what}")
        _keep_answers(shop, before, folder, step)
    if before.watch is not None:
        drift = before.watch.measure()
        figures |= {"anchor_kl": drift.kl, "anchor_nll_change": drift.nll_change}
    return figures


def look_after(
    shop: Workshop,
    material: Material,
    before: Before,
    folder: Path,
    talk: Talk,
    *,
    is_stopping: Callable[[], bool],
) -> None:
    """Measure what was trained, and write it into the run's folder.

    Args:
        is_stopping: asked between two measurements; then those that are left are left out.
    """
    parts: list[tuple[str, Callable[[], None]]] = []
    if before.answered is not None:
        base = before.answered
        parts.append(("evaluation", lambda: _write_evaluation(shop, before, base, folder, talk)))
    if before.anchor is not None and before.watch is not None:
        anchor, watch = before.anchor, before.watch
        parts.append(("forgetting", lambda: _write_anchor(anchor, watch, folder)))
    if shop.config.method == "lora" and (before.rows or before.watch is not None):
        parts.append(("strength", lambda: _write_strength(shop, before, folder)))
    parts.append(("rows", lambda: _write_rows(shop, material, folder)))
    for name, make in parts:
        if is_stopping():
            talk.say("measure", f"{name} is left out, as the run was asked to stop")
            continue
        make()


def answer(
    shop: Workshop, rows: Sequence[Example], metrics: Sequence[str] | None = None
) -> Answered:
    """The model as it is now, on rows, by the metrics of the run or by others.

    Raises:
        MetricError: a metric of the user's fails on an answer.
    """
    asked: list[Asked] = []
    texts: list[str] = []

    def see(question: Asked, given: Answer, text: str) -> None:
        if len(asked) < NUM_SAMPLES:
            asked.append(question)
            texts.append(text)

    dtype = shop.sft.compute_dtype
    scores = score(shop.tuned, rows, metrics=metrics or shop.config.metrics or METRICS,
                   is_packed=shop.sft.is_packed, compute_dtype=dtype, seen=see)  # fmt: skip
    losses = answer_token_losses(shop.tuned, asked, compute_dtype=dtype)
    return Answered(scores=scores, asked=asked, texts=texts, losses=losses)


def _keep_answers(shop: Workshop, before: Before, folder: Path, step: int) -> None:
    """One more line of `answers.jsonl`: how the answers to the same questions change. Lines of
    later updates, which a run that goes on makes again, are not kept."""
    path = folder / ANSWERS_FILE
    told = list(answers(shop.tuned, before.rows[:NUM_WATCHED], max_new_tokens=WATCHED_TOKENS,
                        compute_dtype=shop.sft.compute_dtype))  # fmt: skip
    line = {
        "step": step,
        "answers": [
            {"prompt": shop.tuned.prompt_text(asked.prompt), "answer": shop.tuned.text(given.ids)}
            for asked, given in told
        ],
    }
    earlier = [kept for kept in read_records(path)[0] if kept["step"] < step]
    write_jsonl(path, [*earlier, line])


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them at most, evenly over all."""
    places = np.unique(np.linspace(0, max(0, len(examples) - 1), count).astype(int))
    return [examples[place] for place in places.tolist()] if len(examples) else []


def _write_evaluation(
    shop: Workshop, before: Before, base: Answered, folder: Path, talk: Talk
) -> None:
    try:
        tuned = answer(shop, before.rows)
    except MetricError as error:
        others = [name for name in METRICS if name in base.scores.measures] or METRICS
        talk.say("metric", f"figures of answers are left out: {error.what}")
        tuned = answer(shop, before.rows, others)
    found = evaluation_dict(base.scores, tuned.scores, n=len(before.rows))
    write_json(folder / EVALUATION_FILE, found)
    lines = []
    for number, asked in enumerate(base.asked):
        was, now = base.losses[number], tuned.losses[number]
        texts = token_texts(shop.tuned, asked.answer)
        line: dict[str, Json] = {
            "prompt": shop.tuned.prompt_text(asked.prompt),
            "expected": asked.expected,
            "base": base.texts[number],
            "tuned": tuned.texts[number],
            "base_loss": float(np.mean(was)),
            "tuned_loss": float(np.mean(now)),
            "tokens": [
                {"text": text, "before": one, "after": other}
                for text, one, other in zip(texts, was, now, strict=True)
            ],
        }
        lines.append(line)
    write_jsonl(folder / SAMPLES_FILE, lines)


def _write_anchor(anchor: Anchor, watch: Watch, folder: Path) -> None:
    drift = watch.measure()
    write_json(folder / ANCHOR_FILE, anchor_dict(anchor, drift))


def _write_strength(shop: Workshop, before: Before, folder: Path) -> None:
    sweep = sweep_strength(shop.sft, before.rows, before.watch)
    write_json(folder / STRENGTH_FILE, sweep.as_dict())


def _write_rows(shop: Workshop, material: Material, folder: Path) -> None:
    write_rows(folder, shop.examples, seed=shop.config.seed,
               held_out=held_out(shop.sft, material.val))  # fmt: skip
