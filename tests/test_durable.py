"""What is written is there whole or not at all; what cannot be written is said, and leaves none."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_faults import gone_pid, in_memory, ran, read_only, small_disk
from safetensors.torch import save_file

from duiti.disk_errors import explain, shown_bytes, shown_path
from duiti.durable import (
    make_folder,
    new_folder,
    remove_folder,
    remove_leftovers,
    require_space,
    write_file,
)
from duiti.errors import DuitiError

ODD_NAMES = [
    "a b",
    'it\'s "quoted"',
    "对题 ü 🎈",
    "new\nline",
    "-rf *",
    "$HOME;`id`",
    "x" * 255,
    "界" * 85,  # 255 bytes
    "run.tmp-12",
    "~",
]


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _filled(path: Path, content: bytes = b"content") -> None:
    with new_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_bytes(content)


# --- Written whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"\x00\xff", "对题\r\n", ""])
def test_a_file_holds_what_was_given(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "file"
    path.write_text("something older and longer than what follows")
    write_file(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert _names(tmp_path) == ["file"]


def test_a_folder_gets_its_name_when_it_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with new_folder(path) as temporary:
        assert temporary.parent == tmp_path, "a rename must not cross file systems"
        assert temporary.name == f"made.tmp-{os.getpid()}"
        (temporary / "file").write_bytes(b"1")
        assert not path.exists()
    assert _names(tmp_path) == ["made"]
    assert (path / "file").read_bytes() == b"1"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_folder_that_is_not_filled_to_the_end_is_removed(
    tmp_path: Path, error: BaseException
) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "made") as temporary:
            (temporary / "file").write_bytes(b"1")
            raise error

    with pytest.raises(type(error)) as found:
        fill()
    assert found.value is error
    assert _names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "dangling link"])
def test_a_folder_never_replaces_what_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made"
    match kind:
        case "file":
            path.write_bytes(b"mine")
        case "dangling link":
            path.symlink_to("nowhere")
        case _:
            path.mkdir()
            if kind == "folder":
                (path / "mine").write_bytes(b"mine")
    before = path.lstat()
    with pytest.raises(DuitiError, match="is there already"), new_folder(path):
        raise AssertionError("refused before any work is done")
    # … and where it appears only meanwhile, as an empty folder would be replaced by a rename.
    path.rename(tmp_path / "aside")
    with pytest.raises(DuitiError, match="is there already"), new_folder(path):
        (tmp_path / "aside").rename(path)
    assert path.lstat().st_ino == before.st_ino
    assert _names(tmp_path) == ["made"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, "a")
    assert _names(tmp_path) == [name]
    (tmp_path / name).unlink()
    _filled(tmp_path / name)
    assert _names(tmp_path) == [name]
    remove_folder(tmp_path / name)
    assert _names(tmp_path) == []


def test_a_slash_at_the_end_makes_no_difference(tmp_path: Path) -> None:
    _filled(Path(f"{tmp_path}/made/"))
    make_folder(Path(f"{tmp_path}/other/"))
    assert _names(tmp_path) == ["made", "other"]


def test_the_working_folder_may_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("made")) as temporary:
        os.chdir("elsewhere")
        (temporary / "file").write_bytes(b"1")
    assert _names(tmp_path) == ["elsewhere", "made"]


def test_a_link_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_the_umask_alone_decides_who_may_read(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    old = os.umask(umask)
    try:
        write_file(tmp_path / "file", "a")
        _filled(tmp_path / "folder")
        make_folder(tmp_path / "made")
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in _names(tmp_path)}
    assert modes == {"file": file, "folder": folder, "made": folder}


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_so_it_does_of_files_that_a_library_makes_readable_for_their_owner_alone(
    tmp_path: Path, umask: int, mode: int
) -> None:
    old = os.umask(umask)
    try:
        with new_folder(tmp_path / "folder") as folder:
            save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
            (folder / "deeper").mkdir()
            (folder / "deeper" / "private").touch(mode=0o600)
            (folder / "link").symlink_to(tmp_path)
    finally:
        os.umask(old)
    for name in ("model.safetensors", "deeper/private"):
        assert stat.S_IMODE((tmp_path / "folder" / name).stat().st_mode) == mode


def test_two_threads_do_not_write_one_path_at_once(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "made"),
        pytest.raises(ValueError, match="being written already"),
        new_folder(tmp_path / "made"),
    ):
        raise AssertionError
    assert _names(tmp_path) == ["made"]


def test_what_is_written_is_on_the_disk_before_its_name_and_the_name_before_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which only a loss of power would show: the calls are looked at, by the files' numbers."""
    calls: list[int | str] = []
    sync = os.fsync

    def noted_sync(descriptor: int) -> None:
        calls.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def noted(name: str, call: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        return lambda source, target: (calls.append(name), call(source, target))[1]

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted("rename", os.rename))
    monkeypatch.setattr(os, "replace", noted("replace", os.replace))
    parent = tmp_path.stat().st_ino
    write_file(tmp_path / "file", "a")
    assert calls == [(tmp_path / "file").stat().st_ino, "replace", parent]
    calls.clear()
    _filled(tmp_path / "made")
    inner = [tmp_path / "made" / name for name in ("inner/file", "inner", "")]
    assert calls == [*(path.stat().st_ino for path in inner), "rename", parent]
    calls.clear()
    make_folder(tmp_path / "a" / "b")
    assert calls == [parent, (tmp_path / "a").stat().st_ino]


