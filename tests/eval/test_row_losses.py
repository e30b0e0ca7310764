"""The file of row losses: cut on resuming, aligned with the order in which rows are consumed."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from made_models import document

from duiti.data.batch import epoch_updates
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.eval.row_losses import (
    ROW_KEYS_FILE,
    RowLosses,
    by_epoch,
    read_row_keys,
    read_row_losses,
    write_row_keys,
)


def consumed(num_examples: int, num_rows: int, *, batch_size: int, seed: int) -> list[list[int]]:
    """The updates of a run of so many rows, as the loop makes them."""
    updates, epoch = [], 0
    while sum(map(len, updates)) < num_rows:
        for rows in epoch_updates(num_examples, batch_size, seed=seed, epoch=epoch):
            updates.append(rows[: num_rows - sum(map(len, updates))])
        epoch += 1
    return [rows for rows in updates if rows]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_a_loss_is_found_under_its_example_and_epoch_whatever_the_batch_size(
    tmp_path: Path, batch_size: int
) -> None:
    file = RowLosses(tmp_path / "data" / "losses.f32")
    cursor = 0
    for rows in consumed(7, 17, batch_size=batch_size, seed=5):
        epochs = [(cursor + place) // 7 for place in range(len(rows))]
        cursor += len(rows)
        file.add([10 * e + row for e, row in zip(epochs, rows, strict=True)], cursor=cursor)
    file.close()
    found = by_epoch(read_row_losses(tmp_path / "data" / "losses.f32"), 7, seed=5)
    assert found.shape == (3, 7)
    expected = 10 * np.arange(3)[:, None] + np.arange(7)
    assert (found[:2] == expected[:2]).all()
    known = np.isfinite(found[2])
    assert known.sum() == 3
    assert (found[2, known] == expected[2, known]).all()


def test_going_on_cuts_what_is_behind_the_cursor_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "stopped"
    for name, stops in ((whole, ()), (path, (3, 5))):
        cursor = 0
        file = RowLosses(name)
        for step in range(1, 7):
            cursor += 2
            file.add([step, step + 0.5], cursor=cursor)
            if step in stops:  # it is killed one update behind its checkpoint, and goes on there
                file.add([-1, -1], cursor=cursor + 2)
                with name.open("ab") as torn:
                    torn.write(b"\0\0")
                file.close()
                file = RowLosses(name, cursor=cursor)
                assert file.num_missing == 0
        file.close()
    assert path.read_bytes() == whole.read_bytes()
    assert len(read_row_losses(path)) == 12
    RowLosses(path).close()
    assert path.read_bytes() == b""


def test_what_is_missing_is_told_and_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    file = RowLosses(path)
    file.add([1, 2, 3], cursor=3)
    file.close()
    file = RowLosses(path, cursor=5)
    assert file.num_missing == 2
    file.add((), cursor=7)  # an update that could not be measured
    file.add([8.0], cursor=8)
    file.close()
    found = read_row_losses(path)
    assert found[[0, 1, 2, 7]].tolist() == [1, 2, 3, 8]
    assert np.isnan(found[3:7]).all()
    with RowLosses(tmp_path / "gone", cursor=2) as gone:
        assert gone.num_missing == 2
    with RowLosses(path, cursor=2, is_same=False) as other:  # of other rows
        assert other.num_missing == 2
    assert np.isnan(read_row_losses(path)).all()


def test_losses_that_are_not_those_of_the_rows_are_a_mistake_of_the_program(tmp_path: Path) -> None:
    with (
        RowLosses(tmp_path / "losses") as file,
        pytest.raises(ValueError, match="3 losses of 2 rows"),
    ):
        file.add([1, 2, 3], cursor=2)


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path: Path) -> None:
    class Full:
        """Takes five bytes, then nothing, then all."""

        def __init__(self) -> None:
            self.taken, self.room = bytearray(), 5

        def write(self, data: bytearray) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = bytes(data[: self.room])
            self.taken += part
            self.room -= len(part)
            return len(part)

        def close(self) -> None:
            pass

    file = RowLosses(tmp_path / "losses")
    file.close()
    disk = file._file = Full()  # type: ignore[assignment]
    file.add([1, 2], cursor=2)
    assert file.problem == "No space left on device"
    assert file.num_waiting == 1
    file.add([3], cursor=3)
    disk.room = 100
    file.add([4], cursor=4)
    assert file.num_waiting == 0
    assert np.frombuffer(bytes(disk.taken), "<f4").tolist() == [1, 2, 3, 4]


def test_keys_name_the_rows_of_a_run_by_content(tmp_path: Path) -> None:
    store = ExampleStore.from_examples([document(6 + 2 * n, n) for n in (1, 2, 3)])
    write_row_keys(tmp_path, store)
    keys = read_row_keys(tmp_path / ROW_KEYS_FILE)
    assert (keys[:, :2] == store.digests()[:, :2]).all()
    assert keys[:, 2].tolist() == store.num_supervised.tolist()
    (tmp_path / ROW_KEYS_FILE).write_bytes(b"\0" * 25)
    with pytest.raises(DuitiError, match="damaged"):
        read_row_keys(tmp_path / ROW_KEYS_FILE)
    with pytest.raises(DuitiError, match="cannot be read"):
        read_row_losses(tmp_path / "nowhere")
