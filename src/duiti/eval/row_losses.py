"""The loss of every row in every epoch, as training has it anyway: `data/row_losses.f32`.

    with RowLosses(folder / ROW_LOSSES_FILE, cursor=start.cursor) as file:   # cut there
        file.add(metrics.row_losses, cursor=progress.cursor)                 # behind every update

    losses_KE = by_epoch(read_row_losses(path), num_examples, seed=seed)

The file is flat little-endian float32: entry i is the mean loss over the supervised tokens of the
i-th example that training consumed, before the update that it belonged to; in order of
`Progress.cursor`. Which example that was follows from (seed, epoch) alone, whatever the batch size.
NaN where it is not known.

Beside it `data/row_keys.u64` says which row an example belongs to, by the hash of its conversation:
so its losses are found again from a file of rows, wherever that lies now. No text is in either.

Legend: K epochs, E examples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from duiti.data.batch import epoch_updates
from duiti.data.storage.store import ExampleStore
from duiti.disk_errors import explained
from duiti.durable import make_folder, write_file
from duiti.errors import DuitiError

ROW_LOSSES_FILE = "data/row_losses.f32"
ROW_KEYS_FILE = "data/row_keys.u64"

_LOSS, _KEY = np.dtype("<f4"), np.dtype("<u8")
Losses = npt.NDArray[np.float32]


class RowLosses:
    """Losses behind those that are there.

    As with `metrics.jsonl`, a disk that is full does not end a run: what cannot be written waits in
    memory and is tried again."""

    def __init__(self, path: Path, *, cursor: int = 0, is_same: bool = True) -> None:
        """
        Args:
            path: continued behind entry `cursor`; begun anew where that is 0. Entries that should
                be there and are not become NaN.
            is_same: whether it goes on with the same rows in the same order; otherwise the entries
                that are there belong to other rows, and become NaN.

        Raises:
            DuitiError: it cannot be written.
        """
        make_folder(path.parent)
        self.problem: str | None = None
        """Why something could not be written at once; stays when it could be written later."""
        self._cursor = cursor
        with explained(path):
            self._file = path.open(
                "r+b" if cursor and is_same and path.is_file() else "wb", buffering=0
            )
            there = os.fstat(self._file.fileno()).st_size // _LOSS.itemsize
            self.num_missing = max(0, cursor - there)
            """Entries before `cursor` that were not there."""
            self._file.truncate(min(cursor, there) * _LOSS.itemsize)
            self._file.seek(0, os.SEEK_END)
        self._waiting = bytearray(_unknown(self.num_missing))
        self._write()

    def __enter__(self) -> RowLosses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_waiting(self) -> int:
        """Losses that are not on disk."""
        return -(-len(self._waiting) // _LOSS.itemsize)

    def add(self, losses: Sequence[float], *, cursor: int) -> None:
        """Of the examples of one update, in its order; `cursor` is where the run stands behind it.
        Without losses (the update could not be measured) its entries are NaN."""
        num_rows = cursor - self._cursor
        if len(losses) not in (0, num_rows) or num_rows < 0:
            raise ValueError(f"{len(losses)} losses of {num_rows} rows")
        self._waiting += np.asarray(losses, _LOSS).tobytes() if losses else _unknown(num_rows)
        self._cursor = cursor
        self._write()

    def close(self) -> None:
        """Try once more, and close."""
        self._write()
        try:
            self._file.close()
        except OSError as error:  # some file systems tell of a full disk only here
            self.problem = error.strerror or str(error)

    def _write(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            self.problem = error.strerror or str(error)


def _unknown(count: int) -> bytes:
    return np.full(count, np.nan, _LOSS).tobytes()


def read_row_losses(path: Path) -> Losses:
    """All entries, in order; a last one that is not whole is left out.

    Raises:
        DuitiError: it cannot be read.
    """
    with explained(path, done="read"):
        data = path.read_bytes()
    whole = len(data) // _LOSS.itemsize * _LOSS.itemsize
    return np.frombuffer(data[:whole], _LOSS).astype(np.float32)


def by_epoch(losses: Losses, num_examples: int, *, seed: int) -> Losses:
    """[K, E] the loss of each example in each epoch, the last one maybe begun only; NaN where an
    example was not met, or its loss is not known."""
    if not num_examples:
        return np.empty((0, 0), np.float32)
    num_epochs = -(-len(losses) // num_examples)
    found = np.full((num_epochs, num_examples), np.nan, np.float32)
    for epoch in range(num_epochs):
        # One update of the whole epoch: the order in which its examples are consumed.
        (order,) = epoch_updates(num_examples, num_examples, seed=seed, epoch=epoch)
        own = losses[epoch * num_examples : (epoch + 1) * num_examples]
        found[epoch, order[: len(own)]] = own
    return found


def write_row_keys(folder: Path, train: ExampleStore) -> None:
    """`data/row_keys.u64` of a run: for each example of its training data, in order, the hash of
    its row's conversation (two numbers) and how many of its tokens are trained.

    Raises:
        DuitiError: it cannot be written.
    """
    keys = np.column_stack([train.digests()[:, :2], train.num_supervised.astype(np.uint64)])
    make_folder((folder / ROW_KEYS_FILE).parent)
    write_file(folder / ROW_KEYS_FILE, keys.astype(_KEY).tobytes())


def read_row_keys(path: Path) -> npt.NDArray[np.uint64]:
    """[E, 3] what `write_row_keys` has written.

    Raises:
        DuitiError: it cannot be read, or is not what was written.
    """
    with explained(path, done="read"):
        data = path.read_bytes()
    if len(data) % (3 * _KEY.itemsize):
        raise DuitiError(f"{path} is damaged", why="it ends in the middle of an entry")
    return np.frombuffer(data, _KEY).astype(np.uint64).reshape(-1, 3)