# --- Killed ---------------------------------------------------------------------------------------

KILLED = """
from pathlib import Path
from made_faults import die_at, die_beyond, in_child
from duiti.durable import new_folder, remove_folder, remove_leftovers, write_file

folder = Path(sys.argv[1])
old, new = b"o" * 3000, b"n" * 5000

def replace():
    write_file(folder / "file", new)

def fill():
    with new_folder(folder / "made") as temporary:
        (temporary / "one").write_bytes(new)
        (temporary / "in").mkdir()
        (temporary / "in" / "two").write_bytes(old)

def drop():
    remove_folder(folder / "gone")

def seen():
    kind = (folder / "file").read_bytes()
    assert kind in (old, new)
    if (folder / "made").exists():
        assert (folder / "made/one").read_bytes() == new
        assert (folder / "made/in/two").read_bytes() == old
    if (folder / "gone").exists():
        assert (folder / "gone/one").read_bytes() == old
        assert (folder / "gone/two").read_bytes() == old
    return kind == new, (folder / "made").exists(), not (folder / "gone").exists()

for work in (replace, fill, drop):
    for arrange, numbers in ((die_at, range(1, 1000)), (die_beyond, range(0, 5200, 200))):
        states = []
        for number in numbers:
            folder.mkdir()
            (folder / "file").write_bytes(old)
            (folder / "gone").mkdir()
            (folder / "gone/one").write_bytes(old)
            (folder / "gone/two").write_bytes(old)
            code = in_child(work, lambda: arrange(number))
            assert code <= 0, "an exception"
            states.append(seen())
            remove_leftovers(folder)
            assert states[-1] == seen()
            names = {path.name for path in folder.iterdir()}
            assert names <= {"file", "made", "gone"}, names
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
            if code == 0:
                break
        else:
            raise AssertionError("it never came to its end")
        assert states == sorted(states), "who dies later has done no less"
        print(work.__name__, arrange.__name__, number, len(set(states)))
"""


def test_killed_anywhere_there_is_the_old_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    """Before every call to the system that names a file, around every fsync, inside writes."""
    with in_memory(tmp_path) as quick:
        lines = [line.split() for line in ran(KILLED, quick / "folder").splitlines()]
    works, arranges = ("replace", "fill", "drop"), ("die_at", "die_beyond")
    assert [line[:2] for line in lines] == [[work, how] for work in works for how in arranges]
    for work, arrange, number, num_states in lines:
        if arrange == "die_at":
            assert int(number) >= 5
            assert num_states == "2", "it was killed before and after the change"
        elif work != "drop":
            assert int(number) == 5000, "the first limit that nothing exceeds"


# --- Leftovers ------------------------------------------------------------------------------------


