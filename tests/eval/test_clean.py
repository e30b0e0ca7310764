"""A cleaned copy has the other lines byte for byte; the file is left alone, whatever is asked."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from duiti.errors import DuitiError, UsageError
from duiti.eval.clean import write_cleaned

LINES = [
    b'{"prompt": "a",  "response": "1"}\r\n',
    b"\n",
    b'{"response": "\xc3\xa9", "prompt": "b"}\n',
    b"no row at all\n",
    b'{"prompt": "c", "response": "3"}',
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


def test_the_other_lines_are_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    found = write_cleaned(source, tmp_path / "clean.jsonl", without={3})
    assert (tmp_path / "clean.jsonl").read_bytes() == b"".join(LINES[:2] + LINES[3:])
    assert found.left_out == (3,)
    assert found.num_kept == 3
    assert source.read_bytes() == b"".join(LINES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.jsonl", "train.jsonl"]


def test_without_anything_to_leave_out_it_is_the_same_file(source: Path, tmp_path: Path) -> None:
    write_cleaned(source, tmp_path / "clean.json", without=())
    assert (tmp_path / "clean.json").read_bytes() == source.read_bytes()


def test_a_packed_file_is_unpacked(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    write_cleaned(packed, tmp_path / "clean.jsonl", without={1, 5})
    assert (tmp_path / "clean.jsonl").read_bytes() == b"".join(LINES[1:4])


def test_nothing_is_written_over(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.jsonl"
    other.write_text("precious")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    for name in ("mine.jsonl", "train.jsonl", "link.jsonl"):
        with pytest.raises(UsageError, match="is there already"):
            write_cleaned(source, tmp_path / name, without={1})
    assert other.read_text() == "precious"
    assert source.read_bytes() == b"".join(LINES)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("rows.csv", b"prompt,response\na,1\n", "is csv"),
        ("rows.json", b'[{"prompt": "a", "response": "1"}]', "one JSON array"),
        ("rows.txt", b"hello", "not known"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=what):
        write_cleaned(tmp_path / name, tmp_path / "clean.jsonl", without={1})
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["clean", "clean.csv", "clean.jsonl.gz"])
def test_a_copy_that_would_be_misread_by_its_name_is_refused(
    source: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="JSON lines"):
        write_cleaned(source, tmp_path / name, without={1})


def test_a_line_that_is_not_there_and_a_folder_that_is_not_leave_nothing(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="changed while"):
        write_cleaned(source, tmp_path / "clean.jsonl", without={1, 6})
    with pytest.raises(DuitiError, match="does not exist"):
        write_cleaned(source, tmp_path / "nowhere" / "clean.jsonl", without={1})
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
