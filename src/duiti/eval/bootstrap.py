"""How sure a figure is: what it would have been on other rows of the same kind.

    low_high = interval(differences_R)
    base_RK, tuned_RK = resampled(base_UK, seed=0), resampled(tuned_UK, seed=0)    # paired

Rows are drawn anew, with replacement, as often as there are rows (Efron 1979): the same draw for
both models, so that what makes a row hard for both cancels. A figure is a function of sums over
rows, so a draw is a weighting of the rows, and no text is looked at twice.

Legend: U rows, K sums of each, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure, and between what it lies in 95 % of the draws. None: it does not exist."""

    mean: float | None
    """On the rows as they are."""
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The machine-readable form."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def resampled(sums: Floats, *, seed: int, num_draws: int = NUM_DRAWS) -> Floats:
    """[R, K] of [U, K]: the sums over the rows of each draw. The draws follow from seed and U."""
    num_rows = len(sums)
    generator = np.random.default_rng([seed, num_rows])
    drawn = np.empty((num_draws, sums.shape[1]))
    for draw in range(num_draws):  # one at a time: all of them would be R * U numbers
        chosen = generator.integers(num_rows, size=num_rows)
        drawn[draw] = np.bincount(chosen, minlength=num_rows) @ sums
    return drawn


def interval(mean: float, draws: Floats) -> Interval:
    """The figure with the percentiles of its draws; those in which it does not exist (nothing to
    divide by) do not count."""
    there = draws[np.isfinite(draws)]
    if not np.isfinite(mean) or not len(there):
        return Interval(mean=None, low=None, high=None)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(there, [tail, 100 - tail])
    return Interval(mean=float(mean), low=float(low), high=float(high))
