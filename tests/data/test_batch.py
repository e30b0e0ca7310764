"""The order of an epoch, the cut into micro-batches, and the one shift of labels and weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duiti.data import batch as batch_module
from duiti.data.batch import collate, epoch_updates, lengths_of, micro_batches
from duiti.types import IGNORE_INDEX, Example, Origin

SEEDS = st.integers(0, 2**63 - 1)


@given(count=st.integers(1, 200), size=st.integers(1, 50), seed=SEEDS, epoch=st.integers(0, 100))
def test_an_epoch_uses_every_example_once_in_updates_of_the_size_asked_for(
    count: int, size: int, seed: int, epoch: int
) -> None:
    updates = list(epoch_updates(count, size, seed=seed, epoch=epoch))
    assert sorted(index for update in updates for index in update) == list(range(count))
    assert all(len(update) == size for update in updates[:-1])
    assert 1 <= len(updates[-1]) <= size


@given(count=st.integers(20, 200), seed=SEEDS, epoch=st.integers(0, 100))
def test_the_order_is_a_function_of_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int, size: int = 7) -> list[int]:
        return [i for update in epoch_updates(count, size, seed=seed, epoch=epoch) for i in update]

    np.random.seed(1)  # whatever others draw
    torch.manual_seed(1)
    assert order(seed, epoch) == order(seed, epoch)
    assert order(seed, epoch) == order(seed, epoch, size=3)
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed ^ 1, epoch)
    # Neighbours in (seed, epoch) are no repetition of each other.
    assert order(seed ^ 1, epoch) != order(seed, epoch + 1)


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40), budget=st.integers(1, 150))
def test_micro_batches_lose_nothing_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    rows = list(range(len(lengths)))[::-1]
    parts = micro_batches(rows, lengths, budget=budget)
    assert Counter(row for part in parts for row in part) == Counter(rows)
    for part in parts:
        assert part
        assert sum(lengths[row] for row in part) <= budget or len(part) == 1
    # Two parts that fit together would have been one.
    sizes = sorted(sum(lengths[row] for row in part) for part in parts)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget
    assert parts == micro_batches(rows, lengths, budget=budget)


def test_micro_batches_take_rows_by_their_index() -> None:
    lengths = [99, 5, 99, 5, 99]
    assert micro_batches([1, 3], lengths, budget=10) == [[1, 3]]


def first_fit_decreasing(rows: Sequence[int], lengths: list[int], budget: int) -> list[list[int]]:
    """The textbook's: each row, longest first, into the first part that has room for it."""
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        for part in parts:
            if sum(lengths[other] for other in part) + lengths[row] <= budget:
                part.append(row)
                break
        else:
            parts.append([row])
    return parts


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60), budget=st.integers(1, 150))
def test_an_update_is_cut_by_first_fit_decreasing(lengths: list[int], budget: int) -> None:
    rows = list(range(len(lengths)))[::-1]
    expected = first_fit_decreasing(rows, lengths, budget)
    assert micro_batches(rows, lengths, budget=budget) == expected
    assert micro_batches(rows, np.array(lengths, dtype=np.int32), budget=budget) == expected


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), window=st.integers(1, 12))
def test_more_rows_than_a_window_are_cut_window_by_window(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], window: int
) -> None:
    monkeypatch.setattr(batch_module, "WINDOW_ROWS", window)
    rows = range(len(lengths))
    expected = []
    for start in range(0, len(lengths), window):
        expected += first_fit_decreasing(rows[start : start + window], lengths, 10)
    assert micro_batches(rows, lengths, budget=10) == expected


@dataclass
class Store(Sequence[Example]):
    """Examples that know their lengths and count how often each is read."""

    rows: list[Example]
    reads: Counter[int] = field(default_factory=Counter)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return np.array([len(row) for row in self.rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        self.reads[index] += 1
        return self.rows[index]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 400), min_size=1, max_size=12))
    mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]
    weights = st.floats(0.125, 8, width=32)
    drawn = draw(st.none() | st.lists(weights, min_size=len(ids), max_size=len(ids)))
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        origin=Origin("f", 1),
        weights=None if drawn is None else np.array(drawn, dtype=np.float32),
    )


