"""What is named as data means one thing, and where it does not, the error says what is right."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading.sources import Source, expand, parse_source
from duiti.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").touch()
    return tmp_path


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    ("text", "name", "share", "count"),
    [
        ("a.jsonl", "a.jsonl", None, None),
        ("a.jsonl@0.1", "a.jsonl", 0.1, None),
        ("a.jsonl@.5", "a.jsonl", 0.5, None),
        ("a.jsonl@2", "a.jsonl", 2.0, None),
        ("a.jsonl@1.5", "a.jsonl", 1.5, None),
        ("a.jsonl@1e-3", "a.jsonl", 0.001, None),
        ("a.jsonl#500", "a.jsonl", None, 500),
        ("not-there.jsonl#7", "not-there.jsonl", None, 7),
        ("not-there@home.jsonl", "not-there@home.jsonl", None, None),
        ("me@home/b.jsonl", "me@home/b.jsonl", None, None),
        ("me@home/b.jsonl@0.5", "me@home/b.jsonl", 0.5, None),
    ],
)
def test_a_path_may_say_how_much_of_it_is_meant(
    folder: Path, text: str, name: str, share: float | None, count: int | None
) -> None:
    assert parse_source(text) == Source(name=name, path=Path(name), share=share, count=count)


@pytest.mark.parametrize("name", ["b@0.1", "b#5", "a.jsonl@2", "c@d#3"])
def test_a_path_that_exists_is_that_path(folder: Path, name: str) -> None:
    Path(name).touch()
    assert parse_source(name) == Source(name=name, path=Path(name))
    assert parse_source(f"{name}#3") == Source(name=name, path=Path(name), count=3)


def test_a_path_object_is_never_taken_apart() -> None:
    assert parse_source(Path("a@2")) == Source(name="a@2", path=Path("a@2"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a.jsonl@", "the weight must be a number above 0"),
        ("a.jsonl@half", "the weight must be a number above 0"),
        ("a.jsonl@0", "the weight must be a number above 0"),
        ("a.jsonl@-1", "the weight must be a number above 0"),
        ("a.jsonl@10%", "the weight must be a number above 0"),
        ("a.jsonl@nan", "the weight must be a number above 0"),
        ("a.jsonl@1e999", "the weight must be a number above 0"),
        ("a.jsonl@٢", "the weight must be a number above 0"),
        ("a.jsonl@500", "a weight of 500 repeats every row that often"),
        ("a.jsonl#", "the number of rows must be a whole number above 0"),
        ("a.jsonl#0", "the number of rows must be a whole number above 0"),
        ("a.jsonl#1.5", "the number of rows must be a whole number above 0"),
        ("a.jsonl#all", "the number of rows must be a whole number above 0"),
        ("a.jsonl#500@2", "not both"),
        ("a.jsonl@0.5#500", "not both"),
    ],
)
def test_a_wrong_amount_is_refused(folder: Path, text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert what in caught.value.what
    assert caught.value.what.startswith(f"{text}: ")


def test_the_error_shows_how_an_amount_is_written(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source("a.jsonl@10%")
    assert "a.jsonl@0.1 for a tenth of its rows" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        parse_source("a.jsonl@500")
    assert caught.value.fix.endswith("a.jsonl#500")


@given(text=st.text(max_size=12) | st.text("a@#.0129e-/\0", max_size=12))
def test_no_text_raises_anything_but_an_error_of_usage(text: str) -> None:
    try:
        source = parse_source(text)
        assert source.share is None or 0 < source.share <= 100
        assert source.count is None or source.count > 0
        expand([source])
    except UsageError:
        pass


def test_a_source_is_shown_as_it_was_written(folder: Path) -> None:
    for text in ("a.jsonl", "a.jsonl@0.1", "a.jsonl@2", "a.jsonl#500"):
        assert str(parse_source(text)) == text


# Folders


def _names(sources: tuple[Source, ...], folder: Path) -> list[str]:
    assert all(source.path == Path(source.name) for source in sources)
    return [source.name.removeprefix(f"{folder}/") for source in sources]


def test_a_folder_is_its_train_files_and_its_validation_files(tmp_path: Path) -> None:
    _fill(
        tmp_path,
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation.jsonl.gz",
        "test.csv",
        "more.jsonl",
        "README.md",
        ".train.jsonl",
        "train.py",
        "train/x.jsonl",
    )
    found = expand([parse_source(f"{tmp_path}@0.5")])
    assert _names(found.train, tmp_path) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert [source.share for source in found.train] == [0.5, 0.5]
    assert _names(found.val, tmp_path) == ["validation.jsonl.gz"]
    assert found.val[0].share is None
    assert [name.removeprefix(f"{tmp_path}/") for name in found.ignored] == [
        "more.jsonl",
        "test.csv",
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("TRAIN.JSON", "train"),
        ("training.csv.gz", "train"),
        ("gsm8k_train.jsonl", "train"),
        ("val.jsonl", "val"),
        ("valid.tsv", "val"),
        ("my-dev.jsonl.zst", "val"),
        ("eval.parquet", "val"),
        ("test-00000-of-00001.parquet", "ignored"),
        ("trainer.jsonl", "ignored"),
        ("value.jsonl", "ignored"),
    ],
)
def test_a_word_of_the_name_says_what_a_file_is_for(tmp_path: Path, name: str, split: str) -> None:
    _fill(tmp_path, name, "train_base.jsonl")
    found = expand([Source(name=str(tmp_path), path=tmp_path)])
    names = {
        "train": _names(found.train, tmp_path),
        "val": _names(found.val, tmp_path),
        "ignored": [Path(path).name for path in found.ignored],
    }
    assert [key for key, values in names.items() if name in values] == [split]


def _refusal(folder: Path, suffix: str = "") -> UsageError:
    with pytest.raises(UsageError) as caught:
        expand([parse_source(f"{folder}{suffix}")])
    return caught.value


def test_a_folder_without_train_files_is_refused_with_what_could_be_read(tmp_path: Path) -> None:
    error = _refusal(_fill(tmp_path, "b.jsonl", "a.csv", "note.txt", "data/train.parquet"))
    assert "has no train file" in error.what
    assert error.why == (
        f"what can be read: {tmp_path}/a.csv, {tmp_path}/b.jsonl, {tmp_path}/data/train.parquet"
    )
    assert f"{tmp_path}/a.csv" in error.fix


def test_an_empty_folder_is_refused_with_what_is_read(tmp_path: Path) -> None:
    assert ".parquet" in _refusal(tmp_path).fix


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["train.jsonl", "train.csv"], "train.csv and train.jsonl: which one is meant?"),
        (["train.jsonl", "train.jsonl.gz"], "train.jsonl and train.jsonl.gz: which one"),
        (["train-0-of-2.json"], "part 1 of 2 of train is missing"),
        (["train-00000-of-00003.json", "train-00002-of-00003.json"], "part 1 of 00003"),
        (["train.json", "val-1-of-2.json"], "part 0 of 2 of val is missing"),
        (["train_test.jsonl"], "its name says test and train"),
    ],
)
def test_a_folder_that_could_mean_two_things_or_lacks_a_part_is_refused(
    tmp_path: Path, names: list[str], what: str
) -> None:
    assert what in _refusal(_fill(tmp_path, *names)).what


def test_a_number_of_rows_of_several_files_is_refused_with_what_to_write(tmp_path: Path) -> None:
    _fill(tmp_path, "train.jsonl")
    assert expand([parse_source(f"{tmp_path}#5")]).train[0].count == 5
    _fill(tmp_path, "train-more.jsonl")
    assert f"{tmp_path}@0.1" in _refusal(tmp_path, "#5").fix


def test_files_that_are_not_there_are_all_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = ("gone", "lost", "pipe")
    with pytest.raises(UsageError) as caught:
        expand([parse_source(str(tmp_path / name)) for name in names])
    assert all(str(tmp_path / name) in caught.value.what for name in names)


def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    assert "not a regular file" in _refusal(tmp_path).what


def test_rows_from_python_pass_as_they_are() -> None:
    rows = Source(name="<rows>", rows=[{"prompt": "q"}])
    found = expand([rows])
    assert found.train == (rows,)
    assert found.val == found.ignored == ()
