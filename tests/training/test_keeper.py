"""Checkpoints are whole or named as what they are, and the last good one outlives everything."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_faults import gone_pid, in_memory, ran, read_only, small_disk, unreadable
from safetensors.numpy import save_file

from duiti.errors import DuitiError
from duiti.manifest import MANIFEST_FILE, write_manifest
from duiti.training.keeper import Candidate, candidates, examine, prune, save, set_aside

FILES = ("state.json", "trained.safetensors", "optimizer.safetensors")


def content(step: int, name: str) -> bytes:
    return f"{name} of step {step}\n".encode() * (50 + step % 7)


def write(step: int) -> Callable[[Path], None]:
    """Writes files whose every byte follows from the step."""

    def fill(folder: Path) -> None:
        for name in FILES:
            (folder / name).write_bytes(content(step, name))

    return fill


def is_intact(path: Path, step: int) -> bool:
    """By other means than the manifest."""
    found = {inner.name: inner.read_bytes() for inner in path.iterdir()}
    return found.keys() == {*FILES, MANIFEST_FILE} and all(
        found[name] == content(step, name) for name in FILES
    )


def kept(folder: Path, step: int, *, keep: int = 2, **options: object) -> Path:
    folder.parent.mkdir(exist_ok=True)  # that of the run
    return save(folder, step, write(step), {"run": "a"}, keep=keep, **options)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def valid_steps(folder: Path) -> list[int | None]:
    return [found.step for found in candidates(folder) if found.problem is None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With checkpoints of the steps 100 and 200."""
    path = tmp_path / "run" / "checkpoints"
    for step in (100, 200):
        kept(path, step)
    return path


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as path:
        yield path


# --- Saved ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_what_was_written_and_a_manifest(folder: Path) -> None:
    path = kept(folder, 300)
    assert path == folder / "step-000300"
    assert is_intact(path, 300)
    first = candidates(folder)[0]
    assert first == Candidate(path, 300, None, {"run": "a", "step": 300})


def test_the_newest_ones_are_kept_and_the_protected(tmp_path: Path) -> None:
    for step in range(1, 9):
        kept(tmp_path, step, keep=3, protected={2, 7})
    assert names(tmp_path) == [f"step-00000{step}" for step in (2, 6, 7, 8)]
    kept(tmp_path, 9, keep=1)
    assert names(tmp_path) == ["step-000009"]


def test_newest_is_the_highest_number_whatever_the_times_of_files(folder: Path) -> None:
    kept(folder, 1_000_000)
    kept(folder, 20, keep=9)
    for path in folder.iterdir():
        step = int(path.name.removeprefix("step-"))
        os.utime(path, (2_000_000_000 - 100 * step,) * 2)
    assert [found.step for found in candidates(folder)] == [1_000_000, 200, 20]
    assert [path.name for path in prune(folder, keep=2)] == ["step-000020"]


def test_what_was_just_saved_stays_beside_newer_ones(folder: Path) -> None:
    """Of a run that goes on from an older one of its checkpoints."""
    kept(folder, 150)
    assert valid_steps(folder) == [200, 150]
    kept(folder, 160, keep=1)
    assert valid_steps(folder) == [200, 160]


def test_a_step_that_is_saved_again_is_the_newer_one_and_replaces_the_other(folder: Path) -> None:
    path = kept(folder, 200)
    assert names(folder) == ["step-000100", "step-000200-2"]
    assert path == candidates(folder)[0].path
    assert kept(folder, 200) == folder / "step-000200-3"
    assert is_intact(folder / "step-000200-3", 200)
    assert names(folder) == ["step-000100", "step-000200-3"]


