"""Whatever happens to a file in a folder with a manifest is found; no name leads elsewhere."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_faults import read_only, small_disk, unreadable

from duiti.durable import new_folder
from duiti.errors import DuitiError
from duiti.manifest import (
    MANIFEST_FILE,
    MAX_BYTES,
    MAX_FILES,
    Damaged,
    check_manifest,
    read_manifest,
    write_manifest,
)

FILES = {"state.json": b'{"step": 200}', "trained.safetensors": bytes(range(256)) * 9, "in/a": b""}
FACTS: dict[str, Any] = {"step": 200, "loss": 0.1, "nested": {"名": ["a", None, True, 10**30]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is whole."""
    path = tmp_path / "folder"
    _fill(path)
    write_manifest(path, FACTS)
    return path


def _fill(path: Path) -> None:
    (path / "in").mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)


def _reason(path: Path) -> str:
    with pytest.raises(Damaged) as found:
        check_manifest(path)
    assert found.value.what == f"{path} cannot be trusted: {found.value.reason}"
    return found.value.reason


# --- Whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_folder_that_is_whole_gives_its_facts_back(folder: Path, from_disk: bool) -> None:
    assert check_manifest(folder, from_disk=from_disk) == FACTS
    assert dict(read_manifest(folder).facts) == FACTS


