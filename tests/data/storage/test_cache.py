"""Whatever happened to an entry of the cache, it gives back what was put in, or says where not."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_blocks import blocks, made_block, same_block

from duiti.data.storage import cache_files
from duiti.data.storage.block import BadBlock, Block
from duiti.data.storage.cache import (
    KEEP_S,
    VARIABLE,
    Entry,
    Part,
    cache_folder,
    open_entry,
    temporary_entry,
)
from duiti.data.storage.cache_files import locked, locked_if_free, write_part
from duiti.data.storage.fingerprint import key
from duiti.errors import DuitiError
from duiti.types import Json

NAME = key({"data": "one"})
OTHER = key({"data": "other"})
PARTS = 3
JSON: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Names of files may hold bytes that are not text; Python shows them as lone surrogates.
    | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ACCOUNTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """In memory where the system has such a place: syncing a disk takes most of a test's time."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _part(seed: int) -> Part:
    return Part(block=made_block(seed), account={"rows": 20, "rejected": [["a:1", "odd ￼"]]})


def _fill(entry: Entry, *, first_seed: int = 0) -> None:
    """What a preparation does: go on behind the parts that are there, then close."""
    for number in range(len(entry.parts()), PARTS):
        entry.append(_part(first_seed + number))
    if not entry.is_complete:
        entry.finish({"rows": 60})


@contextmanager
def _open(folder: Path, name: str = NAME) -> Iterator[tuple[Entry, list[str]]]:
    said: list[str] = []
    with open_entry(name, folder=folder, say=said.append, wait_s=0) as entry:
        yield entry, said


def _prepare(folder: Path, name: str = NAME, *, first_seed: int = 0) -> dict[str, bytes]:
    """A complete entry; its files."""
    with _open(folder, name) as (entry, _):
        _fill(entry, first_seed=first_seed)
    return _files(folder / name)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _same(part: Part, other: Part) -> bool:
    return same_block(part.block, other.block) and part.account == other.account


def _is_prefix(entry: Entry) -> bool:
    parts = entry.parts()
    return all(_same(part, _part(number)) for number, part in enumerate(parts))


# --- What is put in comes out ---------------------------------------------------------------------


@given(
    content=st.lists(st.tuples(blocks(), ACCOUNTS), max_size=3), summary=ACCOUNTS, cut=st.booleans()
)
def test_parts_come_back_as_they_were(
    quick_folder: Path,
    content: list[tuple[Block, dict[str, Json]]],
    summary: dict[str, Json],
    cut: bool,
) -> None:
    folder = quick_folder / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    given_parts = [Part(block=block, account=account) for block, account in content]
    with _open(folder) as (entry, said):
        assert entry.parts() == []
        for part in given_parts:
            entry.append(part)
        assert all(map(_same, entry.parts(), given_parts))
        assert not entry.is_complete
        if not cut:
            entry.finish(summary)
            assert (entry.is_complete, entry.summary) == (True, summary)
    assert said == []
    with _open(folder) as (entry, said):
        assert len(entry.parts()) == len(given_parts)
        assert all(map(_same, entry.parts(), given_parts))
        assert (entry.is_complete, entry.summary) == (not cut, {} if cut else summary)
        assert len(said) == (cut and len(given_parts) > 0)


def test_an_account_reads_the_same_in_the_run_that_wrote_it(tmp_path: Path) -> None:
    account: dict[str, Json] = {"pairs": [("a", 1)]}  # type: ignore[list-item]
    with _open(tmp_path) as (entry, _):
        entry.append(Part(block=made_block(0), account=account))
        first = entry.parts()[0].account
    with _open(tmp_path) as (entry, _):
        assert entry.parts()[0].account == first == {"pairs": [["a", 1]]}


def test_blocks_stay_readable_when_their_entry_is_closed_and_gone(tmp_path: Path) -> None:
    with _open(tmp_path) as (entry, _):
        _fill(entry)
    shutil.rmtree(tmp_path / NAME)
    assert _is_prefix(entry)


def test_a_finished_entry_takes_no_more_parts(tmp_path: Path) -> None:
    with _open(tmp_path) as (entry, _):
        _fill(entry)
        with pytest.raises(ValueError, match="no more parts"):
            entry.append(_part(9))


def test_a_block_that_breaks_its_contract_is_not_written(tmp_path: Path) -> None:
    block = made_block(0)
    bad = Block(**{**{n: getattr(block, n) for n in Block.__slots__}, "lines": block.lines - 1})
    with _open(tmp_path) as (entry, _):
        with pytest.raises(BadBlock):
            entry.append(Part(block=bad, account={}))
        assert entry.parts() == []
        assert list(entry.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "a" * 63, "A" * 64, "", f"{'a' * 64}\n", "/" * 64])
