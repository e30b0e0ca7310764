"""A validation share that does not depend on the order of the rows.

    groups = find_duplicates(store).groups
    train, val = split(store, share=0.05, seed=0, groups=groups)       # indices, for store.select

Rows that belong together stand on one side together: all examples of a conversation, its repeats,
other answers to the same prompt, near duplicates. The side of a group is a function of the seed and
of its smallest conversation digest alone. So rows may be reordered, and adding others moves none,
except where a new row joins a group: then all of the group follow the smallest digest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from duiti.data.repeats.minhash import mix64
from duiti.data.storage.store import ExampleStore
from duiti.errors import UsageError

Indices = npt.NDArray[np.int64]


def parse_share(text: str) -> float | None:
    """`"5%"` → 0.05; None where the text is no percentage (then it names a file).

    Raises:
        UsageError: a percentage that leaves one side empty.
    """
    if not text.endswith("%"):
        return None
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UsageError(f"val: {text} must lie between 0% and 100%")
    return share


def split(
    store: ExampleStore, *, share: float, seed: int, groups: Indices
) -> tuple[Indices, Indices]:
    """Ascending indices of the examples of (train, val), about `share` of the groups in val.

    Args:
        groups: [E] a number that the examples of a group share, whatever number it is.
    """
    high, low = store.digests()[:, :2].T
    order = np.lexsort((low, high, groups))
    starts_group = np.ones(len(order), dtype=np.bool_)
    starts_group[1:] = groups[order[1:]] != groups[order[:-1]]
    smallest = order[starts_group]
    mixed = mix64(
        mix64(mix64(np.array([seed % 2**64], np.uint64)) + high[smallest]) + low[smallest]
    )
    fractions = (mixed >> np.uint64(11)) * 2.0**-53
    is_val = np.empty(len(order), dtype=np.bool_)
    is_val[order] = (fractions < share)[np.cumsum(starts_group) - 1]
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)
