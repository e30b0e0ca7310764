"""A block comes back from disk as it was, mapped and not copied; what is none is refused."""

import dataclasses
import gc
import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_blocks import COLUMNS, block_of, blocks, made_block, same_block
from safetensors.numpy import load_file

from duiti.data.storage.block import (
    MAX_HEADER_BYTES,
    BadBlock,
    Block,
    check_block,
    concat,
    open_block,
    release,
    write_block,
)

EMPTY = block_of([])


@given(block=blocks())
def test_a_block_comes_back_as_it_was(tmp_path: Path, block: Block) -> None:
    check_block(block)
    write_block(tmp_path / "block", block)
    found = open_block(tmp_path / "block")
    check_block(found)
    assert same_block(found, block)
    assert not any(getattr(found, name).flags.writeable for name in COLUMNS)


def test_the_file_is_read_by_safetensors_itself(tmp_path: Path) -> None:
    block = made_block(1)
    write_block(tmp_path / "block", block)
    assert same_block(Block(**load_file(tmp_path / "block")), block)
    assert [path.name for path in tmp_path.iterdir()] == ["block"]


def test_a_mapped_block_copies_nothing_and_outlives_its_file(tmp_path: Path) -> None:
    block = made_block(2)
    write_block(tmp_path / "block", block)
    found = open_block(tmp_path / "block")
    bases = set()
    for name in COLUMNS:
        owner = getattr(found, name)
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, memoryview)
        assert isinstance(owner.obj, mmap.mmap)
        bases.add(id(owner.obj))
    assert len(bases) == 1
    (tmp_path / "block").unlink()
    release(found)
    gc.collect()
    assert same_block(found, block)


def test_a_strided_column_is_written_as_it_reads(tmp_path: Path) -> None:
    whole = made_block(3)
    block = dataclasses.replace(whole, lines=np.arange(40, 0, -1, dtype=np.int64)[::2])
    write_block(tmp_path / "block", block)
    assert same_block(open_block(tmp_path / "block"), block)


def test_releasing_a_block_in_memory_does_nothing() -> None:
    block = made_block(4)
    release(block)
    assert same_block(block, made_block(4))


@given(parts=st.lists(blocks(), max_size=4))
def test_concat_lays_examples_one_after_another(parts: list[Block]) -> None:
    whole = concat(parts)
    check_block(whole)
    for name in COLUMNS:
        listed = [row for part in parts for row in getattr(part, name).tolist()]
        assert getattr(whole, name).tolist() == listed


GOOD = block_of(
    [([1, 2, 3, 4], [(1, 2, 1.0), (2, 4, 0.5)], 0, 1, [1] * 4), ([5, 6], [], 0, 2, [2] * 4)]
)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("input_ids", [1, 2, 3, -1, 5, 6], "a token id is below 0"),
        ("input_ids", [1, 2, 3, 4, 5], "the lengths do not add up to the tokens"),
        ("lengths", [6, 0], "a length is below 1"),
        ("lengths", [4], "the columns of examples differ in length"),
        ("lengths", [2**31 - 1, 2**31 - 1], "the lengths do not add up to the tokens"),
        ("span_counts", [3, -1], "a number of spans is below 0"),
        ("span_counts", [2, 1], "the numbers of spans do not add up to the spans and their"),
        ("span_counts", [1, 1], "a span is empty or leaves its example"),
        ("spans", [[0, 2], [2, 4]], "the start of a span is below 1"),
        ("spans", [[1, 2], [2, 5]], "a span is empty or leaves its example"),
        ("spans", [[1, 2], [3, 3]], "a span is empty or leaves its example"),
        ("spans", [[1, 3], [2, 4]], "spans of an example overlap or are not sorted"),
        ("spans", [[2, 4], [1, 2]], "spans of an example overlap or are not sorted"),
        ("weights", [1, 0], "the weight of a span is not a number above 0"),
        ("weights", [1, np.nan], "the weight of a span is not a number above 0"),
        ("weights", [1, np.inf], "the weight of a span is not a number above 0"),
        ("weights", [1], "the numbers of spans do not add up to the spans and their weights"),
        ("files", [0, -1], "the index of a file is below 0"),
        ("lines", [1, 0], "a line is below 1"),
        ("lines", [1, 2, 3], "the columns of examples differ in length"),
        ("digests", [[1] * 4], "the columns of examples differ in length"),
        ("digests", [[1] * 3] * 2, r"digests is uint64\[2, 3\]"),
    ],
)
def test_each_clause_of_the_contract_is_held(
    column: str, values: list[object], reason: str
) -> None:
    check_block(GOOD)
    dtype = getattr(GOOD, column).dtype
    broken = dataclasses.replace(GOOD, **{column: np.array(values, dtype)})
    with pytest.raises(BadBlock, match=reason):
        check_block(broken)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_another_type_is_refused(column: str) -> None:
    other = getattr(GOOD, column).astype(np.float64)
    with pytest.raises(BadBlock, match=f"{column} is float64"):
        check_block(dataclasses.replace(GOOD, **{column: other}))


