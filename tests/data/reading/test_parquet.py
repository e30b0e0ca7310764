"""Parquet gives the rows that were written, or says which column cannot be JSON."""

import io
import sys
import tracemalloc
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading.read import count_rows, read_rows
from duiti.errors import DataError, UsageError
from duiti.types import Rejected, Row

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
MESSAGE = st.fixed_dictionaries(
    {"role": TEXT}, optional={"content": TEXT, "weight": st.floats(-9, 9), "train": st.booleans()}
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": TEXT,
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "messages": st.lists(MESSAGE, max_size=3),
            "tools": st.lists(st.fixed_dictionaries({"name": TEXT, "args": st.lists(MESSAGE)})),
        }
    ),
    max_size=6,
)


def _write(folder: Path, table: pa.Table, **options: object) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(table, path, **options)
    return path


def _fields(path: Path) -> list[Mapping[str, object]]:
    found = list(read_rows(path))
    assert all(isinstance(item, Row) for item in found), found
    return [item.fields for item in found if isinstance(item, Row)]


@given(rows=ROWS)
def test_rows_come_back_without_the_fields_that_other_rows_have(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    path = _write(tmp_path, pa.Table.from_pylist(rows), row_group_size=2)
    if rows:
        assert _fields(path) == rows
    assert [item.origin.line for item in read_rows(path)] == list(range(1, len(rows) + 1))
    assert count_rows(path) == len(rows)


def test_a_null_stays_in_a_column_a_list_or_a_map_and_goes_in_a_struct(tmp_path: Path) -> None:
    inner = pa.struct([("a", pa.int64()), ("b", pa.string())])
    table = pa.table(
        {
            "column": pa.array([None, "x"]),
            "list": pa.array([[None, 1], None]),
            "map": pa.array([{"k": None}, {"l": "v"}], pa.map_(pa.string(), pa.string())),
            "struct": pa.array([{"a": None, "b": "y"}, None], inner),
            "deep": pa.array([[{"a": 1}, None], []], pa.list_(inner)),
            "mapped": pa.array([{"k": {"a": 1}}, None], pa.map_(pa.large_string(), inner)),
        }
    )
    assert _fields(_write(tmp_path, table)) == [
        {
            "column": None,
            "list": [None, 1],
            "map": {"k": None},
            "struct": {"b": "y"},
            "deep": [{"a": 1}, None],
            "mapped": {"k": {"a": 1}},
        },
        {
            "column": "x",
            "list": None,
            "map": {"l": "v"},
            "struct": None,
            "deep": [],
            "mapped": None,
        },
    ]


def test_types_that_json_has_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["x"], pa.large_string()),
            "view": pa.array(["x"], pa.string_view()),
            "coded": pa.array(["x"]).dictionary_encode(),
            "small": pa.array([-1], pa.int8()),
            "large": pa.array([2**64 - 1], pa.uint64()),
            "half": pa.array([1.5], pa.float16()),
            "single": pa.array([0.5], pa.float32()),
            "truth": pa.array([True]),
            "nothing": pa.nulls(1),
            "pair": pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        }
    )
    (row,) = _fields(_write(tmp_path, table))
    assert list(row.values()) == ["x", "x", "x", -1, 2**64 - 1, 1.5, 0.5, True, None, [1, 2]]
    assert [type(value) for value in row.values()][3:8] == [int, int, float, float, bool]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([date(2024, 1, 1), None]), '"date32[day]" is not JSON'),
        (pa.array([datetime(2024, 1, 1), None]), '"timestamp[us]" is not JSON'),
        (pa.array([b"x", None]), '"binary" is not JSON'),
        (pa.array([Decimal("1.5"), None]), '"decimal128(2, 1)" is not JSON'),
        (pa.array([[{"a": b"x"}], None]), '"binary" is not JSON'),
        (
            pa.array([{1: "x"}, None], pa.map_(pa.int64(), pa.string())),
            'a map whose keys are "int64" is not JSON',
        ),
        (
            pa.array([[("k", "x"), ("k", "y")], None], pa.map_(pa.string(), pa.string())),
            "a map has a key twice",
        ),
        (pa.array([b"\xff", None]).view(pa.string()), "not UTF-8"),
    ],
)
def test_a_value_that_json_has_not_is_refused_with_its_column(
    tmp_path: Path, column: pa.Array, reason: str
) -> None:
    path = _write(tmp_path, pa.table({"prompt": ["q", "r"], "x": column}))
    refused, row = read_rows(path)
    assert isinstance(refused, Rejected)
    assert refused.reason == f'the column "x": {reason}'
    assert isinstance(row, Row)
    assert row.fields == {"prompt": "r", "x": None}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), 'the field "x": NaN or Infinity is not JSON'),
        ([{"y": float("inf")}], 'the field "x": NaN or Infinity is not JSON'),
        ("a\0b", 'the field "x": has a NUL character (U+0000)'),
    ],
)
def test_a_value_that_no_row_may_hold_is_refused(
    tmp_path: Path, value: object, reason: str
) -> None:
    (refused,) = read_rows(_write(tmp_path, pa.table({"x": [value]})))
    assert isinstance(refused, Rejected)
    assert refused.reason == reason


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(UsageError, match='the column "a" is there twice'):
        list(read_rows(_write(tmp_path, table)))


def test_a_file_that_was_not_copied_whole_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, pa.table({"x": ["a" * 100] * 50}))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged, or was not copied whole"):
        list(read_rows(path))


@pytest.mark.parametrize("name", [b"column", b"element", b"inner"])
def test_a_name_that_is_no_text_is_damage(tmp_path: Path, name: bytes) -> None:
    path = _write(tmp_path, pa.table({"column": [[{"inner": 1}]]}), store_schema=False)
    content = path.read_bytes()
    assert name in content
    path.write_bytes(content.replace(name, b"\xff" + name[1:]))
    with pytest.raises(DataError, match="damaged"):
        list(read_rows(path))


def test_damaged_pages_are_refused_behind_the_last_row_before_them(tmp_path: Path) -> None:
    table = pa.table({"x": [f"text {number}" for number in range(1000)]})
    path = _write(
        tmp_path, table, row_group_size=500, use_dictionary=False, write_page_checksum=True
    )
    second = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[second + 60] ^= 0xFF
    path.write_bytes(content)
    found: list[Row | Rejected] = []
    with pytest.raises(DataError, match="the Parquet data is damaged") as caught:
        found.extend(read_rows(path))
    assert 0 < len(found) <= 500
    assert caught.value.what.startswith(f"{path}:{len(found) + 1}: ")


def test_without_pyarrow_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, pa.table({"x": [1]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError) as caught:
        list(read_rows(path))
    assert caught.value.fix == "pip install 'duiti[parquet]'"


def test_a_row_group_is_not_held_whole(tmp_path: Path) -> None:
    file = io.BytesIO()
    text = [f"{number}" * 200 for number in range(20_000)]
    pq.write_table(pa.table({"x": text}), file, use_dictionary=False, compression="none")
    path = tmp_path / "rows.parquet"
    path.write_bytes(file.getvalue())
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak_of_arrow = 0
    try:
        for _ in read_rows(path):
            peak_of_arrow = max(peak_of_arrow, pa.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak + peak_of_arrow < path.stat().st_size / 2