def test_a_manifest_says_what_other_tools_find_too(folder: Path) -> None:
    found = json.loads((folder / MANIFEST_FILE).read_text())
    assert found["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }
    seal = found.pop("sha256")
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    assert seal == hashlib.sha256(text.encode()).hexdigest()


def test_equal_folders_have_equal_manifests(folder: Path, tmp_path: Path) -> None:
    _fill(tmp_path / "other")
    write_manifest(tmp_path / "other", dict(reversed(FACTS.items())))
    one, other = ((path / MANIFEST_FILE).read_bytes() for path in (folder, tmp_path / "other"))
    assert one == other


def test_a_folder_can_be_moved_and_copied(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy with spaces\n")
    assert check_manifest(tmp_path / "copy with spaces\n") == FACTS
    (tmp_path / "link").symlink_to(folder)
    assert check_manifest(tmp_path / "link") == FACTS, "a run may be named by a link"


def test_beside_files_that_were_named_others_may_lie(tmp_path: Path) -> None:
    _fill(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    (tmp_path / "run" / "link").symlink_to("nowhere")
    write_manifest(tmp_path / "run", {}, files=["in/a", "state.json"])
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n{}")
    (tmp_path / "run" / "more").write_text("")
    assert check_manifest(tmp_path / "run") == {}
    assert not read_manifest(tmp_path / "run").is_complete
    (tmp_path / "run" / "in" / "a").write_text("b")
    assert "in/a is not as long" in _reason(tmp_path / "run")


def test_a_manifest_is_replaced_whole(folder: Path) -> None:
    write_manifest(folder, {"step": 201})
    assert check_manifest(folder) == {"step": 201}
    assert sorted(os.listdir(folder)) == ["in", MANIFEST_FILE, "state.json", "trained.safetensors"]


# --- Damaged --------------------------------------------------------------------------------------


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut to a half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "first bit flipped": lambda path: _flip(path, 0),
    "last bit flipped": lambda path: _flip(path, -1),
    "zeros of the same length": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "removed": lambda path: path.unlink(),
    "a link to the same content": _link,
    "a folder": _replace_by_folder,
    "a pipe": _replace_by_pipe,
}


@pytest.mark.parametrize("name", ["state.json", "trained.safetensors", MANIFEST_FILE])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file_is_found_and_the_file_is_named(
    folder: Path, damage: str, name: str
) -> None:
    DAMAGES[damage](folder / name)
    assert name in _reason(folder)


def test_any_bit_of_a_manifest_that_is_flipped_is_found(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    with path.open("r+b", buffering=0) as file:  # in place: to write it anew takes a disk's time
        for position, byte in enumerate(path.read_bytes()):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(Damaged):
                    read_manifest(folder)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert check_manifest(folder) == FACTS


def test_a_manifest_cut_off_anywhere_is_found(folder: Path) -> None:
    for length in range((folder / MANIFEST_FILE).stat().st_size - 1, -1, -1):
        os.truncate(folder / MANIFEST_FILE, length)
        with pytest.raises(Damaged):
            read_manifest(folder)


def test_a_file_that_was_not_there_is_found(folder: Path) -> None:
    (folder / "in" / "pytorch_model.bin").write_bytes(b"")
    assert _reason(folder) == "in/pytorch_model.bin was not there when it was written"


def test_a_link_or_pipe_beside_the_files_is_found(folder: Path) -> None:
    (folder / "link").symlink_to("state.json")
    assert _reason(folder) == "link is not a regular file"
    (folder / "link").unlink()
    os.mkfifo(folder / "in" / "pipe")
    assert _reason(folder) == "in/pipe is not a regular file"


def test_a_folder_on_the_way_that_became_a_link_is_found(folder: Path, tmp_path: Path) -> None:
    (folder / "in").rename(tmp_path / "in")
    (folder / "in").symlink_to(tmp_path / "in")
    assert _reason(folder) == "in/a is missing"


@pytest.mark.parametrize("kind", ["nothing", "empty", "a file", "a link to itself"])
def test_what_is_no_folder_with_a_manifest_is_told_as_such(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    match kind:
        case "empty":
            path.mkdir()
        case "a file":
            path.write_text("{}")
        case "a link to itself":
            path.symlink_to("x")
    assert MANIFEST_FILE in _reason(path)


def test_a_file_that_the_disk_does_not_give_back_is_damage(folder: Path) -> None:
    with unreadable(folder / "in" / "a"):
        assert _reason(folder) == "a file cannot be read (Input/output error)"
    with unreadable(folder / MANIFEST_FILE):
        assert _reason(folder) == "a file cannot be read (Input/output error)"
    assert check_manifest(folder) == FACTS


def test_the_files_of_two_folders_are_not_interchangeable(folder: Path, tmp_path: Path) -> None:
    _fill(tmp_path / "other")
    (tmp_path / "other" / "state.json").write_bytes(b'{"step": 201}')
    write_manifest(tmp_path / "other", {"step": 201})
    shutil.copy(tmp_path / "other" / MANIFEST_FILE, folder / MANIFEST_FILE)
    assert _reason(folder) == "state.json has changed since it was written"


# --- Hostile --------------------------------------------------------------------------------------


def _sealed(body: dict[str, Any]) -> bytes:
    """As it is written, by other code: what is refused is refused for what it says."""
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    body = {**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _body(**changes: Any) -> dict[str, Any]:
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }
    body = {"duiti": "0", "layout": 1, "complete": False, "facts": {}, "files": files}
    return {**body, **changes}


def test_a_manifest_that_other_code_seals_is_accepted(folder: Path) -> None:
    """Or the tests below would prove nothing."""
    (folder / MANIFEST_FILE).write_bytes(_sealed(_body(facts={"a": 1})))
    assert check_manifest(folder) == {"a": 1}


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere",
        "in/../../elsewhere",
        "in/../state.json",
        "/etc/hostname",
        "//etc/hostname",
        "..",
        ".",
        "",
        "in",
        "in/",
        "./state.json",
        "in//a",
        "state.json/",
        "state.json/x",
        "..\\elsewhere",
        "state.json\0",
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "x" * 1001,
        "x" * 256,
        "in/" * 300 + "a",
        MANIFEST_FILE,
        "link",
        "linked/elsewhere",
    ],
)
def test_a_name_that_is_no_file_inside_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    content = b"not yours"
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "linked").symlink_to(tmp_path)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST_FILE).write_bytes(_sealed(_body(files={name: seal})))
    reason = _reason(folder)
    assert reason.isprintable()
    assert len(reason) < 1100


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": 2},
        {"layout": 0},
        {"layout": True},
        {"layout": "1"},
        {"layout": 1.0},
        {"duiti": 1},
        {"complete": 1},
        {"facts": []},
        {"files": []},
        {"files": {"state.json": []}},
        {"files": {"state.json": {"bytes": 13}}},
        {"files": {"state.json": {"bytes": True, "sha256": ""}}},
        {"files": {"state.json": {"bytes": "13", "sha256": ""}}},
        {"files": {"state.json": {"bytes": 13.0, "sha256": ""}}},
        {"files": {"state.json": {"bytes": -1, "sha256": ""}}},
        {"files": {"state.json": {"bytes": 13, "sha256": None}}},
        {"files": {"state.json": {"bytes": 13, "sha256": "0" * 64}}},
        {"files": {str(n): {"bytes": 0, "sha256": ""} for n in range(MAX_FILES + 1)}},
        {"facts": {"a": float("nan")}},
        {"facts": {"a": float("-inf")}},
        {"facts": {"a": "x" * MAX_BYTES}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_seal_does_not_make_nonsense_acceptable(folder: Path, changes: dict[str, Any]) -> None:
    (folder / MANIFEST_FILE).write_bytes(_sealed(_body(**changes)))
    _reason(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "null",
        "[]",
        "{}",
        '{"name": "an app", "start_url": "/"}',
        '{"duiti": "0"}',
        "[" * 1_000_000,
        '{"duiti":' * 100_000,
        '{"duiti": "0", "layout": ' + "9" * 1_000_000 + "}",
        '{"duiti": "0", "layout": 1e999999999}',
        '{"duiti": "0", "sha256": {"a": 1}}',
        "\ufeff{}",
        "\0",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    assert _reason(folder).startswith(MANIFEST_FILE)
    (folder / MANIFEST_FILE).write_bytes(text.encode("utf-16"))
    _reason(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"step": 200', b'"step": 100,\n  "step": 200'),
        (b'"loss": 0.1', b'"loss": 0.10'),
        (b'"loss": 0.1', b'"loss": 1e-1'),
        (b'"loss"', b'"lo\\u0073s"'),
        (b'"complete"', b'"complete" '),
        (b"\n}\n", b"\n}\n\n"),
        (b"\n}\n", b"\n}"),
        (b"\n", b"\r\n"),
    ],
)
def test_there_is_one_spelling(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / MANIFEST_FILE
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    assert _reason(folder) == f"{MANIFEST_FILE} has changed since it was written"


def test_a_manifest_too_large_to_be_one_is_not_read(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, 2**40)
    assert _reason(folder) == f"{MANIFEST_FILE} has more than {MAX_BYTES} bytes"


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_fail(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(Damaged):
        check_manifest(tmp_path)


# --- Not written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "../folder/state.json", "/etc/hostname", "link", "in"])
def test_a_file_that_cannot_be_listed_is_refused(tmp_path: Path, name: str) -> None:
    _fill(tmp_path / "folder")
    (tmp_path / "folder" / "link").symlink_to("state.json")
    with pytest.raises(DuitiError, match="gets no manifest"):
        write_manifest(tmp_path / "folder", {}, files=["state.json", name])
    assert not (tmp_path / "folder" / MANIFEST_FILE).exists()


def test_a_link_among_all_files_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "folder")
    (tmp_path / "folder" / "link").symlink_to("state.json")
    with pytest.raises(DuitiError, match="link is not a regular file"):
        write_manifest(tmp_path / "folder", {})


def test_facts_that_json_cannot_say_are_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_facts_beyond_the_bound_are_refused_when_written(tmp_path: Path) -> None:
    with pytest.raises(DuitiError, match=f"more than {MAX_BYTES} bytes"):
        write_manifest(tmp_path, {"a": "x" * MAX_BYTES})
    assert os.listdir(tmp_path) == []


def test_on_a_full_disk_the_older_manifest_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 * 4096) as disk:
        (disk / "a").write_bytes(b"a")
        write_manifest(disk, {"step": 1})
        with pytest.raises(DuitiError, match=r"manifest\.json cannot be written: the disk is full"):
            write_manifest(disk, {"step": 2, "long": "x" * 100_000})
        assert check_manifest(disk) == {"step": 1}


def test_a_folder_that_cannot_be_written_can_be_checked(folder: Path) -> None:
    with read_only(folder):
        assert check_manifest(folder, from_disk=True) == FACTS
        with pytest.raises(DuitiError, match=r"manifest\.json cannot be written"):
            write_manifest(folder, {})


def test_a_new_folder_with_its_manifest_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as temporary:
        _fill(temporary)
        write_manifest(temporary, FACTS)
    assert check_manifest(tmp_path / "made", from_disk=True) == FACTS
