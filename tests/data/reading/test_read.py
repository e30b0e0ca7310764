"""Reading is strict, says where, and goes on: every row of a file is a Row or a Rejected."""

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading import read
from duiti.data.reading.json_rows import REST_UNREAD
from duiti.data.reading.read import count_rows, read_rows
from duiti.data.reading.sources import Source, parse_source
from duiti.errors import DataError, DuitiError, UsageError
from duiti.types import Json, Rejected, Row

GOOD = b'{"prompt": "q", "response": "a"}'
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
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
    assert count_rows(path) == len(found)
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
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", 'the field "a": nested too deeply'),
        (b'{"a": 1e999}', "a number is too large for a float"),
        (b'{"a": "\\ud83d"}', 'the field "a": has half of a surrogate pair'),
        (b'{"a": ["\\ude00\\ud83d"]}', 'the field "a": has half of a surrogate pair'),
        (b'{"\\udc00": 1}', "a key has half of a surrogate pair"),
        (b'{"a": "\\u0000"}', 'the field "a": has a NUL character (U+0000)'),
        (b'{"a": "\0"}', "NUL bytes (was the file not written to its end?) at character 8"),
        (b"\0\0\0", "NUL bytes (was the file not written to its end?) at character 1"),
        (GOOD + b"\0", "NUL bytes (was the file not written to its end?) at character 33"),
        (b"\x0c", "not valid JSON"),
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
def test_no_bytes_make_reading_fail_otherwise_than_by_an_error_of_ours(
    tmp_path: Path, content: bytes | str
) -> None:
    raw = content.encode() if isinstance(content, str) else content
    try:
        found = _read(tmp_path, raw)
    except (UsageError, DataError):
        return  # the whole file is something else: an object over several lines, gzip, …
    for item in found:
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


def test_what_python_can_say_and_json_cannot_is_refused_row_by_row() -> None:
    nested: list[object] = []
    for _ in range(100):
        nested = [nested]
    endless: dict[str, object] = {}
    endless["again"] = endless
    rows: list[object] = [
        {"prompt": "q", "n": [1, 2.5, None, True, {"k": []}]},
        {"a": float("nan")},
        {"a": [float("-inf")]},
        {"a": b"bytes"},
        {"a": {"b": date(2024, 1, 1)}},
        {"a": ("tuple",)},
        {"a": {1: "b"}},
        {1: "b"},
        {"a": "\ud83d"},
        {"a": "x\0"},
        {"a": 10**1000},
        {"a": nested},
        endless,
        "text",
        ["prompt"],
    ]
    found = list(read_rows(rows))  # type: ignore[arg-type]
    assert _shape(found) == [
        ("row", 1),
        ('the field "a": NaN or Infinity is not JSON', 2),
        ('the field "a": NaN or Infinity is not JSON', 3),
        ('the field "a": a bytes is not JSON', 4),
        ('the field "a": a date is not JSON', 5),
        ('the field "a": a tuple is not JSON', 6),
        ('the field "a": a key is no string but an int', 7),
        ("a key is no string but an int", 8),
        ('the field "a": has half of a surrogate pair', 9),
        ('the field "a": has a NUL character (U+0000)', 10),
        ('the field "a": a number has more than 1000 digits', 11),
        ('the field "a": nested too deeply (more than 100 levels)', 12),
        ('the field "again": nested too deeply (more than 100 levels)', 13),
        ("not a mapping of fields, but a str", 14),
        ("not a mapping of fields, but a list", 15),
    ]


def test_rows_from_a_generator_are_read_one_at_a_time() -> None:
    taken = []

    def rows() -> Iterator[dict[str, Json]]:
        for number in range(3):
            taken.append(number)
            yield {"prompt": str(number)}

    reading = read_rows(rows())
    assert next(reading).origin.line == 1
    assert taken == [0]
    assert len(list(reading)) == 2


@pytest.mark.parametrize("wrong", [{"prompt": "q"}, b"rows.jsonl", 3])
def test_what_is_no_iterable_of_rows_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="iterable of mappings"):
        list(read_rows(wrong))  # type: ignore[arg-type]


ROWS: list[dict[str, Json]] = [
    {"prompt": f"q{number} 水\u2028", "response": 'a,\n"b"'} for number in range(600)
]


def _csv(delimiter: str) -> bytes:
    lines = [f"prompt{delimiter}response\r\n"]
    lines += [f'{row["prompt"]}{delimiter}"a,\n""b"""\r\n' for row in ROWS]
    return "".join(lines).encode()


def _parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=100)
    return file.getvalue()