def test_leftovers_of_processes_that_are_gone_are_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = gone_pid()
    ours = [f"a.tmp-{gone}", f"b\n.tmp-{gone}", f".json.tmp-{gone}", "far.tmp-9999999999999999999"]
    (tmp_path / ours[0] / "inner").mkdir(parents=True)
    (tmp_path / ours[0] / "inner" / "link").symlink_to(tmp_path)
    for name in ours[1:]:
        (tmp_path / name).write_bytes(b"")
    alive = subprocess.Popen(["sleep", "600"])
    try:
        kept = [
            f"a.tmp-{alive.pid}",
            "a.tmp-1",  # another user's, if this one is not the superuser
            "a.tmp-0",
            f"a.tmp-0{gone}",
            f"a.tmp-{gone}x",
            f"a.tmp{gone}",
            f".tmp-{gone}",
            "a.tmp-99999999999999999999",
            "a.tmp-١٢",
            "a",
        ]
        for name in kept:
            (tmp_path / name).mkdir()
        (tmp_path / f"link.tmp-{gone}").symlink_to(tmp_path / "a")
        os.mkfifo(tmp_path / f"pipe.tmp-{gone}")
        with new_folder(tmp_path / "mine") as temporary:
            removed = remove_leftovers(tmp_path)
            assert temporary.exists(), "of this process, and in use"
    finally:
        alive.kill()
        alive.wait()
    assert sorted(path.name for path in removed) == sorted(ours)
    left = [*kept, f"link.tmp-{gone}", f"pipe.tmp-{gone}", "mine"]
    assert _names(tmp_path) == sorted(left)


def test_a_leftover_with_the_number_of_this_process_is_removed(tmp_path: Path) -> None:
    """In a container every start of a run may have the same number."""
    (tmp_path / f"old.tmp-{os.getpid()}").mkdir()
    assert len(remove_leftovers(tmp_path)) == 1
    (tmp_path / f"made.tmp-{os.getpid()}").mkdir()
    (tmp_path / f"made.tmp-{os.getpid()}" / "half").write_bytes(b"1")
    _filled(tmp_path / "made")
    assert _names(tmp_path / "made") == ["inner"]
    (tmp_path / f"file.tmp-{os.getpid()}").mkdir()
    write_file(tmp_path / "file", "a")
    assert _names(tmp_path) == ["file", "made"]


def test_without_a_folder_there_are_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none") == []


def test_a_leftover_that_cannot_be_removed_is_named_and_the_others_go(tmp_path: Path) -> None:
    gone = gone_pid()
    for name in "abc":
        (tmp_path / f"{name}.tmp-{gone}").mkdir()
    (tmp_path / f"b.tmp-{gone}" / "file").write_bytes(b"")
    with (
        read_only(tmp_path / f"b.tmp-{gone}"),
        pytest.raises(DuitiError, match=rf"b\.tmp-{gone} cannot be removed"),
    ):
        remove_leftovers(tmp_path)
    assert _names(tmp_path) == [f"b.tmp-{gone}"]


# --- Refused --------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_left_and_the_bytes_are_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 100 * 4096) as disk:
        write_file(disk / "file", b"o" * 8192)
        with pytest.raises(DuitiError) as found:
            write_file(disk / "file", bytes(600_000))
        text = str(found.value)
        assert f"{disk / 'file'} cannot be written: the disk is full" in text
        assert "600.0 kB are needed, 0 bytes are free" in text
        assert "fix: free some space" in text
        with pytest.raises(DuitiError, match="the disk is full"), new_folder(disk / "a") as folder:
            (folder / "file").write_bytes(bytes(600_000))
        with pytest.raises(DuitiError, match="the disk is full"), new_folder(disk / "b") as folder:
            save_file({"weight": torch.zeros(200_000)}, folder / "model.safetensors")
        assert _names(disk) == ["file"]
        assert (disk / "file").read_bytes() == b"o" * 8192


def test_space_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 100 * 4096) as disk:
        require_space(disk, 99 * 4096)
        with pytest.raises(DuitiError, match=r"500\.0 kB are needed, 40") as found:
            require_space(disk / "not" / "there", 500_000)
        assert found.value.exit_code == 1
        with (
            pytest.raises(DuitiError, match=r"500\.0 kB are needed, 40"),
            new_folder(disk / "a", num_bytes=500_000),
        ):
            raise AssertionError("it began all the same")
        assert _names(disk) == []


