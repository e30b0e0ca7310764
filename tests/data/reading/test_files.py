"""What a file holds is told by name and first bytes, and nothing but a plain file is opened."""

import os
import socket
from pathlib import Path

import pytest

from duiti.data.reading.files import (
    kind_by_name,
    kind_of,
    numbered_lines,
    open_file,
    stem_and_suffix,
)
from duiti.errors import UsageError


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("a.jsonl", "json", "a"),
        ("a.JSON", "json", "a"),
        ("a.ndjson.gz", "json", "a"),
        ("dir.csv/a.csv.zst", "csv", "a"),
        ("train-00000-of-00002.parquet", "parquet", "train-00000-of-00002"),
        ("a.b.tsv.zstd", "tsv", "a.b"),
        ("a.gz", None, "a"),
        ("a.txt", None, "a"),
        ("jsonl", None, "jsonl"),
        ("", None, ""),
    ],
)
def test_a_name_says_what_a_file_holds_packed_or_not(
    name: str, kind: str | None, stem: str
) -> None:
    assert kind_by_name(name) == kind
    assert stem_and_suffix(name)[0] == stem


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.csv", b"{", "csv"),
        ("a.txt", b' \n{"a": 1}', "json"),
        ("a", b"[\n {", "json"),
        ("a", b"[]", "json"),
        ("a", b"", "json"),
        ("a.jsonl", b"PAR1", "parquet"),
        ("a.json", b"prompt,response", "json"),
    ],
)
def test_the_name_decides_unless_it_says_nothing(name: str, head: bytes, kind: str) -> None:
    assert kind_of(name, head) == kind


@pytest.mark.parametrize(
    ("name", "head", "what"),
    [
        ("a.jsonl", b"PK\x03\x04...", "a zip archive or spreadsheet"),
        ("a.csv", b"BZh91AY&SY", "a bzip2 file"),
        ("a.jsonl", b"\xfd7zXZ\0", "an xz file"),
        ("a", b"x" * 257 + b"ustar\0", "a tar archive"),
        ("a.parquet", b"ARROW1\0\0", "an Arrow file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.json", b"\n<!DOCTYPE html>", "a web page"),
        ("a.json", b"\xff\xfe{\0", "UTF-16"),
        ("a.parquet", b"PARE", "no Parquet file"),
        ("a.txt", b"Hello", "what it holds is not known"),
        ("a.md", b"[link](there)", "what it holds is not known"),
        ("a", b"\x80\x05", "what it holds is not known"),
    ],
)
def test_something_else_is_refused_by_what_it_is(name: str, head: bytes, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        kind_of(name, head)


def test_what_is_read_is_listed_where_a_file_is_not_known() -> None:
    with pytest.raises(UsageError) as caught:
        kind_of("a.txt", b"Hello")
    assert ".jsonl, .ndjson, .json, .csv, .tsv, .parquet" in caught.value.fix


def test_pipes_sockets_devices_and_folders_are_refused_without_opening_them(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.jsonl"))
    for path in (tmp_path / "pipe.jsonl", tmp_path / "socket.jsonl", Path("/dev/zero")):
        with pytest.raises(UsageError, match="is not a regular file") as caught:
            open_file(path, str(path))
        assert "pipe, socket or device" in caught.value.why
    with pytest.raises(UsageError, match="is a directory"):
        open_file(tmp_path, str(tmp_path))


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "loop", "file/below"])
def test_a_path_that_can_be_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        open_file(tmp_path / name, name)


def test_a_byte_order_mark_is_not_part_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa\n")
    with open_file(path, "a.csv") as file:
        assert file.read() == b"\xef\xbb\xbfa\n"


def test_lines_are_numbered_with_the_blank_and_the_long_ones_counted(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\n a\r\n\t \r\n" + b"b" * 30 + b"\nc\x0bd\x85\nlast")
    with path.open("rb") as file:
        assert list(numbered_lines(file, limit=10)) == [
            (2, b" a\r\n"),
            (4, None),
            (5, b"c\x0bd\x85\n"),
            (6, b"last"),
        ]


def test_many_empty_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\n" + b"\n" * 200_000 + b"  \nb\n" + b"\n" * 70_000)
    with path.open("rb") as file:
        assert list(numbered_lines(file, limit=10)) == [(1, b"a\n"), (200_003, b"b\n")]