FILES = {
    "rows.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "rows.csv": _csv(","),
    "rows.tsv": _csv("\t"),
    "rows.parquet": _parquet(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_all_formats_give_the_same_rows_packed_or_not(
    tmp_path: Path, name: str, packing: str
) -> None:
    path = tmp_path / f"{name}{packing}"
    content = FILES[name]
    if packing == ".gz":
        content = gzip.compress(content[:999]) + gzip.compress(content[999:])
    if packing == ".zst":
        pack = zstandard.ZstdCompressor().compress
        content = pack(content[:999]) + pack(content[999:])
    path.write_bytes(content)
    assert _fields(list(read_rows(path))) == ROWS
    assert count_rows(path) == len(ROWS)
    # A packed file is known by its content: the name may keep it for itself.
    bare = tmp_path / name
    bare.write_bytes(content)
    assert _fields(list(read_rows(bare))) == ROWS
    third = list(read_rows(f"{path}@0.1", seed=3))
    assert _fields(third) == [row for row in ROWS if row in _fields(third)]
    assert len(third) == 60


@given(
    content=st.binary(max_size=300)
    | st.text(alphabet='[]{}",:\t \r\n\\ax1\0é', max_size=60).map(str.encode),
    name=st.sampled_from(["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet", "r.dat", "r"]),
    magic=st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xef\xbb\xbf"]),
    packing=st.sampled_from(["", ".gz", ".zst"]),
)
def test_no_bytes_under_any_name_raise_anything_but_an_error_of_ours(
    tmp_path: Path, content: bytes, name: str, magic: bytes, packing: str
) -> None:
    path = tmp_path / f"{name}{packing}"
    content = magic + content
    if packing == ".gz" and not magic.startswith(b"\x1f"):
        content = gzip.compress(content)
    path.write_bytes(content)
    try:
        found = list(read_rows(path))
        assert count_rows(path) == len(found)
    except (UsageError, DataError) as error:
        assert error.exit_code in (2, 3)  # noqa: PT017


@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_damaged_raises_nothing_but_an_error_of_ours(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = list(read_rows(path))
    except DuitiError:
        return
    assert all(isinstance(item, Row | Rejected) for item in found)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_file_cut_in_the_middle_stops_with_the_line_after_the_rows_before_it(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / f"{name}.gz"
    packed = gzip.compress(FILES[name])
    path.write_bytes(packed[: len(packed) // 2])
    found: list[Row | Rejected] = []
    with pytest.raises(DataError, match="the gzip data ends too early") as caught:
        found.extend(read_rows(path))  # keeps what came before the error
    line = int(caught.value.what.removeprefix(f"{path}:").partition(":")[0])
    assert found
    assert found[-1].origin.line <= line
    assert _fields(found) == ROWS[: len(found)]


# How much of a source


def _numbers(found: list[Row | Rejected]) -> list[int]:
    return [item.origin.line for item in found]


@given(
    num_rows=st.integers(1, 40), share=st.floats(0.01, 5, allow_nan=False), seed=st.integers(0, 9)
)
def test_a_share_is_an_exact_number_of_rows_in_their_order(
    num_rows: int, share: float, seed: int
) -> None:
    rows: list[dict[str, Json]] = [{"prompt": str(number)} for number in range(num_rows)]
    source = Source(name="<rows>", rows=rows, share=share)
    if not round(share * num_rows):
        with pytest.raises(UsageError, match="that is none"):
            list(read_rows(source, seed))
        return
    found = _numbers(list(read_rows(source, seed)))
    assert len(found) == round(share * num_rows)
    assert found == sorted(found)
    times = Counter(found)
    whole = len(found) // num_rows
    assert {times[number] for number in range(1, num_rows + 1)} <= {whole, whole + 1}
    assert found == _numbers(list(read_rows(source, seed)))


def test_every_row_is_chosen_equally_often_over_the_seeds() -> None:
    rows: list[dict[str, Json]] = [{"prompt": str(number)} for number in range(10)]
    times: Counter[int] = Counter()
    for seed in range(1000):
        times.update(_numbers(list(read_rows(Source(name="r", rows=rows, count=3), seed))))
    # 300 each; the standard deviation is sqrt(1000 * 0.3 * 0.7) = 14.5, and five of them is 72
    assert all(228 < times[number] < 372 for number in range(1, 11))


def test_a_row_at_fault_counts_as_a_row_and_is_handed_out_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n\nnonsense\n" + GOOD)
    assert _numbers(list(read_rows(f"{path}@2"))) == [1, 1, 3, 4, 4]
    assert len(list(read_rows(f"{path}#3"))) == 3


def test_more_rows_than_there_are_cannot_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(UsageError, match="there are only 1 rows") as caught:
        list(read_rows(f"{path}#2"))
    assert caught.value.fix == f"{path}#1"


def test_rows_that_pass_once_cannot_be_chosen_from() -> None:
    with pytest.raises(UsageError, match="gone through once"):
        list(read_rows(Source(name="<rows>", rows=iter([{"a": 1}]), count=1)))


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for before, after in ((2, 3), (3, 2)):
        path.write_bytes((GOOD + b"\n") * before)
        picks = iter([1] * before)
        path.write_bytes((GOOD + b"\n") * after)
        with path.open("rb") as file, pytest.raises(DataError, match="changed while"):
            list(read._choose_in_file(file, str(path), picks))


@pytest.mark.parametrize("amount", ["@0.1", "#3"])
def test_a_part_of_a_file_does_not_hide_that_the_rest_cannot_be_read(
    tmp_path: Path, amount: str
) -> None:
    file = tmp_path / "broken.json"
    rows = ",\n".join(f'{{"prompt": "q{n}", "response": "a"}}' for n in range(100))
    file.write_text(f"[{rows},\n{{]", encoding="utf-8")
    for seed in range(5):
        found = list(read_rows(parse_source(f"{file}{amount}"), seed=seed))
        assert isinstance(found[-1], Rejected)
        assert found[-1].reason.endswith(REST_UNREAD)