def test_a_disk_without_room_for_another_file_is_told_as_such(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 100 * 4096) as disk:
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(disk)], check=True)
        write_file(disk / "file", "a")
        with pytest.raises(DuitiError, match="no inodes are left"):
            write_file(disk / "other", "a")
        assert _names(disk) == ["file"]


LIMITED = """
import os, resource
from pathlib import Path
from duiti.durable import new_folder, write_file
from duiti.errors import DuitiError
import numpy, safetensors.numpy

folder = Path(sys.argv[1])
write_file(folder / "file", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
def small(): write_file(folder / "file", bytes(5000))
def large():
    with new_folder(folder / "made") as temporary:
        (temporary / "file").write_bytes(bytes(5000))
def library():
    with new_folder(folder / "made") as temporary:
        safetensors.numpy.save_file({"a": numpy.zeros(1000)}, temporary / "file")
for work in (small, large, library):
    try:
        work()
    except DuitiError as error:
        print(str(error).splitlines()[0])
    assert os.listdir(folder) == ["file"] and (folder / "file").read_bytes() == b"old"
"""


def test_a_limit_on_the_size_of_files_is_told_as_such(tmp_path: Path) -> None:
    lines = ran(LIMITED, tmp_path).splitlines()
    reason = "cannot be written: files may not become so large here"
    assert lines == [f"{tmp_path / name} {reason}" for name in ("file", "made", "made")]


def test_a_folder_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")
    _filled(tmp_path / "made")
    refusal = "cannot be (written|removed): (the disk is read-only|permission denied)"
    with read_only(tmp_path):
        with pytest.raises(DuitiError, match=rf"file {refusal}"):
            write_file(tmp_path / "file", "new")
        with pytest.raises(DuitiError, match=rf"other {refusal}"), new_folder(tmp_path / "other"):
            raise AssertionError
        with pytest.raises(DuitiError, match=rf"more {refusal}"):
            make_folder(tmp_path / "more")
        with pytest.raises(DuitiError, match=rf"made {refusal}"):
            remove_folder(tmp_path / "made")
    assert _names(tmp_path) == ["file", "made"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_where_a_folder_should_be_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for work in (
        lambda: write_file(tmp_path / "file" / "inner", "a"),
        lambda: _filled(tmp_path / "file" / "inner"),
        lambda: make_folder(tmp_path / "file"),
        lambda: make_folder(tmp_path / "file" / "inner"),
    ):
        with pytest.raises(DuitiError, match="a file is where a folder should be"):
            work()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DuitiError, match="a folder is where a file should be"):
        write_file(tmp_path / "folder", "a")
    with pytest.raises(DuitiError, match="its folder does not exist"):
        write_file(tmp_path / "none" / "file", "a")
    with pytest.raises(DuitiError, match="the name is too long"):
        write_file(tmp_path / ("x" * 256), "a")
    assert _names(tmp_path) == ["file", "folder"]


def test_what_another_file_is_to_blame_for_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(DuitiError, match="no-such-data: No such file"), new_folder(tmp_path / "a"):
        (tmp_path / "no-such-data").read_bytes()


def test_a_quota_that_is_used_up_is_told_as_such(tmp_path: Path) -> None:
    error = explain(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path, num_bytes=7_000_000)
    assert "your quota on this disk is used up" in error.what
    assert error.why.startswith("7.0 MB are needed, ")
    assert error.fix


def test_a_path_breaks_no_message() -> None:
    assert shown_path(Path("/a b/对题")) == "/a b/对题"
    assert shown_path(Path("/a\n\x1b[2J")) == "'/a\\n\\x1b[2J'"
    assert shown_path(Path(os.fsdecode(b"/\xff"))).isascii()


def test_bytes_are_shown_in_their_unit() -> None:
    found = [shown_bytes(count) for count in (0, 999, 1000, 12_345_678, 10**12)]
    assert found == ["0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "1000.0 GB"]


def test_the_module_needs_no_torch() -> None:
    code = "import sys, duiti.durable, duiti.manifest, duiti.lock; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
