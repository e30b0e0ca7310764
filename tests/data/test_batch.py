"""The order of an epoch, the cut into micro-batches, and the one shift of labels."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.batch import collate, epoch_updates, micro_batches
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


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 400), min_size=1, max_size=12))
    mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        origin=Origin("f", 1),
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
