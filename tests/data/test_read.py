"""Reading is strict, says where, and goes on: every row of a file is a Row or a Rejected."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data import read
from duiti.data.read import read_rows
from duiti.errors import UsageError
from duiti.types import Json, Rejected, Row

GOOD = b'{"prompt": "q", "response": "a"}'
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=5)


def _read(folder: Path, content: bytes) -> list[Row | Rejected]:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    found = list(read_rows(path))
    assert all(item.origin.file == str(path) for item in found)
    return found


def _shape(found: list[Row | Rejected]) -> list[tuple[str, int]]:
    return [("row" if isinstance(item, Row) else item.reason, item.origin.line) for item in found]


def _fields(found: list[Row | Rejected]) -> list[Json]:
    assert all(isinstance(item, Row) for item in found), found
    return [dict(item.fields) for item in found if isinstance(item, Row)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"prompt": "\xff"}', "not UTF-8: byte 13 of the line"),
        (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8: byte 13 of the line"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the key "a" is given twice'),
        (b'{"a": {"b": 1, "b": 1}}', 'the key "b" is given twice'),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": Infinity}', "Infinity is not JSON"),
        (b"[1, 2]", "not a JSON object ({…})"),
        (b'"text"', "not a JSON object ({…})"),
        (b"3", "not a JSON object ({…})"),
        (b"null", "not a JSON object ({…})"),
        (GOOD + b" x", "not valid JSON: something follows the object at character 33"),
        (GOOD + GOOD, "not valid JSON: something follows the object at character 33"),
        (GOOD + b",", "not valid JSON: something follows the object at character 33"),
        (b'{"a": ' + b"9" * 1001 + b"}", "a number has more than 1000 digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": "x\ty"}', "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": True}', "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"prompt,response", "not valid JSON"),
    ],
)
def test_a_bad_line_is_refused_at_its_line_and_reading_goes_on(
    tmp_path: Path, bad: bytes, reason: str
) -> None:
    first, rejected, last = _read(tmp_path, GOOD + b"\n" + bad + b"\n" + GOOD)
    assert isinstance(first, Row)
    assert isinstance(rejected, Rejected)
    assert rejected.origin.line == 2
    assert rejected.reason.startswith(reason)
    assert isinstance(last, Row)
    assert last.origin.line == 3


def test_an_overlong_line_is_refused_without_losing_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 64)
    long = b'{"a": "' + b"x" * 200 + b'"}'
    exact = b'{"a": "' + b"x" * 54 + b'"}\n'
    assert len(exact) == 64
    found = _read(tmp_path, exact + long + b"\n" + b"\n" + GOOD + b"\n" + long)
    too_long = "the line is longer than 0 MiB"
    assert _shape(found) == [("row", 1), (too_long, 2), ("row", 4), (too_long, 5)]


def test_a_limit_that_falls_on_the_line_end_swallows_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 64)
    for extra in range(60, 200):
        found = _read(tmp_path, b"x" * extra + b"\n" + GOOD + b"\n")
        assert [item.origin.line for item in found] == [1, 2], extra
        assert isinstance(found[1], Row), extra


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_endings_bom_and_blank_lines_change_nothing_but_line_numbers(
    tmp_path: Path, ending: bytes, bom: bytes
) -> None:
    lines = [b"", GOOD, b"  \t", GOOD, b"", b""]
    found = _read(tmp_path, bom + ending.join(lines))
    assert _shape(found) == [("row", 2), ("row", 4)]
    assert _fields(found) == [json.loads(GOOD)] * 2


def test_a_byte_order_mark_is_tolerated_at_the_start_only(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    first, second = _read(tmp_path, bom + GOOD + b"\n" + bom + GOOD)
    assert isinstance(first, Row)
    assert isinstance(second, Rejected)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0c"])
def test_exotic_line_separators_stay_inside_their_string(tmp_path: Path, separator: str) -> None:
    text = f"a{separator}b"
    rows = [{"prompt": text}, {"prompt": "next"}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if separator.isprintable() or ord(separator) > 0x1F:
        assert _fields(_read(tmp_path, content.encode())) == rows
    else:  # a raw control character is no JSON: refused, but still on one line
        assert [item.origin.line for item in _read(tmp_path, content.encode())] == [1, 2]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" ", b"\xef\xbb\xbf", b"[]", b" [ ]\n"])
def test_an_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert _read(tmp_path, content) == []


def test_strings_that_look_like_something_else_stay_strings(tmp_path: Path) -> None:
    row = {"prompt": "2024-01-01", "response": "1e5", "system": "true"}
    assert _fields(_read(tmp_path, json.dumps(row).encode())) == [row]


def test_an_array_over_several_lines_keeps_the_right_line_numbers(tmp_path: Path) -> None:
    content = b"""\n[
  {"prompt": "q",
   "response": "a"},

  {"prompt": "q2"}, {"prompt": "q3"},
  17,
  {"a": 1,
   "a": 2}
  ,
  {"b": NaN},
  {"prompt": "last"}
]
"""
    assert _shape(_read(tmp_path, content)) == [
        ("row", 3),
        ("row", 6),
        ("row", 6),
        ("not a JSON object ({…})", 7),
        ('the key "a" is given twice', 8),
        ("NaN is not JSON", 11),
        ("row", 12),
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'[\n{"a": 1}\n{"a": 2}\n]', 3),
        (b'[\n{"a": 1},\n{"a": }\n]', 3),
        (b'[\n{"a": 1}', 2),
        (b'[\n{"a": 1},\n', 3),
        (b'[\n{"a": 1}\n,]', 3),
        (b'[\n{"a": 1}\n]\n{"a": 2}', 3),
        (b'[\n{"a": 1},\n{"a": "\xff"}]', 3),
        (b"[\n\n" + b"[" * 100_000, 3),
        (b"[\n,\n]", 2),
    ],
    ids=[
        "no-comma",
        "no-value",
        "unclosed",
        "ends-after-comma",
        "trailing-comma",
        "something-behind",
        "not-utf8",
        "deep",
        "only-comma",
    ],
)
def test_a_broken_array_is_refused_at_the_line_of_the_fault(
    tmp_path: Path, content: bytes, line: int
) -> None:
    rejected = [item for item in _read(tmp_path, content) if isinstance(item, Rejected)]
    assert [item.origin.line for item in rejected] == [line]


@given(rows=OBJECTS, ensure_ascii=st.booleans(), ending=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_json_lines_come_back_as_they_were(
    tmp_path: Path, rows: list[dict[str, Json]], ensure_ascii: bool, ending: str
) -> None:
    content = ending.join(json.dumps(row, ensure_ascii=ensure_ascii) for row in rows)
    assert _fields(_read(tmp_path, content.encode())) == rows


@given(rows=OBJECTS, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_arrays_come_back_as_they_were_with_the_line_of_each_row(
    tmp_path: Path, rows: list[dict[str, Json]], ensure_ascii: bool, indent: int | None
) -> None:
    content = json.dumps(rows, ensure_ascii=ensure_ascii, indent=indent)
    found = _read(tmp_path, content.encode())
    assert _fields(found) == rows
    lines = content.split("\n")
    assert all(lines[item.origin.line - 1].lstrip(" [").startswith("{") for item in found)


@given(content=st.binary(max_size=200) | st.text(alphabet='[]{}",: \n\\ax1', max_size=60))
def test_no_bytes_make_reading_fail_otherwise_than_by_a_rejected_row(
    tmp_path: Path, content: bytes | str
) -> None:
    raw = content.encode() if isinstance(content, str) else content
    for item in _read(tmp_path, raw):
        assert 1 <= item.origin.line <= raw.count(b"\n") + 1


def test_rows_from_python_count_from_one() -> None:
    found = list(read_rows([{"prompt": "a"}, {"prompt": "b"}]))
    assert [str(item.origin) for item in found] == ["<rows>:1", "<rows>:2"]


def test_a_missing_file_is_refused_with_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "zebra.txt").write_bytes(GOOD)
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path / "trian.jsonl"))
    assert "no such file" in caught.value.what
    assert str(tmp_path / "train.jsonl") in caught.value.fix
    assert "zebra" not in caught.value.fix
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path / "nowhere" / "train.jsonl"))
    assert "nowhere does not exist" in caught.value.fix


def test_a_directory_is_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path))
    assert "is a directory" in caught.value.what
    assert f"{tmp_path}/*.jsonl" in caught.value.fix


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        list(read_rows(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").touch(mode=0o000)
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_rows(tmp_path / "secret.jsonl"))


def test_a_key_that_could_be_content_is_not_shown(tmp_path: Path) -> None:
    for key in ("k" * 41, "a\\u001bb", "a\\u2028b"):
        line = f'{{"{key}": 1, "{key}": 2}}'
        (rejected,) = _read(tmp_path, line.encode())
        assert isinstance(rejected, Rejected)
        assert rejected.reason == "the key (a long or odd name) is given twice"
