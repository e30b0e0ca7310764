"""A filter is found or explained, sees a copy of the row, and fails without quoting it."""

import sys
from pathlib import Path
from traceback import format_exception

import pytest

from duiti.data.reading.filter import load_filter
from duiti.errors import RowError, UsageError
from duiti.types import Json

SECRET = "Zq7xSecretXq9"
ROW: dict[str, Json] = {"prompt": "q", "response": SECRET}


def _file(folder: Path, text: str, name: str = "keep.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _usage_error(spec: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_filter(spec)
    return str(caught.value)


def test_a_filter_says_which_rows_are_kept(tmp_path: Path) -> None:
    path = _file(tmp_path, "def is_short(row):\n    return len(row['response']) < 5\n")
    keeps = load_filter(f"{path}:is_short")
    assert keeps({"response": "a"}) is True
    assert keeps(ROW) is False
    assert not any(tmp_path.glob("__pycache__"))


def test_anything_that_can_be_called_is_a_filter(tmp_path: Path) -> None:
    text = """\
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Longer:
    than: int

    def __call__(self, row: dict) -> bool:
        return len(row["response"]) > self.than

longer = Longer(3)
keep = lambda row: "id" in row
"""
    path = _file(tmp_path, text, name="with:colon.py")
    assert load_filter(f"{path}:longer")(ROW) is True
    assert load_filter(f"{path}:keep")(ROW) is False


def test_two_files_of_one_name_are_two_filters(tmp_path: Path) -> None:
    filters = []
    for answer in ("True", "False"):
        (tmp_path / answer).mkdir()
        path = _file(tmp_path / answer, f"A = {answer}\ndef f(row):\n    return A\n")
        filters.append(load_filter(f"{path}:f"))
    assert [keeps(ROW) for keeps in filters] == [True, False]
    assert "keep" not in sys.modules


def test_a_filter_cannot_change_the_row(tmp_path: Path) -> None:
    path = _file(tmp_path, "def f(row):\n    row.clear()\n    return True\n")
    row = dict(ROW)
    assert load_filter(f"{path}:f")(row) is True
    assert row == ROW


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return row['missing']", "the filter raised KeyError at {path}:2"),
        ("return int(row['response'])", "the filter raised ValueError at {path}:2"),
        ("return deeper(row)", "the filter raised ZeroDivisionError at {path}:5"),
        ("raise SystemExit(row['response'])", "the filter raised SystemExit at {path}:2"),
        ("return f(row)", "the filter raised RecursionError at {path}:2"),
        ("return eval(row['response'] + '(')", "the filter raised SyntaxError at {path}:2"),
        ("pass", "the filter returned None; True or False is due"),
        ("return 1", "the filter returned a value of type int; True or False is due"),
        ("return row['response']", "the filter returned a value of type str"),
        ("yield True", "the filter returned a value of type generator"),
    ],
)
def test_a_filter_that_fails_on_a_row_rejects_it_without_quoting_it(
    tmp_path: Path, body: str, reason: str
) -> None:
    path = _file(tmp_path, f"def f(row):\n    {body}\n\ndef deeper(row):\n    return 1 / 0\n")
    with pytest.raises(RowError) as caught:
        load_filter(f"{path}:f")(ROW)
    assert reason.format(path=path) in str(caught.value)
    assert SECRET not in "".join(format_exception(caught.value))


def test_a_wrong_name_of_a_filter_is_explained(tmp_path: Path) -> None:
    text = "import os\nfrom re import match\nLIMIT = 3\ndef is_short(row):\n    return True\n"
    path = _file(tmp_path, text)
    assert 'Did you mean "is_short"?' in _usage_error(f"{path}:is_shrt")
    assert '"LIMIT"' in _usage_error(f"{path}:LIMIT")
    other = _usage_error(f"{path}:xyz")
    assert "does not exist" in other
    assert "There is: is_short" in other
    assert "match" not in other


@pytest.mark.parametrize("spec", ["keep.py", "keep.py:", ":f", "keep.py:f()", "keep.py:a.b", ""])
def test_a_spec_without_a_function_is_explained(spec: str) -> None:
    with pytest.raises(UsageError, match=r"names no function[\s\S]*--filter keep.py:is_short"):
        load_filter(spec)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    assert "no such file" in _usage_error(f"{tmp_path}/keep.py:f")
    assert "is not a file" in _usage_error(f"{tmp_path}:f")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\ndef f(row)\n    return True\n", "SyntaxError at {path}:2"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError at {path}:1"),
        ("x = 1\n\n1 / 0\n", "ZeroDivisionError at {path}:3"),
        ("def g():\n    raise SystemExit\n\ng()\n", "SystemExit at {path}:2"),
        ("x = '\0'\n", "cannot be run"),
    ],
)
def test_a_file_that_cannot_be_run_is_explained_by_its_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = _file(tmp_path, text)
    before = set(sys.modules)
    error = _usage_error(f"{path}:f")
    assert reason.format(path=path) in error
    assert "fix: " in error
    assert not {name for name in set(sys.modules) - before if "filter" in name}


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "import nothing_of_this_name\n")
    assert "why: No module named 'nothing_of_this_name'" in _usage_error(f"{path}:f")
