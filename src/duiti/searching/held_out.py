"""Rows that a short training is judged by, and its loss on each of them.

    chosen, held_out = apart(train, val, seed=0)        # of train, where there is no val
    rows = with_rehearsed(examples, len(train), chosen)
    losses = row_losses(sft, held_out)
    losses.mean, losses.change(before), losses.error_of_change(before)

The mean over all tokens is that of `held_out_loss`. What chance has to do with it is judged row by
row: tokens of one row are no independent evidence, rows are. Two models are compared on the same
rows, so that what makes a row hard for both of them cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duiti.data.repeats.duplicates import find_duplicates
from duiti.data.repeats.split import Indices, split
from duiti.data.storage.store import ExampleStore
from duiti.errors import UsageError
from duiti.eval.bootstrap import Floats, Interval, interval, resampled
from duiti.eval.token_losses import example_sums
from duiti.model.sft_model import SFTModel
from duiti.types import Example

SHARE = 0.1
"""Of the rows to train on, held out where there is nothing to validate with."""
FEWEST, MOST = 16, 512
"""Rows that are held out or measured, at least and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLosses:
    """A model on some rows."""

    sums: Floats
    """[E] the weighted sum of the losses of each row's supervised tokens, in nats."""
    weights: Floats
    """[E] the sum of their weights; the same for every model."""

    @property
    def mean(self) -> float:
        """Over all supervised tokens."""
        return float(self.sums.sum() / self.weights.sum())

    def change(self, before: RowLosses) -> float:
        """By how much the mean is higher than another model's on the same rows."""
        return self.mean - before.mean

    def error_of_change(self, before: RowLosses) -> float:
        """Standard error of `change`, the rows being a sample: that of a ratio of two sums
        (Cochran 1977, Sampling Techniques, 2.11)."""
        differences = self.sums - before.sums
        left = differences - self.change(before) * self.weights
        num_rows = len(left)
        if num_rows < 2:
            return math.inf
        scale = num_rows / (num_rows - 1)
        return math.sqrt(scale * float((left**2).sum())) / float(self.weights.sum())

    def interval(self, *, seed: int) -> Interval:
        """Of the mean, by bootstrap over the rows."""
        return self._interval(self.sums, seed)

    def interval_of_change(self, before: RowLosses, *, seed: int) -> Interval:
        """Of `change`, by paired bootstrap: the same rows are drawn for both models."""
        return self._interval(self.sums - before.sums, seed)

    def _interval(self, sums: Floats, seed: int) -> Interval:
        drawn = resampled(np.stack([sums, self.weights], axis=1), seed=seed)
        return interval(float(sums.sum() / self.weights.sum()), drawn[:, 0] / drawn[:, 1])


def row_losses(sft: SFTModel, rows: Sequence[Example]) -> RowLosses:
    """The loss on each row. Leaves the model's mode as it was."""
    found = example_sums(sft, rows)
    return RowLosses(sums=found.losses, weights=found.weights)


def apart(train: ExampleStore, val: ExampleStore, *, seed: int) -> tuple[Indices, ExampleStore]:
    """Indices of the rows to train on, and rows to measure, for a search: the validation rows, or
    where there are none a share of the others, with all that repeats them. At most `MOST` are
    measured.

    Raises:
        UsageError: there are too few rows.
    """
    refuse_few(train, val)
    chosen = np.arange(len(train))
    if not len(val):
        share = max(min(SHARE, MOST / len(train)), FEWEST / len(train))
        groups = find_duplicates(train).groups
        chosen, held = split(train, share=share, seed=seed, groups=groups)
        if len(chosen) < FEWEST or len(held) < FEWEST // 2:
            raise _too_few(len(train))
        val = train.select(held)
    if len(val) > MOST:
        drawn = np.random.default_rng([seed, MOST]).permutation(len(val))[:MOST]
        val = val.select(np.sort(drawn))
    return chosen, val


def with_rehearsed(examples: ExampleStore, num_rows: int, chosen: Indices) -> ExampleStore:
    """Some of the rows, and as large a part of the texts that are rehearsed among them.

    Args:
        examples: all rows, and behind them these texts, if there are any.
        num_rows: without these.
    """
    if len(chosen) == num_rows:
        return examples
    num_texts = round((len(examples) - num_rows) * len(chosen) / num_rows)
    return examples.select(np.concatenate([chosen, num_rows + np.arange(num_texts)]))


def refuse_few(train: ExampleStore, val: ExampleStore) -> None:
    """There must be rows to hold out.

    Raises:
        UsageError: there are too few.
    """
    if not len(val) and len(train) < 2 * FEWEST:
        raise _too_few(len(train))


def _too_few(num_rows: int) -> UsageError:
    return UsageError(
        f"--find-lr: {num_rows} rows are too few to hold some out",
        why="a learning rate is judged by rows that it was not trained on, and that repeat none",
        fix="--val FILE with rows of their own; or leave --find-lr out",
    )
