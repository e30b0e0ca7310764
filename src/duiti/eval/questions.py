"""Trained answers as questions, and the model's own answers to them, batch by batch.

    for asked, answer in answers(model, examples, max_new_tokens=64): ...

Examples are read and answered some hundred at a time, so that memory does not grow with their
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from duiti.infer.generate import BATCH_TOKENS, Answer
from duiti.infer.model import Model
from duiti.training.out_of_memory import is_out_of_memory, release_memory
from duiti.types import IGNORE_INDEX, Example

WINDOW = 512
"""Questions that are answered before the next are read: enough to find many of like length."""
EXTRA = 8
MOST_EXTRA = 512
"""Tokens beyond the longest expected answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A trained answer as a question: the prompt's ids and the answer that is expected."""

    prompt: list[int]
    expected: str
    answer: tuple[int, ...] = ()
    """Ids of the expected answer, with its stop token where it is trained."""
    example: int = 0
    """Index of the example it belongs to, among those that were given."""
    num_expected: int = 0
    """Tokens of the expected answer, the stop token aside."""


def questions(examples: Sequence[Example], model: Model) -> list[Asked]:
    """Every trained answer of the examples, with the prompt that precedes it."""
    return [asked for number in range(len(examples)) for asked in _of(examples, number, model)]


def answer_limit(examples: Sequence[Example]) -> int:
    """Tokens to generate at most: twice the longest expected answer, enough to see that one does
    not stop, but no more than some hundred beyond it."""
    longest = max(_longest_answer(examples[i]) for i in range(len(examples)))
    return min(2 * longest, longest + MOST_EXTRA) + EXTRA


def answers(
    model: Model,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    compute_dtype: torch.dtype | None = None,
) -> Iterator[tuple[Asked, Answer]]:
    """Every question of the examples with the model's greedy answer.

    Args:
        compute_dtype: of the matrix products, where parameters are wider than those (as in
            training); None: the model runs as it is.
    """
    waiting: list[Asked] = []
    for number in range(len(examples)):
        waiting += _of(examples, number, model)
        if len(waiting) >= WINDOW or number + 1 == len(examples):
            yield from zip(
                waiting, _answered(model, waiting, max_new_tokens, compute_dtype), strict=True
            )
            waiting = []


def _answered(
    model: Model, asked: list[Asked], max_new_tokens: int, compute_dtype: torch.dtype | None
) -> list[Answer]:
    """Greedy answers; where memory runs out, once more in batches of half the size."""
    device = next(model.hf.parameters()).device
    is_low = compute_dtype not in (None, torch.float32)
    batch_tokens = BATCH_TOKENS
    while True:
        try:
            with torch.autocast(device.type, compute_dtype) if is_low else nullcontext():
                return model.generate(
                    [item.prompt for item in asked],
                    max_new_tokens=max_new_tokens,
                    batch_tokens=batch_tokens,
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or batch_tokens == 1:
                raise
        batch_tokens = batch_tokens // 2 if batch_tokens > 256 else 1
        release_memory(device)


def _of(examples: Sequence[Example], number: int, model: Model) -> list[Asked]:
    example = examples[number]
    ids, found = example.input_ids, []
    for start, end in _spans(example):
        answer = tuple(ids[start:end].tolist())
        said = answer[:-1] if answer[-1] in model.stop_ids else answer
        prompt = ids[:start].tolist()
        found.append(Asked(prompt, model.text(said), answer, number, len(said)))
    return found


def _longest_answer(example: Example) -> int:
    return max((end - start for start, end in _spans(example)), default=0)


def _spans(example: Example) -> list[tuple[int, int]]:
    """First token of each trained answer, and the one after its last."""
    is_answer = example.labels != IGNORE_INDEX
    starts = (is_answer[1:] & ~is_answer[:-1]).nonzero()[0] + 1
    spans = []
    for start in starts.tolist():
        behind = (~is_answer[start:]).nonzero()[0]
        spans.append((start, start + int(behind[0]) if len(behind) else len(is_answer)))
    return spans
