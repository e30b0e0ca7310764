"""What the losses of rows are taken from: the epochs of a run, and its base and tuned model.

    write_rows(folder, train, seed=seed, held_out=held_out(sft, val))  # `rows.json`
    found = judge_rows(model, examples, folder=run.path)               # `duiti eval … --rows`

Losses of epochs are there already; `judge_rows` adds a pass of the base before them and one of the
tuned model behind. A row of a file is known to be one of the run's by the hash of its conversation,
wherever the file lies and however it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from duiti.data.batch import lengths_of
from duiti.data.replay import REHEARSED
from duiti.data.storage.store import ExampleStore
from duiti.eval.row_losses import (
    ROW_KEYS_FILE,
    ROW_LOSSES_FILE,
    by_epoch,
    read_row_keys,
    read_row_losses,
    write_row_keys,
)
from duiti.eval.row_table import Floats
from duiti.eval.rows import HeldOut, SortedRows, sort_rows
from duiti.eval.token_losses import example_sums
from duiti.infer.model import Model
from duiti.model.sft_model import SFTModel
from duiti.run import Run, write_json
from duiti.types import Example

ROWS_FILE = "rows.json"
MAX_HELD_OUT = 1000
"""Validation rows that are measured one by one; of more, an even choice."""


def write_rows(
    folder: Path, train: ExampleStore, *, seed: int, held_out: HeldOut | None
) -> SortedRows:
    """`rows.json` of a run that has been trained, from `data/row_losses.f32`; and the keys by which
    its rows are known again.

    Args:
        train: all that was trained on; general text that was rehearsed is passed over.
        held_out: its validation rows by the trained model; None: there are none.

    Raises:
        DuitiError: a file cannot be read or written.
    """
    write_row_keys(folder, train)
    path = folder / ROW_LOSSES_FILE
    # Someone may have removed it meanwhile: what was trained is not lost for that.
    known = read_row_losses(path) if path.is_file() else np.empty(0, np.float32)
    losses = by_epoch(known, len(train), seed=seed)
    files, _ = train.origins()
    own = np.flatnonzero(np.array([name != REHEARSED for name in train.files])[files])
    names = _epochs(len(losses))
    found = sort_rows(train.select(own), losses[:, own], names=names, held_out=held_out)
    write_json(folder / ROWS_FILE, {"epochs": len(losses), **found.as_dict()})
    return found


def held_out(sft: SFTModel, val: Sequence[Example]) -> HeldOut | None:
    """Validation rows by the model as it is; None where there are none."""
    count = min(len(val), MAX_HELD_OUT)
    places = np.linspace(0, len(val) - 1, count).round().astype(int).tolist()
    rows = [val[place] for place in places]
    if not rows:
        return None
    lengths = np.array([row.num_supervised for row in rows], np.int64)
    return HeldOut(lengths=lengths, losses=mean_losses(sft, rows))


def judge_rows(
    model: Model,
    examples: ExampleStore,
    *,
    folder: Path | None = None,
    is_packed: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> SortedRows:
    """What became of each row: by the base, in the epochs of the run where it is one of its rows,
    and by the tuned model. Of a model that is not tuned only contradictions can be told.

    Args:
        folder: of the run.
        is_packed, compute_dtype: as for `duiti.eval.evaluate.score`.
    """

    def measured() -> Floats:
        dtype = compute_dtype or next(model.hf.parameters()).dtype
        sft = SFTModel(model.hf, compute_dtype=dtype, is_packed=is_packed)
        return mean_losses(sft, examples)

    with model.base():
        base = measured()
    if not model.is_tuned:
        return sort_rows(examples, base[None], names=("base",))
    epochs = np.empty((0, len(examples))) if folder is None else losses_of_run(folder, examples)
    losses = np.concatenate([base[None], epochs, measured()[None]])
    names = ("base", *_epochs(len(epochs)), "tuned")
    is_own = np.isfinite(epochs).any(axis=0)
    others = np.flatnonzero(~is_own)
    if not (is_own.any() and len(others)):
        return sort_rows(examples, losses, names=names)
    # Rows beside those that were trained on, as a share that was split off: they are held out.
    apart = HeldOut(
        lengths=examples.num_supervised[others].astype(np.int64), losses=losses[-1, others]
    )
    losses[:, others] = np.nan
    found = sort_rows(examples, losses, names=names, held_out=apart)
    note = f"{len(others):,} of {len(examples):,} examples were not trained on: they are held out"
    return replace(found, note="; ".join(filter(None, (note, found.note))))


def losses_of_run(folder: Path, examples: ExampleStore, *, seed: int | None = None) -> Floats:
    """[K, E] loss of each example's row in each epoch of a run, by content; NaN where it is none of
    the run's rows. No epochs where the run has not kept them.

    Raises:
        DuitiError: a file cannot be read, or is damaged.
    """
    if not ((folder / ROW_KEYS_FILE).is_file() and (folder / ROW_LOSSES_FILE).is_file()):
        return np.empty((0, len(examples)))
    seed = Run(folder).config.seed if seed is None else seed
    keys = read_row_keys(folder / ROW_KEYS_FILE)
    losses = by_epoch(read_row_losses(folder / ROW_LOSSES_FILE), len(keys), seed=seed)
    both = np.concatenate([keys[:, :2], examples.digests()[:, :2]])
    numbers = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    trained, asked = numbers[: len(keys)], numbers[len(keys) :]
    sizes = keys[:, 2].astype(np.float64)
    return np.array([_by_key(own, sizes, trained, asked) for own in losses]).reshape(
        len(losses), len(examples)
    )


def mean_losses(sft: SFTModel, examples: Sequence[Example]) -> Floats:
    """[E] mean loss over the supervised tokens of each, whatever their weights, as in
    `data/row_losses.f32`; NaN where there are none."""
    sums = example_sums(sft, _Unweighted(examples))
    unknown = np.full(len(examples), np.nan)
    found: Floats = np.divide(sums.losses, sums.tokens, out=unknown, where=sums.tokens > 0)
    return found


class _Unweighted(Sequence[Example]):
    """The same examples, every token of weight 1, made when they are asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.lengths: npt.NDArray[np.int32] = lengths_of(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return replace(self._examples[index], weights=None)


def _by_key(
    losses: npt.NDArray[np.float32],
    sizes: Floats,
    trained: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
) -> Floats:
    """[E] the mean over all supervised tokens of a row, in one epoch."""
    count = max(int(trained.max(initial=-1)), int(asked.max(initial=-1))) + 1
    known = np.isfinite(losses)
    sums = np.bincount(trained[known], weights=(losses * sizes)[known], minlength=count)
    tokens = np.bincount(trained[known], weights=sizes[known], minlength=count)
    means = np.divide(sums, tokens, out=np.full(count, np.nan), where=tokens > 0)
    found: Floats = means[asked]
    return found


def _epochs(count: int) -> tuple[str, ...]:
    return tuple(f"epoch {number}" for number in range(1, count + 1))
