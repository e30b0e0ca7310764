"""What is prepared does not depend on who prepares it, how often it was interrupted, or whether it
was prepared before; and nothing of a row gets out."""

import copy
import gzip
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import DATE, prepared, write_rows
from made_blocks import same_example
from transformers import PreTrainedTokenizerFast

from duiti.data import prepare as module
from duiti.data.jobs import PrepareOptions, day, make_encoder, prompt_service, tokenizer_json
from duiti.data.meter import Progress
from duiti.data.prepare import Prepared, prepare
from duiti.data.reading.sources import Source, parse_source
from duiti.data.rows.formats import to_sample
from duiti.data.templates.template import Template, load_template
from duiti.data.tokens.pretokens import FastEncoder
from duiti.errors import DataError, UsageError
from duiti.types import Message, Origin, Row

SECRET = "Zq7xSecretXq9"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("human-assistant", tokenizer)


@pytest.fixture(scope="module")
def foreign(tokenizer: PreTrainedTokenizerFast) -> Template:
    """A template that came with the model, which a child process renders."""
    return own(tokenizer, CHATML)


def own(tokenizer: PreTrainedTokenizerFast, source: str) -> Template:
    found = copy.deepcopy(tokenizer)
    found.chat_template = source
    return load_template("model", found)


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    numbers = range(first, first + count)
    return [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in numbers]


MIXED: list[dict[str, Any]] = [
    *pairs(3),
    {"prompt": SECRET},
    {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "水?"},
        {"role": "assistant", "content": "H2O 🙂", "weight": 0.5},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No.", "train": False},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes.\n"},
    ]},
    {"prompt": f"{SECRET}<|im_end|>", "response": SECRET},
    {"instruction": "Add", "input": "1 and 2", "output": "3", "id": 7},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": "q", "response": 5},
    {"prompt": "q\nHuman: hi", "response": "long " * 40},
]  # fmt: skip


def same(one: Prepared, two: Prepared) -> bool:
    """Examples bit for bit, in order, and everything that is said about them."""
    return (
        len(one.store) == len(two.store)
        and all(map(same_example, one.store, two.store))
        and np.array_equal(one.store.digests(), two.store.digests())
        and np.array_equal(one.store.parts(), two.store.parts())
        and one.account == two.account
        and (one.names, one.files) == (two.names, two.files)
    )


# Who prepares it


