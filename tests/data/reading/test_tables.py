"""CSV and TSV are read as RFC 4180 has them: text, by line, and never guessed at."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading import read
from duiti.data.reading.json_rows import REST_UNREAD
from duiti.data.reading.read import read_rows
from duiti.errors import UsageError
from duiti.types import Rejected, Row

TEXT = st.text(
    st.sampled_from('a,"\t \n\r;水\u2028\x85\x1c\ufeff') | st.characters(exclude_categories=["Cs"]),
    max_size=6,
).filter(lambda text: "\0" not in text)


def _read(folder: Path, content: bytes, name: str = "rows.csv") -> list[Row | Rejected]:
    path = folder / name
    path.write_bytes(content)
    return list(read_rows(path))


def _shape(found: list[Row | Rejected]) -> list[tuple[object, int]]:
    return [
        (tuple(item.fields.values()) if isinstance(item, Row) else item.reason, item.origin.line)
        for item in found
    ]


def _refusal(folder: Path, content: bytes, name: str = "rows.csv") -> UsageError:
    with pytest.raises(UsageError) as caught:
        _read(folder, content, name)
    return caught.value


@given(
    table=st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), max_size=4)
    ),
    name=st.sampled_from(["rows.csv", "rows.tsv"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_a_csv_writer_wrote_comes_back_with_the_line_of_each_row(
    tmp_path: Path, table: list[list[str]], name: str, ending: str, quoting: int
) -> None:
    file = io.StringIO()
    delimiter = "," if name == "rows.csv" else "\t"
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting)  # type: ignore[arg-type]
    width = len(table[0]) if table else 2
    header = ["水", "h", "z"][:width]
    writer.writerow(header)
    lines = []
    for row in table:
        lines.append(file.getvalue().count("\n") + 1)
        writer.writerow(row)
    found = _read(tmp_path, file.getvalue().encode(), name)
    assert [dict(item.fields) for item in found if isinstance(item, Row)] == [
        dict(zip(header, row, strict=True)) for row in table
    ]
    assert [item.origin.line for item in found] == lines


def test_nothing_in_a_table_becomes_a_number_a_date_or_a_null(tmp_path: Path) -> None:
    content = b"a,b,c,d\n1e5,2024-01-01,,NULL\n 01 ,true,NaN,null\n"
    assert _shape(_read(tmp_path, content)) == [
        (("1e5", "2024-01-01", "", "NULL"), 2),
        ((" 01 ", "true", "NaN", "null"), 3),
    ]


def test_each_row_at_fault_is_refused_at_its_line_and_reading_goes_on(tmp_path: Path) -> None:
    rows = [
        b"a,b",
        b"1,2",
        b"",
        b"1",
        b"1,2,3",
        b'"1"x,2',
        b'1,say "hi"',
        b'5" disk,2',
        b"1\r2,3",
        b"\xff,2",
        b'"x',
        b'\xffy","z"',
        b"a\0b,2",
        b'"1',
        b'2"',
        b'"q","""a"" b"',
        b"1,2",
    ]
    assert _shape(_read(tmp_path, b"\xef\xbb\xbf" + b"\r\n".join(rows))) == [
        (("1", "2"), 2),
        ("has 1 fields, and the header 2", 4),
        ("has 3 fields, and the header 2", 5),
        ("something follows a quoted field (a quote in it must be doubled)", 6),
        ("a quote in a field that is not in quotes", 7),
        ("a quote in a field that is not in quotes", 8),
        ("a carriage return in a field that is not in quotes", 9),
        ("not UTF-8 in line 10", 10),
        ("not UTF-8 in line 12 (the row goes on to line 12)", 11),
        ("has a NUL character (U+0000)", 13),
        ("has 1 fields, and the header 2 (the row goes on to line 15)", 14),
        (("q", '"a" b'), 16),
        (("1", "2"), 17),
    ]


