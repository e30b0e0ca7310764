"""An array is read piece by piece, and no border between pieces changes what is found."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading import json_rows, read
from duiti.data.reading.json_rows import REST_UNREAD, read_array
from duiti.data.reading.read import read_rows
from duiti.errors import UsageError
from duiti.types import Rejected, Row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
VALID = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent),
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3) | VALUES, max_size=4),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)


def _array(content: bytes, piece: int, limit: int = 2**20) -> list[Row | Rejected]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_PIECE_BYTES", piece)
        return list(read_array(io.BufferedReader(io.BytesIO(content)), "a.json", limit=limit))


@given(
    text=VALID,
    cut=st.integers(0, 80),
    extra=st.text('[]{}",:\\u0d8\n e1-N', max_size=4),
    piece=st.integers(1, 9),
)
def test_the_size_of_the_pieces_changes_nothing(
    text: str, cut: int, extra: str, piece: int
) -> None:
    content = ("[" + (text[1:-1] + extra)[: max(0, len(text) - cut)] + text[-1]).encode(
        "utf-8", "surrogatepass"
    )
    whole = _array(content, 2**20)
    assert _array(content, piece) == whole


@given(text=VALID, piece=st.integers(1, 50))
def test_an_array_has_as_many_rows_and_faults_as_python_counts_elements(
    text: str, piece: int
) -> None:
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        return
    found = _array(content, piece)
    elements = json.loads(text)
    assert len(found) == len(elements)
    for item, element in zip(found, elements, strict=True):
        if isinstance(item, Row):
            assert item.fields == element
        else:
            assert not item.reason.endswith(REST_UNREAD)


def test_after_broken_syntax_the_reason_says_that_the_rest_is_not_read() -> None:
    for content in (b'[{"a": 1} {"a": 2}]', b'[{"a": 1}, x]', b'[{"a": 1}', b'[{"a": 1}]x'):
        first, last = _array(content, 1000)
        assert isinstance(first, Row)
        assert isinstance(last, Rejected)
        assert last.reason.endswith(REST_UNREAD)


def test_rows_before_bytes_that_are_not_utf8_are_handed_out() -> None:
    for piece in (1, 7, 1000):
        found = _array(b'[{"a": 1},\n{"a": 2},\n{"a": "\xff"}]', piece)
        assert [item.origin.line for item in found] == [1, 2, 3]
        assert isinstance(found[2], Rejected)
        assert found[2].reason == f"not UTF-8{REST_UNREAD}"


@pytest.mark.parametrize("piece", [10, 2**20])
@pytest.mark.parametrize("fault", ["", "\\u0000", '"'])
def test_a_row_that_is_too_long_ends_the_reading(piece: int, fault: str) -> None:
    exact = b'{"a": "' + b"x" * 55 + b'"}'
    assert len(exact) == 64
    long = f'{{"a": "{"x" * 100}{fault}"}}'.encode()
    first, last = _array(b"[" + exact + b",\n" + long + b", {}]", piece, limit=64)
    assert isinstance(first, Row)
    assert isinstance(last, Rejected)
    assert (last.reason, last.origin.line) == (f"longer than 0 MiB{REST_UNREAD}", 2)


def test_an_array_larger_than_memory_would_allow_is_read_in_little(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(",\n" if number else "[")
            json.dump({"prompt": "x" * 1000, "response": str(number)}, file)
        file.write("]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 5


@pytest.mark.parametrize(
    "content",
    [
        b'{\n  "prompt": "q",\n  "response": "a"\n}\n',
        b'\n {\r\n  "a": 1}\r\n\r\n',
        b'{"data": [\n{"prompt": "q"},\n{"prompt": "q"}]}\n',
        b'{"version": 1,\n"data": []\n}\n',
    ],
)
def test_an_object_over_several_lines_is_refused_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="goes over several lines") as caught:
        list(read_rows(path))
    assert "jq -c" in caught.value.fix


@pytest.mark.parametrize("first", [b"{", b'{"a": [', b'{"a": 1', b"{,"])
def test_one_line_that_was_cut_does_not_make_a_file_of_lines_unreadable(
    tmp_path: Path, first: bytes
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(first + b'\n{"a": 1}\n{"a": 2}\n')
    found = list(read_rows(path))
    assert [isinstance(item, Row) for item in found] == [False, True, True]


def test_a_long_line_at_the_limit_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 300_000)
    path = tmp_path / "rows.json"
    text = json.dumps([{"a": "x" * 299_000}, {"a": "水" * 99_000}], ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    assert all(isinstance(item, Row) for item in read_rows(path))