@given(rows=st.lists(examples(), min_size=1, max_size=6))
def test_targets_are_the_next_tokens_of_the_same_document(rows: list[Example]) -> None:
    flat: list[int] = []
    positions: list[int] = []
    borders = [0]
    expected: list[tuple[int, int]] = []
    for row in rows:
        start = len(flat)
        for place in range(len(row)):
            flat.append(int(row.input_ids[place]))
            positions.append(place)
            is_last = place + 1 == len(row)
            if not is_last and row.labels[place + 1] != IGNORE_INDEX:
                expected.append((start + place, int(row.input_ids[place + 1])))
        borders.append(len(flat))
    before = [row.labels.copy() for row in rows]
    batch = collate(rows)
    assert batch.input_ids.tolist() == flat
    assert batch.position_ids.tolist() == positions
    assert batch.cu_seqlens == tuple(borders)
    found = zip(batch.supervised.tolist(), batch.targets.tolist(), strict=True)
    assert list(found) == expected
    assert batch.num_tokens == len(flat)
    assert batch.num_supervised == sum(row.num_supervised for row in rows)
    for tensor in (batch.input_ids, batch.position_ids, batch.supervised, batch.targets):
        assert tensor.dtype == torch.int64
    assert all(np.array_equal(a, row.labels) for a, row in zip(before, rows, strict=True))


@given(rows=st.lists(examples(), min_size=1, max_size=6))
def test_a_target_has_the_weight_of_its_own_token(rows: list[Example]) -> None:
    expected = [
        1.0 if row.weights is None else float(row.weights[place])
        for row in rows
        for place in range(1, len(row))
        if row.labels[place] != IGNORE_INDEX
    ]
    batch = collate(rows)
    if all(row.weights is None for row in rows):
        assert batch.weights is None
    else:
        assert batch.weights is not None
        assert batch.weights.dtype == torch.float32
        assert batch.weights.shape == batch.targets.shape
        assert batch.weights.tolist() == expected
    bare = collate([replace(row, weights=None) for row in rows])
    assert bare.weights is None
    for name in ("input_ids", "position_ids", "supervised", "targets"):
        assert torch.equal(getattr(batch, name), getattr(bare, name))


def test_a_batch_does_not_share_the_memory_of_its_examples() -> None:
    row = Example(
        input_ids=np.array([5, 6], dtype=np.int32),
        labels=np.array([-100, 6], dtype=np.int32),
        origin=Origin("f", 1),
        weights=np.array([0, 3], dtype=np.float32),
    )
    batch = collate([row])
    assert batch.weights is not None
    batch.weights.zero_()
    assert row.weights is not None
    assert row.weights.tolist() == [0, 3]


@given(rows=st.lists(examples(), min_size=1, max_size=6))
def test_lengths_are_those_of_the_examples_and_a_store_is_not_read_for_them(
    rows: list[Example],
) -> None:
    store = Store(rows)
    for given_rows in (rows, store):
        found = lengths_of(given_rows)
        assert found.dtype == np.int32
        assert found.tolist() == [len(row) for row in rows]
    assert not store.reads


def test_collate_reads_each_example_of_a_store_once() -> None:
    row = Example(
        input_ids=np.array([5, 6], dtype=np.int32),
        labels=np.array([-100, 6], dtype=np.int32),
        origin=Origin("f", 1),
    )
    store = Store([row, row, row])
    assert collate(store).num_supervised == 3
    assert store.reads == {0: 1, 1: 1, 2: 1}


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    row = Example(
        input_ids=np.array([5, 6], dtype=np.int32),
        labels=np.array([5, 6], dtype=np.int32),
        origin=Origin("f", 1),
    )
    batch = collate([row, row, row])
    assert batch.targets.tolist() == [6, 6, 6]
    assert batch.supervised.tolist() == [0, 2, 4]
    assert row.num_supervised == 1


def test_a_batch_cannot_be_edited() -> None:
    row = Example(
        input_ids=np.array([1, 2], dtype=np.int32),
        labels=np.array([IGNORE_INDEX, 2], dtype=np.int32),
        origin=Origin("f", 1),
    )
    with pytest.raises(AttributeError):
        collate([row]).targets = torch.zeros(1)  # type: ignore[misc]