@pytest.mark.parametrize("name", ["template", "foreign"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_prepares_the_same_in_the_same_order(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    workers: int,
) -> None:
    template = request.getfixturevalue(name)
    expected = prepared(template, MIXED * 5)
    assert len(expected.store) == 5 * 7
    monkeypatch.setattr(module, "CHUNK_ROWS", 3)
    assert same(prepared(template, MIXED * 5, workers=workers), expected)


@given(rows=st.lists(st.sampled_from(MIXED), max_size=12), chunk=st.integers(1, 5))
def test_how_rows_are_cut_into_chunks_and_parts_does_not_matter(
    template: Template, rows: list[dict[str, Any]], chunk: int
) -> None:
    expected = prepared(template, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ROWS", chunk)
        patch.setattr(module, "PART_ROWS", 4)
        assert same(prepared(template, rows), expected)


def test_a_child_gives_what_an_encoder_in_this_process_gives(foreign: Template) -> None:
    encoder = make_encoder(foreign, date=DATE)
    found = prepared(foreign, MIXED[:3] + MIXED[4:5], workers=2).store
    expected = [
        piece.example(Origin("<rows>", line))
        for line, row in enumerate(MIXED[:3] + MIXED[4:5], start=1)
        for piece in encoder.encode(to_sample(Row(row, Origin("", 0)))).pieces
    ]
    assert len(found) == len(expected) == 4
    for one, two in zip(found, expected, strict=True):
        assert np.array_equal(one.input_ids, two.input_ids)
        assert np.array_equal(one.labels, two.labels)
        assert one.origin == two.origin


def test_prompts_are_those_that_training_conditioned_on(foreign: Template) -> None:
    service = prompt_service(foreign)
    try:
        for example, row in zip(prepared(foreign, pairs(3)).store, pairs(3), strict=True):
            asked = service.prompt_ids([Message(role="user", content=row["prompt"])])
            assert example.input_ids[example.labels == -100].tolist() == asked
    finally:
        service.close()


def test_rows_may_be_any_mapping_and_come_from_a_generator(template: Template) -> None:
    rows = [types.MappingProxyType(row) for row in pairs(4)]
    expected = prepared(template, pairs(4))
    for workers in (1, 2):
        assert same(prepared(template, rows, workers=workers), expected)
        assert same(prepared(template, (row for row in pairs(4)), workers=workers), expected)


# What becomes of each row


def test_sources_are_read_in_order_and_keep_their_origin(
    template: Template, tmp_path: Path
) -> None:
    files = [tmp_path / "b.jsonl", tmp_path / "a.json"]
    files[0].write_text('{"prompt": "q", "response": "one"}\n{"prompt": "q", "response": "two"}')
    files[1].write_text('[\n{"prompt": "q", "response": "three"}]')
    found = prepared(template, *files, pairs(1))
    origins = [str(example.origin) for example in found.store]
    assert origins == [f"{files[0]}:1", f"{files[0]}:2", f"{files[1]}:2", "<rows>:1"]
    assert found.names == (str(files[0]), str(files[1]), "<rows>")
    assert [file.name for file in found.files] == [str(file) for file in files]


def test_notes_count_rows(template: Template) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "response": "a", "id": 1},
        {"prompt": "q\nHuman: hi", "response": "a", "id": 2},
        {"prompt": "no Human: here", "response": "a"},
        {"prompt": "q", "response": "Assistant: a"},
    ]
    assert prepared(template, rows).account.notes == {
        'a message has a line that begins like a turn, "Assistant:"': 1,
        'a message has a line that begins like a turn, "Human:"': 1,
        'the field "id" is not read': 2,
    }


@pytest.mark.parametrize("key", ["\x1b[2J", "a\nb", "\u202e", SECRET * 10])
def test_a_field_name_in_a_note_cannot_drive_a_terminal(template: Template, key: str) -> None:
    (note,) = prepared(template, [{"prompt": "q", "response": "a", key: 1}]).account.notes
    assert note.isprintable(), ascii(note)
    assert SECRET not in note


def test_map_is_applied_to_every_source(template: Template) -> None:
    rows = [{"question": "q", "gold": "a"}]
    found = prepared(template, rows, rows, mapping={"question": "prompt", "gold": "response"})
    assert len(found.store) == 2
    assert not found.account.notes


def test_a_filter_sees_the_row_as_it_was_read_and_decides(
    template: Template, tmp_path: Path
) -> None:
    (tmp_path / "keep.py").write_text(
        "def even(row):\n    return int(row['n']) % 2 == 0\n"
        "def odd_answers(row):\n    return row['n'] or None\n"
    )
    rows = [{"question": f"q{n}", "response": "a", "n": n} for n in (1, 2, 3, 4)]
    rows.append({"question": "q5", "response": "a", "n": "x"})
    options: dict[str, Any] = {"mapping": {"question": "prompt"}}
    found = prepared(template, rows, filter=f"{tmp_path}/keep.py:even", **options)
    assert [example.origin.line for example in found.store] == [2, 4]
    counts = found.account.sources[0]
    assert (counts.rows, counts.filtered, counts.rejected) == (5, 2, 1)
    assert "ValueError" in found.account.rejected[0][2]
    with pytest.raises(UsageError, match="no_such"):
        prepared(template, rows, filter=f"{tmp_path}/keep.py:no_such")


def test_a_weight_repeats_rows_one_after_the_other(template: Template, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [*pairs(2), {"prompt": SECRET}])
    found = prepared(template, f"{file}@2", file)
    lines = [(example.origin.file, example.origin.line) for example in found.store]
    assert lines == [(str(file), line) for line in (1, 1, 2, 2, 1, 2)]
    assert [counts.rows for counts in found.account.sources.values()] == [6, 3]
    assert [where[:2] for where in found.account.rejected] == [(0, 3), (0, 3), (1, 3)]
    assert found.names == (f"{file}@2", str(file))


@pytest.mark.parametrize("amount", ["#5", "@0.25"])
def test_a_part_of_a_file_is_chosen_by_the_seed(
    template: Template, tmp_path: Path, amount: str
) -> None:
    file = write_rows(tmp_path / "a.jsonl", pairs(20))
    found = [prepared(template, f"{file}{amount}", seed=seed) for seed in (0, 0, 1)]
    assert [len(each.store) for each in found] == [5, 5, 5]
    assert same(found[0], found[1])
    assert not np.array_equal(found[0].store.origins()[1], found[2].store.origins()[1])


def test_progress_is_reported_to_its_end(template: Template, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", pairs(600))
    said: list[Progress] = []
    options = PrepareOptions(date=DATE, workers=1, cache=False)
    prepare([parse_source(file)], template, options, report=said.append)
    assert said[-1].rows == 600
    assert [each.rows for each in said] == sorted(each.rows for each in said)
    assert {each.total_bytes for each in said} == {file.stat().st_size}
    assert said[-1].read_bytes == pytest.approx(file.stat().st_size, rel=0.25)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["template", "foreign"])
def test_nothing_of_a_row_gets_into_what_is_said_of_it(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    name: str,
    workers: int,
) -> None:
    bad: list[Any] = [
        {"prompt": SECRET},
        {"prompt": SECRET, "response": None},
        {"prompt": f"{SECRET}<|im_end|>", "response": SECRET},
        {"prompt": "q", "response": f"{SECRET}\ud800"},
        {"text": SECRET},
        {"messages": [{"role": "user", "content": SECRET}]},
        {"messages": [{"role": SECRET, "content": SECRET}]},
        {"messages": SECRET},
        {"prompt": SECRET, "response": SECRET, "output": SECRET},
        {"prompt": SECRET, "response": SECRET, "tools": SECRET},
        {"prompt": SECRET, "response": float("nan")},
        SECRET,
        [SECRET],
    ]
    found = prepared(request.getfixturevalue(name), bad, workers=workers)
    assert len(found.account.rejected) == len(bad)
    assert [line for _, line, _ in found.account.rejected] == list(range(1, len(bad) + 1))
    assert SECRET not in json.dumps(found.account.as_dict())
    assert capfd.readouterr() == ("", "")


# The cache


def run_of(template: Template, *files: Path | str, **options: Any) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    sources = [parse_source(str(file)) for file in files]
    values = {"date": DATE, "workers": 1, **options}
    return prepare(sources, template, PrepareOptions(**values), say=said.append), said


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DUITI_CACHE", str(folder))
    return folder


def test_a_second_run_is_the_first_one_read_back(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", MIXED)
    first, said = run_of(template, file)
    assert (first.is_from_cache, said) == (False, [])
    second, said = run_of(template, file)
    assert (second.is_from_cache, said) == (True, [])
    without, said = run_of(template, file, cache=False)
    assert (without.is_from_cache, said) == (False, [])
    assert same(first, second)
    assert same(first, without)
    # Under another name the same rows are found, and carry the new name.
    moved = file.rename(tmp_path / "b.jsonl")
    third, _ = run_of(template, moved)
    assert third.is_from_cache
    assert {example.origin.file for example in third.store} == {str(moved)}


def test_rows_from_python_and_runs_without_a_cache_leave_nothing(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", MIXED)
    run_of(template, file, cache=False)
    prepared(template, MIXED)
    prepared(template, MIXED, file)
    assert not cache.exists()


def keys_of(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_whatever_changes_a_token_changes_the_entry_and_nothing_else_does(
    tokenizer: PreTrainedTokenizerFast,
    bos_tokenizer: PreTrainedTokenizerFast,
    foreign: Template,
    template: Template,
    tmp_path: Path,
    cache: Path,
) -> None:
    file = write_rows(tmp_path / "a.jsonl", MIXED)
    run_of(template, file)
    assert len(keys_of(cache)) == 1
    for options in ({"workers": 2}, {"seed": 5}, {"date": "2027-07-07"}):
        assert run_of(template, file, **options)[0].is_from_cache, options
    changes: list[tuple[Template, dict[str, Any], str]] = [
        (template, {"train_on": "last"}, ""),
        (template, {"special_tokens": "escape"}, ""),
        (template, {"truncate_to": 30}, ""),
        (template, {"mapping": {"prompt": "instruction"}}, ""),
        (template, {}, "@2"),
        (template, {}, "#3"),
        (template, {"seed": 5}, "#3"),
        (load_template("alpaca", tokenizer), {}, ""),
        (load_template("human-assistant", bos_tokenizer), {}, ""),
        (foreign, {}, ""),
        (own(tokenizer, CHATML + "{{ strftime_now('%Y') }}"), {}, ""),
        (own(tokenizer, CHATML + "{{ strftime_now('%Y') }}"), {"date": "2027-07-07"}, ""),
    ]
    for number, (changed, options, amount) in enumerate(changes, start=2):
        assert not run_of(changed, f"{file}{amount}", **options)[0].is_from_cache
        assert len(keys_of(cache)) == number
    (tmp_path / "keep.py").write_text("def every(row):\n    return False\n")
    found, _ = run_of(template, file, filter=f"{tmp_path}/keep.py:every")
    assert len(found.store) == 0


def test_the_same_bytes_under_another_kind_of_name_are_other_rows(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    for name, kept in (("a.jsonl", 0), ("a.csv", 1)):
        (tmp_path / name).write_text("prompt,response\nq1,a1\n")
        found, _ = run_of(template, tmp_path / name)
        assert not found.is_from_cache
        assert len(found.store) == kept


def test_edited_data_is_prepared_anew(template: Template, tmp_path: Path, cache: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", pairs(3))
    before, _ = run_of(template, file)
    times = file.stat().st_mtime_ns
    file.write_text(file.read_text().replace("What", "Whut"))
    os.utime(file, ns=(times, times))  # as `cp -p` and git may leave it
    after, _ = run_of(template, file)
    assert not after.is_from_cache
    assert not same(before, after)


@pytest.mark.parametrize("workers", [1, 2])
def test_data_that_changes_while_it_is_read_is_refused_and_leaves_nothing_wrong(
    template: Template,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 10)
    monkeypatch.setattr(module, "PART_ROWS", 20)
    file = write_rows(tmp_path / "a.jsonl", pairs(500))
    expected, _ = run_of(template, file, cache=False)
    original = file.read_bytes()

    def edit(progress: Progress) -> None:
        if progress.rows == 100:
            with file.open("r+b") as stream:  # in place, as an editor without a backup does
                stream.seek(len(original) // 2)
                stream.write(b"!!!!!!!!")

    options = PrepareOptions(date=DATE, workers=workers)
    with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
        prepare([parse_source(file)], template, options, report=edit)
    file.write_bytes(original)
    again, _ = run_of(template, file)
    assert same(again, expected)
    assert not again.is_from_cache


KILLED = """
import os, signal, sys
from duiti.data import prepare as module
from duiti.data.storage.cache_entry import Entry
from duiti.data.reading.sources import parse_source
from duiti.data.templates.template import load_template
from duiti.model.load import load_tokenizer, resolve

file, model, parts, name = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
module.PART_ROWS, module.CHUNK_ROWS = 20, 10
append = Entry.append
def kill_after(self, part):
    append(self, part)
    if len(self.parts()) == parts:
        os.kill(os.getpid(), signal.SIGKILL)
Entry.append = kill_after
template = load_template(name, load_tokenizer(resolve(model)))
module.prepare([parse_source(file)], template, module.PrepareOptions(date="2026-01-01", workers=2))
"""


@pytest.mark.parametrize("parts", [1, 4])
def test_a_run_that_was_killed_is_completed_to_what_an_uninterrupted_one_gives(
    template: Template,
    llama_dir: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    rows = [{**row, "n": n} for n, row in enumerate(MIXED * 10)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    arguments = [str(file), str(llama_dir), str(parts), "human-assistant"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)  # it need not be cut as before
    looked_at: list[int] = []
    said: list[str] = []
    options = PrepareOptions(date=DATE, workers=1)
    found = prepare(
        [parse_source(file)],
        template,
        options,
        say=said.append,
        report=lambda progress: looked_at.append(progress.rows),
    )
    assert not found.is_from_cache
    assert looked_at[0] == 20 * parts + 7
    assert f"goes on behind {20 * parts} rows that are prepared already" in said
    assert same(found, run_of(template, file, cache=False)[0])
    again, said = run_of(template, file)
    assert same(again, found)
    assert (again.is_from_cache, said) == (True, [])


def test_a_file_that_breaks_off_is_refused_and_nothing_is_called_complete(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "a.jsonl.gz"
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in pairs(400)).encode())
    for length in (len(packed) - 4, len(packed) // 2):
        file.write_bytes(packed[:length])
        for _ in range(2):
            with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
                run_of(template, file)
    file.write_bytes(packed)
    assert len(run_of(template, file)[0].store) == 400


# Templates that must not be used


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for", "is not valid Jinja"),
        ("{{ messages.__class__.__mro__ }}" + CHATML, "tries to reach what a template must not"),
        ("{{ strftime_now('%H:%M') }}" + CHATML, "reads the clock"),
        ("{{ [1, 2] | random }}" + CHATML, "draws at random"),
    ],
)
def test_a_template_that_must_not_be_used_is_named_with_the_row(
    tokenizer: PreTrainedTokenizerFast, source: str, said: str, workers: int
) -> None:
    with pytest.raises(UsageError, match="the template model") as caught:
        prepared(own(tokenizer, source), pairs(3), workers=workers)
    assert said in caught.value.what
    assert ("<rows>:1" in caught.value.what) == (said != "is not valid Jinja")
    assert "--template chatml" in caught.value.fix


def test_what_is_no_file_is_refused_before_it_is_opened(template: Template, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    for path in (tmp_path / "pipe.jsonl", tmp_path, Path("/dev/zero"), tmp_path / "none.jsonl"):
        with pytest.raises(UsageError, match=str(path)):
            prepared(template, path)


def test_an_iterable_that_fails_fails_as_it_did(template: Template) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from pairs(3)
        raise ConnectionError("gone")

    for workers in (1, 2):
        with pytest.raises(ConnectionError, match="gone"):
            prepared(template, rows(), workers=workers)


def test_a_tokenizer_without_a_rust_core_is_refused(template: Template) -> None:
    class Slow:
        """What is left of a tokenizer that is written in Python."""

    with pytest.raises(UsageError, match="written in Python only"):
        tokenizer_json(Slow())  # type: ignore[arg-type]


def test_a_date_is_a_day() -> None:
    assert day("2026-03-31") == "2026-03-31"
    assert day("auto").count("-") == 2


def test_a_source_without_rows_is_an_empty_store(template: Template) -> None:
    found = prepared(template, Source(name="<rows>", rows=[]))
    assert len(found.store) == 0
    assert found.account.num_rows == 0


def test_two_filters_of_one_file_are_two_entries(template: Template, tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "a.jsonl", [{"prompt": f"q{n}", "response": "a"} for n in range(6)]
    )
    code = "def all_(row):\n    return True\ndef none(row):\n    return False\n"
    (tmp_path / "keep.py").write_text(code, encoding="utf-8")
    kept = [
        len(prepared(template, file, filter=f"{tmp_path / 'keep.py'}:{name}").store)
        for name in ("all_", "none", "all_")
    ]
    assert kept == [6, 0, 6]


def test_a_filter_cannot_change_what_is_trained(template: Template, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    code = "def f(row):\n    row['messages'][-1]['content'] = 'other'\n    return True\n"
    (tmp_path / "keep.py").write_text(code, encoding="utf-8")
    (filtered,) = prepared(template, file, filter=f"{tmp_path / 'keep.py'}:f").store
    (plain,) = prepared(template, file).store
    assert filtered.input_ids.tolist() == plain.input_ids.tolist()


def test_a_generator_may_use_its_one_dict_again(template: Template) -> None:
    def rows() -> Iterator[dict[str, str]]:
        row = {"prompt": "", "response": "a"}
        for word in ("one", "two", "three"):
            row["prompt"] = word
            yield row

    apart = prepared(template, [{"prompt": w, "response": "a"} for w in ("one", "two", "three")])
    again = prepared(template, rows())
    assert [e.input_ids.tolist() for e in again.store] == [
        e.input_ids.tolist() for e in apart.store
    ]


def test_what_the_fast_path_is_caught_at_is_made_again_without_it(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(20)]
    right = [example.input_ids.tolist() for example in prepared(template, rows).store]
    told: list[str] = []
    monkeypatch.setattr(FastEncoder, "_ids", lambda self, text: b"\0\0\0\0")
    source = Source(name="<rows>", rows=rows)
    options = PrepareOptions(date=DATE, workers=1)
    found = module.prepare([source], template, options, say=told.append)
    assert [example.input_ids.tolist() for example in found.store] == right
    assert any("fast path" in line for line in told)