def test_where_a_quote_reaches_over_lines_the_next_row_cannot_be_known(tmp_path: Path) -> None:
    first, last = _read(tmp_path, b'a,b\n1,2\n"3,4\n5,"6"\n7,8\n')
    assert isinstance(first, Row)
    assert isinstance(last, Rejected)
    assert last.origin.line == 3
    assert last.reason == (
        "something follows a quoted field (a quote in it must be doubled)"
        f" (the row goes on to line 4){REST_UNREAD}"
    )
    _, last = _read(tmp_path, b'a,b\n1,2\n"3,4\n5,6\n')
    assert isinstance(last, Rejected)
    assert last.reason.startswith("a quoted field is never closed (the row goes on to line 4)")


def test_a_field_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    long = b"x" * 200_000
    assert isinstance(_read(tmp_path, b"a,b\n" + long + b",2\n")[0], Row)


@pytest.mark.parametrize("long", [b"x" * 70 + b",2", b'"' + b"x\n" * 40 + b'",2'])
def test_a_row_that_is_too_long_ends_the_reading(
    tmp_path: Path, long: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 64)
    exact = b"x" * 61 + b",2\n"
    assert len(exact) == 64
    found = _read(tmp_path, b"a,b\n" + exact + long + b"\n1,2\n")
    assert isinstance(found[0], Row)
    assert isinstance(found[1], Rejected)
    assert found[1].origin.line == 3
    assert found[1].reason.endswith(REST_UNREAD)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n\r\n", "is empty"),
        (b"a,a\n1,2", 'rows.csv:1: the column "a" is there twice'),
        (b"\n\na,,b\n1,2,3", "rows.csv:3: column 2 has no name"),
        (b"a;b\n1;2", "rows.csv:1: the header is one column, with semicolons in its name"),
        (b"a\tb\n1\t2", "rows.csv:1: the header is one column, with tabs in its name"),
        (b"a\xff,b\n", "rows.csv:1: the header cannot be read: not UTF-8 in line 1"),
        (b"a\0,b\n", "rows.csv:1: the header cannot be read: has a NUL"),
        (b'"a,b\n1,2\n', "rows.csv:1: the header cannot be read: a quoted field is never closed"),
        (b"a,b\r1,2\r", "rows.csv:1: the header cannot be read: a carriage return"),
    ],
)
def test_a_table_without_a_good_header_is_refused(
    tmp_path: Path, content: bytes, what: str
) -> None:
    assert (
        _refusal(tmp_path, content)
        .what.removeprefix(f"{tmp_path}/")
        .startswith(what if what[:4] == "rows" else f"rows.csv {what}")
    )


def test_the_index_that_pandas_writes_is_refused_with_how_to_leave_it_out(tmp_path: Path) -> None:
    assert "index=False" in _refusal(tmp_path, b",a\n0,1\n").fix


def test_commas_in_a_tsv_are_refused_with_the_name_it_should_have(tmp_path: Path) -> None:
    assert _refusal(tmp_path, b"a,b\n1,2", "rows.tsv").fix == "name it .csv"


def test_a_header_of_very_many_columns_is_checked_at_once(tmp_path: Path) -> None:
    header = ",".join(str(number) for number in range(300_000))
    assert 'the column "7" is there twice' in _refusal(tmp_path, f"{header},7\n".encode()).what


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    assert _read(tmp_path, b"prompt,response\n") == []
    assert _read(tmp_path, b"prompt") == []


@given(content=st.text('a,"\t\r\n', max_size=60))
def test_what_is_not_well_formed_never_becomes_a_row(tmp_path: Path, content: str) -> None:
    """Rows that were accepted, written anew and read anew, are the same rows."""
    found = _read(tmp_path, b"x,y\n" + content.encode())
    rows = [list(item.fields.values()) for item in found if isinstance(item, Row)]
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    again = _read(tmp_path, file.getvalue().encode())
    assert [list(item.fields.values()) for item in again if isinstance(item, Row)] == rows
    for item in found:
        line = content.split("\n")[item.origin.line - 2]
        if isinstance(item, Row) and '"' not in content:
            assert line.rstrip("\r").split(",") == list(item.fields.values())