def test_only_a_key_names_an_entry(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="what `key` gives"), _open(tmp_path, name):
        pass
    assert list(tmp_path.iterdir()) == []


# --- What was damaged is found, said and built again ----------------------------------------------


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def _flip(path: Path, share: float, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def _replace_from_another_entry(path: Path) -> None:
    shutil.copy(path.parent.parent / OTHER / path.name, path)


def _replace_from_another_part(path: Path) -> None:
    if path.name == "summary.json":
        path.write_bytes((path.parent / "00001.json").read_bytes())
    else:
        number = "00001" if path.name.startswith("00000") else "00000"
        shutil.copy(path.with_name(number + path.suffix), path)


def _replace_by_link(path: Path) -> None:
    kept = path.parent.parent / "kept"
    path.rename(kept)
    path.symlink_to(kept)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: list[Callable[[Path], None]] = [
    Path.unlink,
    _cut_off,
    _empty,
    _extend,
    lambda path: _flip(path, 0),
    lambda path: _flip(path, 0.5),
    lambda path: _flip(path, 1),
    _replace_from_another_entry,
    _replace_from_another_part,
    _replace_by_link,
    _replace_by_folder,
    _replace_by_fifo,
]
FILES = ["summary.json"] + [
    f"0000{n}.{end}" for n in range(PARTS) for end in ("json", "safetensors")
]


def _check_found_and_mended(folder: Path, name: str, before: dict[str, bytes]) -> None:
    """The damage of a file is said, no part from it on is used, and building on mends it."""
    expected = PARTS if name == "summary.json" else int(name[:5])
    with _open(folder) as (entry, said):
        assert len(said) == 1
        assert f"going on with part {expected + 1}" in said[0]
        assert not entry.is_complete
        assert len(entry.parts()) == expected
        assert _is_prefix(entry)
        _fill(entry)
        assert _is_prefix(entry)
    assert _files(folder / NAME) == before
    with _open(folder) as (entry, said):
        assert (entry.is_complete, len(entry.parts()), said) == (True, PARTS, [])


@pytest.mark.parametrize("name", FILES)
def test_damage_of_each_file_is_found_said_and_mended(quick_folder: Path, name: str) -> None:
    _prepare(quick_folder, OTHER, first_seed=10)
    before = _prepare(quick_folder)
    assert sorted(before) == sorted(FILES)
    for damage in DAMAGE:
        damage(quick_folder / NAME / name)
        _check_found_and_mended(quick_folder, name, before)


@given(name=st.sampled_from(FILES), share=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_bit_that_flipped_anywhere_is_found(
    quick_folder: Path, name: str, share: float, bit: int
) -> None:
    before = _prepare(quick_folder)
    _flip(quick_folder / NAME / name, share, bit)
    _check_found_and_mended(quick_folder, name, before)


@pytest.mark.parametrize("number", range(PARTS))
def test_a_part_that_was_taken_whole_from_another_entry_is_not_used(
    quick_folder: Path, number: int
) -> None:
    _prepare(quick_folder, OTHER, first_seed=10)
    before = _prepare(quick_folder)
    for end in ("json", "safetensors"):
        shutil.copy(quick_folder / OTHER / f"0000{number}.{end}", quick_folder / NAME)
    _check_found_and_mended(quick_folder, f"0000{number}.json", before)


def test_a_part_of_another_preparation_of_the_same_name_is_not_used(tmp_path: Path) -> None:
    """Parts that were cut elsewhere do not follow each other, although each of them is sound."""
    _prepare(tmp_path / "else", first_seed=10)
    before = _prepare(tmp_path)
    for end in ("json", "safetensors"):
        shutil.copy(tmp_path / "else" / NAME / f"00001.{end}", tmp_path / NAME)
    _check_found_and_mended(tmp_path, "00001.json", before)


def test_a_sound_file_with_a_block_that_breaks_its_contract_is_not_used(tmp_path: Path) -> None:
    block = made_block(0)
    bad = Block(**{**{n: getattr(block, n) for n in Block.__slots__}, "lines": block.lines - 1})
    with _open(tmp_path) as (entry, _):
        write_part(entry.folder, 0, bad, {}, key=NAME, previous="")
    with _open(tmp_path) as (entry, said):
        assert entry.parts() == []
        assert "00000.safetensors: a line is below 1" in said[0]


@pytest.mark.parametrize("content", [b"[" * 100_000, b"NaN", b"{}", b"\xff", b'{"body":{},"x":1}'])
def test_an_account_that_is_none_is_not_used(tmp_path: Path, content: bytes) -> None:
    before = _prepare(tmp_path)
    (tmp_path / NAME / "00001.json").write_bytes(content)
    _check_found_and_mended(tmp_path, "00001.json", before)


def test_an_account_of_endless_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _prepare(tmp_path)
    with (tmp_path / NAME / "00001.json").open("wb") as file:
        file.truncate(2**40)  # a hole: takes no room
    monkeypatch.setattr(cache_files, "MAX_JSON_BYTES", 2**16)
    _check_found_and_mended(tmp_path, "00001.json", before)


def test_files_that_are_not_the_entrys_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    _prepare(tmp_path / "cache")
    own = tmp_path / "cache" / NAME
    (own / "link").symlink_to(outside)
    (own / ".tmpAbC").write_bytes(b"half a block")
    (own / "folder" / "deep").mkdir(parents=True)
    (own / "folder" / "link").symlink_to(outside)
    with _open(tmp_path / "cache") as (entry, said):
        assert (entry.is_complete, said) == (True, [])
    assert sorted(_files(own)) == sorted(FILES)
    assert (outside / "kept").is_dir()


def test_an_entry_that_is_a_link_is_made_anew_and_what_it_leads_to_is_left(tmp_path: Path) -> None:
    _prepare(tmp_path / "outside")
    before = _files(tmp_path / "outside" / NAME)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / NAME).symlink_to(tmp_path / "outside" / NAME)
    with _open(tmp_path / "cache") as (entry, said):
        assert entry.parts() == []
        assert "not a folder" in said[0]
        _fill(entry, first_seed=5)
    assert _files(tmp_path / "outside" / NAME) == before


# --- Killed anywhere ------------------------------------------------------------------------------

DRIVER = """
import os, resource, shutil, signal, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/storage"]
from test_cache import NAME, PARTS, _fill, _files, _is_prefix, _open

def die_at(number):
    left = number
    def watch(event, arguments):
        nonlocal left
        if event == "open" or event.startswith(("os.", "fcntl.", "mmap.", "shutil.")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

def die_beyond(size):
    # The kernel ends the process in the middle of the write that makes a file longer.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def run(folder, arrange, number):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    arrange(number)
    with _open(folder) as (entry, _):
        _fill(entry)
    os._exit(0)

def check(folder, whole):
    with _open(folder) as (entry, said):
        count = len(entry.parts())
        assert _is_prefix(entry)
        _fill(entry)
        assert len(entry.parts()) == PARTS and _is_prefix(entry)
    assert _files(folder / NAME) == whole
    assert len(list(folder.iterdir())) == 2, "an entry and its lock"
    shutil.rmtree(folder)
    return count

base = Path(sys.argv[2])
run(base / "whole", lambda _: None, 0)
whole = _files(base / "whole" / NAME)
for arrange, numbers in (
    (die_at, range(1, 10_000)),
    (die_beyond, range(0, max(map(len, whole.values())) + 97, 97)),
):
    counts, deaths = [], 0
    for number in numbers:
        folder = base / str(number)
        code = run(folder, arrange, number)
        deaths += code < 0
        if code == 0 or folder.exists():
            counts.append(check(folder, whole))
        if code == 0:
            break
    else:
        raise AssertionError("it never came to its end")
    assert counts == sorted(counts), "who dies later leaves no less"
    print(deaths, sorted(set(counts)), flush=True)
"""


def test_a_preparation_killed_anywhere_goes_on_to_the_same_bytes(quick_folder: Path) -> None:
    """Before each call to the system that Python reports, and in the middle of writes."""
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1]), str(quick_folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    calls, writes = found.stdout.splitlines()
    assert int(calls.split()[0]) >= 3 * 10
    assert calls.endswith("[0, 1, 2, 3]")
    assert int(writes.split()[0]) > 10


# --- Several at once ------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/storage"]
from test_cache import NAME, PARTS, _part
from duiti.data.storage.cache import open_entry
folder, go = Path(sys.argv[2]), Path(sys.argv[3])
with open_entry(NAME, folder=folder, say=lambda line: print(line, flush=True)) as entry:
    print("open", entry.is_complete, len(entry.parts()), flush=True)
    while not go.exists():
        time.sleep(0.01)
    for number in range(len(entry.parts()), PARTS):
        entry.append(_part(number))
    if not entry.is_complete:
        entry.finish({})
"""


def _worker(folder: Path, go: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parents[1]), str(folder), str(go)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_prepares_and_the_other_waits_and_reads(tmp_path: Path) -> None:
    with _worker(tmp_path / "cache", tmp_path / "go") as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "open False 0\n"
        with _worker(tmp_path / "cache", tmp_path / "go") as two:
            assert two.stdout is not None
            line = f"process {one.pid} is preparing the same data; waiting for it to finish\n"
            assert two.stdout.readline() == line
            (tmp_path / "go").touch()
            assert two.stdout.read() == "open True 3\n"
        assert one.stdout.read() == ""
    assert (one.returncode, two.returncode) == (0, 0)


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    with _worker(tmp_path / "cache", tmp_path / "go") as one:
        assert one.stdout is not None
        one.stdout.readline()
        with (
            pytest.raises(DuitiError, match=f"process {one.pid} .* for more than 0 s") as caught,
            _open(tmp_path / "cache"),
        ):
            pass
        assert "--no-cache" in caught.value.fix
        one.kill()
    assert (tmp_path / "cache" / f"{NAME}.lock").read_text() == str(one.pid)
    with _open(tmp_path / "cache") as (entry, said):
        _fill(entry)
        assert said == []


def test_a_lock_whose_file_was_removed_meanwhile_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside, leave = threading.Event(), threading.Event()

    def wait_and_hold() -> None:
        with locked(path, say=print):
            inside.set()
            leave.wait(60)

    waiting = threading.Thread(target=wait_and_hold)
    with locked(path, say=print):
        waiting.start()
        time.sleep(0.2)  # it has opened the file and waits for it
        path.unlink()
    assert inside.wait(60)
    with locked_if_free(path) as held:
        assert not held
    leave.set()
    waiting.join()
    with locked_if_free(path) as held:
        assert held


# --- Room -----------------------------------------------------------------------------------------


def test_entries_that_nobody_opened_for_long_go_when_another_is_finished(tmp_path: Path) -> None:
    old, held, fresh, lone = (key({"entry": name}) for name in ("old", "held", "fresh", "lone"))
    for name in (old, held, fresh):
        _prepare(tmp_path, name)
    (tmp_path / f"{lone}.lock").touch()
    (tmp_path / "notes").mkdir()
    before = time.time() - KEEP_S - 60
    for path in tmp_path.iterdir():
        os.utime(path, (before, before))
    with _open(tmp_path, fresh):
        pass
    with _open(tmp_path, held):
        os.utime(tmp_path / held, (before, before))
        _prepare(tmp_path, NAME)
    kept = {"notes"} | {name + end for name in (held, fresh, NAME) for end in ("", ".lock")}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_temporary_entry_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_entry() as entry:
        _fill(entry)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    assert (entry.is_complete, entry.summary) == (True, {"rows": 60})
    assert _is_prefix(entry)


def test_a_folder_that_cannot_be_used_is_said_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    with _open(tmp_path / "file" / "cache") as (entry, said):
        _fill(entry)
        assert _is_prefix(entry)
    assert said == [f"{tmp_path}/file/cache: cannot be used (Not a directory); nothing is kept"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_place_even_for_a_temporary_entry_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(DuitiError, match="no temporary folder") as caught, temporary_entry():
        pass
    assert "TMPDIR" in caught.value.fix


FULL = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/storage"]
from made_blocks import made_block
from test_cache import _open, _part
from duiti.data.storage.cache import Part, temporary_entry
from duiti.errors import DuitiError

resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # as a full disk: a write fails half-way
with _open(Path(sys.argv[2])) as (entry, _):
    entry.append(_part(0))
    for part in (
        Part(block=made_block(0, 400), account={}),
        Part(block=made_block(1), account={"long": "x" * 9000}),
    ):
        try:
            entry.append(part)
        except DuitiError as error:
            print(error)
    try:
        entry.finish({"long": "x" * 9000})
    except DuitiError as error:
        print(error)
    print(entry.is_complete, len(entry.parts()))
with temporary_entry() as entry:
    try:
        entry.append(Part(block=made_block(0, 400), account={}))
    except DuitiError as error:
        print(error.fix)
"""


def test_a_full_disk_is_explained_and_the_next_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(Path(__file__).parents[1]), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    message = f"{tmp_path / NAME}: cannot be written ({os.strerror(errno.EFBIG)})"
    assert lines[0] == lines[3] == lines[6] == message
    assert lines[2].startswith(f"  fix: {VARIABLE}=")
    assert lines[9] == "False 1"
    assert lines[10].startswith("TMPDIR=")
    assert sorted(_files(tmp_path / NAME)) == ["00000.json", "00000.safetensors"]
    with _open(tmp_path) as (entry, _):
        assert len(entry.parts()) == 1
        _fill(entry)
        assert _is_prefix(entry)


def test_the_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv(VARIABLE, raising=False)
    for shared in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        assert cache_folder() == Path("/home/somebody/.cache/duiti")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/duiti")
    monkeypatch.setenv(VARIABLE, "~/here")
    assert cache_folder() == Path("/home/somebody/here")


def test_files_of_an_entry_are_json_and_safetensors_and_for_their_owner_only(
    tmp_path: Path,
) -> None:
    files = _prepare(tmp_path / "cache")
    for name, content in files.items():
        if name.endswith(".json"):
            assert set(json.loads(content)) == {"body", "sha256"}
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