def test_a_damaged_one_is_no_obstacle_to_its_step(folder: Path) -> None:
    (folder / "step-000200" / "state.json").unlink()
    (folder / "step-000300").write_text("mine")
    kept(folder, 200)
    kept(folder, 300)
    assert names(folder) == ["step-000200-2", "step-000300", "step-000300-2"]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        path = kept(tmp_path / "checkpoints", 1)
    finally:
        os.umask(old)
    modes = {inner.stat().st_mode & 0o777 for inner in path.iterdir()}
    assert modes == {0o600}
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["a b", "对题 '\"", "new\nline", "x" * 255, "-rf"])
def test_a_run_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "checkpoints"
    for step in (1, 2, 3):
        kept(folder, step)
    assert valid_steps(folder) == [3, 2]


def test_the_working_folder_may_change_between_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def leave(folder: Path) -> None:
        os.chdir("elsewhere")
        write(1)(folder)

    save(Path("checkpoints").absolute(), 1, leave, {}, keep=1)
    assert valid_steps(tmp_path / "checkpoints") == [1]
    assert names(tmp_path / "elsewhere") == []


def test_mistakes_of_the_program_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        kept(folder, 300, keep=0)
    with pytest.raises(ValueError, match="another step"):
        save(folder, 300, write(300), {"step": 200}, keep=1)
    assert valid_steps(folder) == [200, 100]


# --- Damaged and junk -----------------------------------------------------------------------------


def test_all_that_lies_there_is_named(folder: Path, tmp_path: Path) -> None:
    gone = gone_pid()
    for name in ("step-999999", "step-abc", f"step-000200.tmp-{gone}", "step-0000300", "step-12"):
        (folder / name).mkdir()
    for name in ("step-0١2345", "step-000200-1", "step-000200-02", "step--00001", "STEP-000001"):
        (folder / name).mkdir()
    (folder / "step-000400").symlink_to("step-000200")
    (folder / "step-000500").symlink_to("step-000500")
    (folder / "step-000600").write_text("")
    os.mkfifo(folder / "step-000700")
    (folder / "notes.txt").write_text("")
    shutil.copytree(folder / "step-000100", folder / "step-000800")
    shutil.copytree(folder / "step-000100", folder / "step-000900")
    (folder / "step-000900" / MANIFEST_FILE).unlink()
    write_manifest(folder / "step-000900", {})
    found = {one.path.name: one for one in candidates(folder)}
    assert found.keys() == set(names(folder))
    assert {name: (one.step, one.problem) for name, one in found.items() if one.step} == {
        "step-999999": (999999, "manifest.json is missing"),
        "step-000900": (900, "it is no checkpoint by its manifest"),
        "step-000800": (800, "it is of step 100 by its manifest"),
        "step-000700": (700, "it is a file, not a folder"),
        "step-000600": (600, "it is a file, not a folder"),
        "step-000500": (500, "it is a symbolic link"),
        "step-000400": (400, "it is a symbolic link"),
        "step-000200": (200, None),
        "step-000100": (100, None),
    }
    steps = [one.step for one in candidates(folder)]
    assert steps[:9] == [999999, 900, 800, 700, 600, 500, 400, 200, 100]
    assert set(steps[9:]) == {None}
    unfinished = found[f"step-000200.tmp-{gone}"].problem
    assert unfinished == f"it was left unfinished by process {gone}"
    assert found["notes.txt"].problem == "it is not named like a checkpoint"
    # None of it is in the way of the next save, and what that removes was made here.
    kept(folder, 850, keep=1)
    left = found.keys() - {f"step-000200.tmp-{gone}", "step-000200", "step-000100"}
    assert set(names(folder)) == {*left, "step-000850"}