@pytest.mark.parametrize("block", [EMPTY, made_block(5)], ids=["empty", "full"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, block: Block) -> None:
    path = tmp_path / "block"
    write_block(path, block)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(BadBlock):
            open_block(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(BadBlock, match="more in it"):
        open_block(path)


@given(data=st.data())
def test_a_changed_header_never_leads_outside_the_file(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "block"
    write_block(path, made_block(6))
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=3)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = open_block(path)
    except BadBlock:
        return
    # Only columns of the same type and size can have changed places: all of it can be read.
    assert sum(getattr(found, name).nbytes for name in COLUMNS) == len(content) - header


def _with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


GOOD_HEADER = {
    name: {"dtype": code, "shape": [0, *tail], "data_offsets": [0, 0]}
    for name, code, tail in [
        ("input_ids", "I32", []),
        ("lengths", "I32", []),
        ("span_counts", "I32", []),
        ("spans", "I32", [2]),
        ("weights", "F32", []),
        ("files", "I32", []),
        ("lines", "I64", []),
        ("parts", "I32", []),
        ("digests", "U64", [4]),
    ]
}


def _changed(**spans: object) -> bytes:
    header = json.loads(json.dumps(GOOD_HEADER))
    header["spans"] |= spans
    text = json.dumps(header)
    return _with_header(text.encode() + b" " * (-len(text) % 8))


def test_a_header_spelled_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(_changed())
    assert same_block(open_block(tmp_path / "block"), EMPTY)


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        _with_header(b" " * (MAX_HEADER_BYTES + 1)),
        _with_header(b"[" * 60000),
        _with_header(b"\xff\xfe"),
        _with_header(b"[]"),
        _with_header(b"{}"),
        _changed(dtype="I64"),
        _changed(dtype=3),
        _changed(shape=[0]),
        _changed(shape=[0, 3]),
        _changed(shape=[1, 2]),
        _changed(shape=[-1, 2], data_offsets=[8, 0]),
        _changed(shape=[2**62, 2], data_offsets=[0, 2**65]),
        _changed(shape=[1, 2], data_offsets=[0, 8]),
        _changed(data_offsets=[-8, -8]),
        _changed(data_offsets=[0]),
        _changed(data_offsets="00"),
        _changed(shape=None),
        _with_header(json.dumps({**GOOD_HEADER, "more": GOOD_HEADER["files"]}).encode()),
        _with_header(json.dumps({**GOOD_HEADER, "spans": None}).encode()),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "block").write_bytes(content)
    with pytest.raises(BadBlock):
        open_block(tmp_path / "block")


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_blocks import made_block
from duiti.data.storage.block import write_block
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk: a write fails half-way
try:
    write_block(Path(sys.argv[1]), made_block(0, 400))
except OSError as error:
    print(error.strerror)
"""


def test_a_block_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", FULL, str(tmp_path / "block"), here]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "File too large\n"
    assert list(tmp_path.iterdir()) == []
