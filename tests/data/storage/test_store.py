"""A store reads like the list of its examples, on disk or chosen from, and holds none of them."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_blocks import (
    FILES,
    Described,
    block_of,
    described,
    example_of,
    made_block,
    same_block,
    same_example,
)

from duiti.data.storage import store as store_module
from duiti.data.storage.store import (
    BadBlock,
    ExampleStore,
    check_block,
    concat,
    open_block,
    write_block,
)
from duiti.types import Example, Origin

Parts = list[list[Described]]
PARTS = st.lists(st.lists(described(), max_size=5), max_size=4)


def _store(folder: Path, parts: Parts) -> ExampleStore:
    for number, part in enumerate(parts):
        write_block(folder / f"{number}", block_of(part), durable=False)
    return ExampleStore([open_block(folder / f"{n}") for n in range(len(parts))], FILES)


def _is_list(store: ExampleStore, listed: list[Described]) -> bool:
    """Whether everything that a store tells is what the plain list of its examples says."""
    files, lines = store.origins()
    supervised = [sum(end - start for start, end, _ in spans) for _, spans, *_ in listed]
    gathered = concat(store.blocks())
    check_block(gathered)
    return (
        len(store) == len(listed)
        and all(map(same_example, store, map(example_of, listed)))
        and store.lengths.tolist() == [len(ids) for ids, *_ in listed]
        and store.num_supervised.tolist() == supervised
        and store.num_supervised.tolist() == [example.num_supervised for example in store]
        and (files.tolist(), lines.tolist())
        == ([each[2] for each in listed], [each[3] for each in listed])
        and store.digests().tolist() == [digests for *_, digests in listed]
        and store.max_id == max((max(ids) for ids, *_ in listed), default=-1)
        and same_block(gathered, block_of(listed))
        and {store.lengths.dtype, store.num_supervised.dtype, files.dtype} == {np.dtype("i4")}
    )


@given(parts=PARTS)
def test_a_store_is_the_list_of_its_examples(tmp_path: Path, parts: Parts) -> None:
    assert _is_list(_store(tmp_path, parts), [each for part in parts for each in part])


@given(parts=PARTS, data=st.data())
def test_a_view_is_the_list_of_what_was_chosen(
    tmp_path: Path, parts: Parts, data: st.DataObject
) -> None:
    store, listed = _store(tmp_path, parts), [each for part in parts for each in part]
    for _ in range(3):  # views of views
        if listed and data.draw(st.booleans()):
            places = data.draw(st.lists(st.integers(-len(listed), len(listed) - 1), max_size=8))
            store, listed = store.select(places), [listed[place] for place in places]
        else:
            part = data.draw(st.slices(len(listed)))
            store, listed = store[part], listed[part]
        assert _is_list(store, listed)


@given(parts=PARTS)
def test_every_index_of_a_list_is_an_index_of_a_store(tmp_path: Path, parts: Parts) -> None:
    store, listed = _store(tmp_path, parts), [each for part in parts for each in part]
    size = len(listed)
    for place in range(-size, size):
        assert same_example(store[place], example_of(listed[place]))
        assert same_example(store[np.int64(place)], example_of(listed[place]))
    for place in (size, -size - 1):
        with pytest.raises(IndexError):
            store[place]
        with pytest.raises(IndexError):
            store.select([place])


@pytest.mark.parametrize("indices", [[True, False], [0.0], [[0]], 0, "0", ["0"]])
def test_a_selection_is_by_whole_numbers_only(indices: object) -> None:
    store = ExampleStore([made_block(0, 2)], FILES)
    with pytest.raises(IndexError, match="whole numbers"):
        store.select(indices)


def test_an_empty_store_works() -> None:
    for store in (ExampleStore(), ExampleStore([block_of([])]), ExampleStore.from_examples([])):
        assert _is_list(store, [])
        assert _is_list(store[:], [])
        assert _is_list(store.select([]), [])


def test_a_block_of_more_files_than_there_are_names_is_refused() -> None:
    with pytest.raises(BadBlock, match="more files"):
        ExampleStore([made_block(0)], [])


@given(parts=PARTS)
def test_a_store_of_its_own_examples_is_the_same(tmp_path: Path, parts: Parts) -> None:
    examples = list(_store(tmp_path, parts))
    again = ExampleStore.from_examples(examples)
    assert len(again) == len(examples)
    assert all(map(same_example, again, examples))


def _example(labels: list[int], line: int = 1, weights: list[float] | None = None) -> Example:
    return Example(
        input_ids=np.arange(len(labels), dtype=np.int32),
        labels=np.array(labels, np.int32),
        origin=Origin("a", line),
        weights=None if weights is None else np.array(weights, np.float32),
    )


@pytest.mark.parametrize(
    "example",
    [
        _example([0, 1, 2]),
        _example([-100, 2, -100]),
        _example([-100, 1], weights=[1, 0]),
        _example([-100, 1], weights=[1, -1]),
        _example([-100, 1], weights=[1, float("nan")]),
        _example([]),
        _example([-100, 1], line=0),
    ],
)
def test_an_example_that_no_block_can_hold_is_refused(example: Example) -> None:
    with pytest.raises(BadBlock):
        ExampleStore.from_examples([example])


def test_examples_of_a_row_share_their_digests_and_other_rows_do_not() -> None:
    rows = [
        _example([-100, 1], 1),
        _example([-100, 1, -100, 3], 1),
        _example([-100, 1, -100, 3], 2),
        _example([-100, -100, -100, 3, 4], 3),
    ]
    whole = ExampleStore.from_examples(rows).digests()
    assert whole[0].tolist() == whole[1].tolist() == whole[2].tolist()
    assert whole[3, :2].tolist() != whole[0, :2].tolist()
    assert whole[3, 2:].tolist() == whole[0, 2:].tolist(), "the same before the last answer"


def test_blocks_of_a_view_are_gathered_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "VIEW_BLOCK_EXAMPLES", 7)
    store = ExampleStore([made_block(0), made_block(1), made_block(2)], FILES)
    order = np.random.default_rng(0).permutation(len(store))
    view = store.select(order)
    assert [len(block) for block in view.blocks()] == [7] * 8 + [4]
    again = ExampleStore(view.blocks(), FILES)
    assert all(same_example(again[place], store[int(order[place])]) for place in range(60))


def test_reading_many_examples_gives_memory_back_and_stays_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RELEASE_EXAMPLES", 3)
    for seed in range(3):
        write_block(tmp_path / f"{seed}", made_block(seed))
    store = ExampleStore([open_block(tmp_path / f"{seed}") for seed in range(3)], FILES)
    memory = ExampleStore([made_block(seed) for seed in range(3)], FILES)
    held = [store[place] for place in range(60)]
    assert all(map(same_example, held, memory))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is mapped")
def test_blocks_that_were_read_from_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RELEASE_EXAMPLES", 3)
    for seed in range(3):
        write_block(tmp_path / f"{seed}", made_block(seed))
    store = ExampleStore([open_block(tmp_path / f"{seed}") for seed in range(3)], FILES)
    assert [_mapped_kib(tmp_path / f"{seed}") > 0 for seed in range(3)] == [False] * 3
    held = [store[0], store[20]]
    assert [_mapped_kib(tmp_path / f"{seed}") > 0 for seed in range(3)] == [True, True, False]
    held.append(store[40])
    assert [_mapped_kib(tmp_path / f"{seed}") > 0 for seed in range(3)] == [False, False, True]
    assert all(block for block in store.blocks())
    assert [_mapped_kib(tmp_path / f"{seed}") for seed in range(3)] == [0] * 3
    assert len(held) == 3


def _mapped_kib(path: Path) -> int:
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(f" {path}"):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError("it is not mapped")


def test_many_examples_take_a_few_bytes_each(tmp_path: Path) -> None:
    write_block(tmp_path / "block", made_block(0, 50_000))
    tracemalloc.start()
    store = ExampleStore([open_block(tmp_path / "block")], FILES)
    for place in range(0, 50_000, 7):
        store[place]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50_000 * 30  # two arrays of 4 bytes, two of 8, and little else


def test_importing_the_store_needs_no_torch() -> None:
    code = "import sys, duiti.data.storage.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