def _flip(path: Path) -> None:
    bits = bytearray(path.read_bytes())
    bits[len(bits) // 2] ^= 1
    path.write_bytes(bits)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
        _flip,
    ],
    ids=["cut to a half", "emptied", "removed", "a bit flipped"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_next_older(
    folder: Path, damage: Callable[[Path], object], name: str
) -> None:
    damage(folder / "step-000200" / name)
    first, second = candidates(folder)
    assert first.problem is not None
    assert name in first.problem
    assert (second.step, second.problem) == (100, None)
    assert is_intact(second.path, 100)


def test_a_bad_sector_is_a_problem_of_its_checkpoint_alone(folder: Path) -> None:
    save(folder, 300, lambda path: (path / "empty").write_bytes(b"") and None, {}, keep=3)
    with unreadable(folder / "step-000300" / "empty"):
        assert valid_steps(folder) == [200, 100]
    assert valid_steps(folder) == [300, 200, 100]


def test_candidates_are_read_one_by_one(folder: Path) -> None:
    found = examine(folder)
    assert next(found).step == 200
    _flip(folder / "step-000100" / "state.json")
    assert next(found).problem is not None, "it had not been read before"


@pytest.mark.parametrize("damaged", [(300,), (200, 300), (100, 300), (200,)])
def test_pruning_counts_valid_ones_alone(tmp_path: Path, damaged: tuple[int, ...]) -> None:
    for step in (100, 200, 300):
        kept(tmp_path, step, keep=9)
    for step in damaged:
        _flip(tmp_path / f"step-000{step}" / "optimizer.safetensors")
    before = valid_steps(tmp_path)
    prune(tmp_path, keep=2)
    assert valid_steps(tmp_path) == before
    prune(tmp_path, keep=1)
    assert valid_steps(tmp_path) == before[:1]
    newer_and_damaged = [step for step in damaged if step > (before[0] or 0)]
    expected = [before[0], *newer_and_damaged]
    assert names(tmp_path) == [f"step-000{step}" for step in expected]


def test_with_no_valid_one_nothing_is_removed(folder: Path) -> None:
    for step in (100, 200):
        _flip(folder / f"step-000{step}" / "state.json")
    assert prune(folder, keep=1) == []
    assert names(folder) == ["step-000100", "step-000200"]
    kept(folder, 300)
    assert names(folder) == ["step-000300"]


def test_a_damaged_one_whose_manifest_is_lost_is_not_ours_to_remove(folder: Path) -> None:
    os.truncate(folder / "step-000100" / MANIFEST_FILE, 10)
    _flip(folder / "step-000200" / "state.json")
    kept(folder, 300, keep=1)
    assert names(folder) == ["step-000100", "step-000300"]


def test_pruning_follows_no_link(folder: Path, tmp_path: Path) -> None:
    (folder / "step-000100").rename(tmp_path / "mine")
    (folder / "step-000100").symlink_to(tmp_path / "mine")
    (folder / "step-000200" / "out").symlink_to(tmp_path / "mine")  # which damages it
    kept(folder, 300, keep=1)
    assert names(folder) == ["step-000100", "step-000300"]
    assert is_intact(tmp_path / "mine", 100)


def test_a_protected_one_stays_even_if_damaged(folder: Path) -> None:
    _flip(folder / "step-000100" / "state.json")
    kept(folder, 300, keep=1, protected={100})
    assert names(folder) == ["step-000100", "step-000300"]


def test_without_a_folder_there_are_no_candidates(tmp_path: Path) -> None:
    assert candidates(tmp_path / "none") == []
    assert prune(tmp_path / "none", keep=1) == []


# --- Given up -------------------------------------------------------------------------------------


def test_a_run_that_goes_on_from_an_older_one_is_not_resumed_from_a_newer(folder: Path) -> None:
    for step in (300, 400):
        kept(folder, step, keep=9)
    (folder / "step-000500").symlink_to("step-000400")
    assert [path.name for path in set_aside(folder, after=200)] == [
        "step-000400.given-up",
        "step-000300.given-up",
    ]
    assert valid_steps(folder) == [200, 100]
    assert is_intact(folder / "step-000400.given-up", 400)
    kept(folder, 300, keep=9)
    assert valid_steps(folder) == [300, 200, 100]
    assert [path.name for path in set_aside(folder, after=200)] == ["step-000300.given-up-2"]
    assert set_aside(folder, after=200) == []
    kept(folder, 400, keep=1)
    assert len(names(folder)) == 5, "what was given up is the user's to remove"


# --- Refused --------------------------------------------------------------------------------------


def test_on_a_full_disk_the_older_ones_are_as_they_were(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 60 * 4096) as disk:
        folder = disk / "checkpoints"
        for step in (100, 200):
            kept(folder, step)

        def tensors(path: Path) -> None:
            save_file({"weight": np.zeros(100_000, np.float32)}, path / "trained.safetensors")

        def raw(path: Path) -> None:
            (path / "trained.safetensors").write_bytes(bytes(400_000))

        for fill in (tensors, raw):
            with pytest.raises(DuitiError) as found:
                save(folder, 300, fill, {}, keep=2)
            assert f"{folder / 'step-000300'} cannot be written: the disk is full" in str(
                found.value
            )
            assert found.value.why.endswith(" are free")
            assert names(folder) == ["step-000100", "step-000200"]
        with pytest.raises(DuitiError, match=r"400\.0 kB are needed"):
            save(folder, 300, raw, {}, keep=2, num_bytes=400_000)
        assert names(folder) == ["step-000100", "step-000200"]
        assert all(is_intact(folder / f"step-000{step}", step) for step in (100, 200))
        kept(folder, 300)


@pytest.mark.parametrize("size", [0, 2000, 5000])
def test_a_manifest_that_finds_no_room_leaves_no_checkpoint(tmp_path: Path, size: int) -> None:
    """Its files fit, the list of them does not."""
    with small_disk(tmp_path / "disk", 10 * 4096) as disk:
        kept(disk, 1, keep=1)
        before = names(disk)

        def fill(path: Path) -> None:
            left = os.statvfs(disk).f_bavail
            (path / "a").write_bytes(bytes(left * 4096 - size))

        facts = {"long": "x" * 9000}
        with pytest.raises(DuitiError, match="the disk is full"):
            save(disk, 2, fill, facts, keep=1)
        assert names(disk) == before
        assert is_intact(disk / "step-000001", 1)


def test_a_folder_that_cannot_be_written_is_told_as_such(folder: Path) -> None:
    with read_only(folder), pytest.raises(DuitiError, match="cannot be written: "):
        kept(folder, 300)
    assert valid_steps(folder) == [200, 100]


def test_a_file_where_the_folder_should_be_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(DuitiError, match="a file is where a folder should be"):
        kept(tmp_path / "checkpoints", 1)
    with pytest.raises(DuitiError, match="a file is where a folder should be"):
        candidates(tmp_path / "checkpoints")


def test_an_error_while_writing_leaves_nothing(folder: Path) -> None:
    def fill(path: Path) -> None:
        write(300)(path)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        save(folder, 300, fill, {}, keep=1)
    assert names(folder) == ["step-000100", "step-000200"]


def test_what_the_disk_does_not_give_back_does_not_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename is the last moment at which nothing has been verified yet."""
    rename = os.rename

    def spoil(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "step-000300":
            _flip(Path(target) / "trained.safetensors")

    monkeypatch.setattr(os, "rename", spoil)
    with pytest.raises(DuitiError, match=r"read back, trained\.safetensors has changed"):
        kept(folder, 300, keep=1)
    assert names(folder) == ["step-000100", "step-000200"]


def test_old_ones_that_cannot_be_removed_do_not_lose_the_new(folder: Path) -> None:
    gone = gone_pid()
    (folder / f"a.tmp-{gone}").mkdir()
    (folder / f"a.tmp-{gone}" / "file").write_text("")
    with read_only(folder / f"a.tmp-{gone}"):
        said: list[str] = []
        kept(folder, 300, say=said.append)
        assert len(said) == 1
        assert f"a.tmp-{gone} cannot be removed" in said[0]
        with pytest.raises(DuitiError, match="cannot be removed"):
            kept(folder, 400)
        assert valid_steps(folder) == [400, 300]
    kept(folder, 500)
    assert names(folder) == ["step-000400", "step-000500"]


# --- Power lost -----------------------------------------------------------------------------------


def test_everything_is_on_the_disk_before_the_name_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves what it wrote to the system; a machine without power does
    not. So the order of the calls is what is looked at."""
    calls: list[tuple[str, int | str]] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        calls.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    path = kept(folder, 300)
    named = calls.index(("rename", path.name))
    before, after = calls[:named], calls[named + 1 :]
    for inner in (path, *path.iterdir()):
        assert ("sync", inner.stat().st_ino) in before, inner
    first = {name: before.index(("sync", (path / name).stat().st_ino)) for name in FILES}
    manifest = before.index(("sync", (path / MANIFEST_FILE).stat().st_ino))
    assert max(first.values()) < manifest, "the list is written after what it lists"
    assert after[0] == ("sync", folder.stat().st_ino), "before an older one is removed"
    assert after[1][0] == "rename", "which is aside"


# --- Killed ---------------------------------------------------------------------------------------

KILLED = """
import os, shutil
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from made_faults import die_at, die_beyond, in_child
from test_keeper import content, is_intact, kept, names, FILES, _flip
from duiti.training.keeper import candidates

base = Path(sys.argv[2])

start = base / "start"
for step in (50, 100, 200):
    kept(start, step, keep=9)
_flip(start / "step-000050" / "state.json")
os.mkdir(start / "step-abc")

def work(folder):
    kept(folder, 300)

largest = max(len(content(300, name)) for name in FILES)
for arrange, numbers in ((die_at, range(1, 2000)), (die_beyond, range(0, largest + 100, 100))):
    states, deaths = [], 0
    for number in numbers:
        folder = base / str(number)
        shutil.copytree(start, folder)
        code = in_child(lambda: work(folder), lambda: arrange(number))
        assert code <= 0, "an exception"
        deaths += code < 0
        found = candidates(folder)
        valid = [one.step for one in found if one.problem is None]
        assert valid in ([200, 100], [300, 200, 100], [300, 200]), valid
        for one in found:
            if one.problem is None:
                assert is_intact(one.path, one.step)
            else:
                assert one.step in (None, 50), (one, "never half of one under its name")
        states.append(([200, 100], [300, 200, 100], [300, 200]).index(valid))
        kept(folder, 400)
        assert names(folder)[-2:] == ["step-000400", "step-abc"], names(folder)
        assert len(names(folder)) == 3, (names(folder), "nothing is left of the dead one")
        shutil.rmtree(folder)
        if code == 0:
            break
    else:
        raise AssertionError("it never came to its end")
    assert states == sorted(states), "who dies later has done no less"
    print(deaths, sorted(set(states)), flush=True)
"""


def test_killed_anywhere_the_older_checkpoints_are_good(quick_folder: Path) -> None:
    """Before every call to the system that names a file, around every fsync, inside writes."""
    calls, writes = ran(KILLED, Path(__file__).parent, quick_folder).splitlines()
    assert int(calls.split()[0]) > 50
    assert calls.endswith("[0, 1, 2]"), "it was killed before, between, and after"
    assert int(writes.split()[0]) >= 10


def test_a_run_whose_folder_is_gone_is_not_made_anew_for_a_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    with pytest.raises(DuitiError, match="run is gone"):
        save(folder, 300, write(300), {}, keep=2)
    assert not folder.parent.exists()


def test_a_checkpoint_is_made_even_if_all_are_removed_meanwhile(folder: Path) -> None:
    times = []

    def removed(into: Path) -> None:
        write(300)(into)
        times.append(into)
        if len(times) == 1:
            shutil.rmtree(folder)

    save(folder, 300, removed, {"run": "a"}, keep=2)
    assert len(times) == 2
    assert names(folder) == ["step-000300"]
    assert is_intact(folder / "step-000300", 300)


def test_somebody_who_removes_it_again_and_again_is_told(folder: Path) -> None:
    def removed(into: Path) -> None:
        shutil.rmtree(folder)

    with pytest.raises(DuitiError, match="its folder does not exist"):
        save(folder, 300, removed, {"run": "a"}, keep=2)
