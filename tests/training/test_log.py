"""What is said while data is prepared and while a run goes on, and that nobody has to hear it."""

import io
import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from duiti.data.meter import Progress
from duiti.errors import DuitiError
from duiti.training.lasting_stream import LastingStream
from duiti.training.log import Preparing, RunLog, Talk, clock, preparing, progress_line
from duiti.training.metrics_file import MetricsFile
from duiti.training.step import StepMetrics
from duiti.types import Progress as Done


def test_rate_and_time_left_are_from_what_this_run_did() -> None:
    first = Progress(100_000, 50, 100)  # half was done by an earlier run
    now = Progress(110_000, 60, 100)
    # 10,000 rows and a tenth in 20 s: four tenths take 80 s.
    assert progress_line(first, now, 20.0) == "110,000 rows · 500 rows/s · 1:20 left"


@pytest.mark.parametrize("total", [None, 0])
def test_what_has_no_known_end_has_no_time_left(total: int | None) -> None:
    line = progress_line(Progress(0, 0, total), Progress(1000, 9, total), 2.0)
    assert line == "1,000 rows · 500 rows/s"


def test_nothing_done_yet_is_no_division_by_zero() -> None:
    first = Progress(256, 100, 100)
    assert progress_line(first, first, 0.0) == "256 rows · 0 rows/s"


def test_more_bytes_than_there_are_is_not_the_end() -> None:
    line = progress_line(Progress(0, 0, 100), Progress(10, 250, 100), 10.0)
    assert line.endswith("0:00 left")


def test_short_work_is_done_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    for talk in (Talk(), Talk(plain=True), Talk(quiet=True)):
        with preparing(talk) as watch:
            for rows in range(0, 5000, 256):
                watch.report(Progress(rows, rows, 5000))
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_leaves_nothing_behind() -> None:
    talk = Talk()
    screen = io.StringIO()
    talk.console = Console(file=screen, force_terminal=True, width=80)
    talk.is_plain = False
    watch = Preparing(talk)
    watch.report(Progress(100, 10, 100))
    watch._started -= 2  # as if it had begun before
    watch.report(Progress(1100, 60, 100))
    watch.stop()
    assert "1,100 rows · 500 rows/s · 0:02 left" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[2K")  # the line is wiped


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (7800, "2:10:00"), (3599.6, "1:00:00")]
)
def test_a_clock_reads_as_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def metrics(step: int, **more: Any) -> StepMetrics:
    given = StepMetrics(
        step=step, epoch=1.0, loss=1.5, num_tokens=90, supervised_tokens=30, lr=1e-3,
        grad_norm=1.0, tokens_per_s=100.0, peak_memory_bytes=2 * 10**9,
        micro_batch_tokens=1024, out_of_memory=0,
    )  # fmt: skip
    return replace(given, **more)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    content = (folder / "metrics.jsonl").read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def said(capsys: pytest.CaptureFixture[str], label: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(label)]


def test_memory_that_ran_out_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, Talk(plain=True), total_steps=3) as log:
        for step, failures in ((1, 0), (2, 1), (3, 2)):
            log.step(metrics(step, out_of_memory=failures))
    found = said(capsys, "memory")
    assert len(found) == 2
    assert "ran out in step 2;" in found[0]
    assert "ran out 2 times in step 3;" in found[1]
    assert "1,024 tokens at most" in found[0]
    lines = lines_of(tmp_path)
    assert [line["out_of_memory"] for line in lines] == [0, 1, 2]
    assert {line["micro_batch_tokens"] for line in lines} == {1024}


def test_what_is_unusual_is_said_and_recorded_and_nothing_is_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(f"a.jsonl:{number}" for number in range(1, 13))
    bad = metrics(2, loss=float("nan"), grad_norm=float("inf"), skipped=True,
                  anomaly="the loss is nan", rows=rows)  # fmt: skip
    with RunLog(tmp_path, Talk(plain=True), total_steps=3) as log:
        log.step(metrics(1), {"val_loss": float("nan")})
        log.step(bad)
        log.step(metrics(3, anomaly="the loss is 9, and was 1.5", rows=rows[:2]))
    err = capsys.readouterr().err.splitlines()
    (skipped,) = (line for line in err if line.startswith("skipped"))
    assert "step 2: the loss is nan · the update was left out" in skipped
    assert "a.jsonl:1, a.jsonl:2" in skipped
    assert "a.jsonl:8 and 4 more (see metrics.jsonl)" in skipped
    (unusual,) = (line for line in err if line.startswith("unusual"))
    assert "step 3: the loss is 9, and was 1.5 · the update was made" in unusual
    one, two, three = lines_of(tmp_path)
    assert {"skipped", "anomaly", "rows"}.isdisjoint(one)
    assert one["val_loss"] is None  # JSON has no NaN
    assert (two["loss"], two["grad_norm"], two["skipped"]) == (None, None, True)
    assert two["rows"] == list(rows)
    assert three["anomaly"] == "the loss is 9, and was 1.5"
    assert "skipped" not in three


def test_the_last_update_is_shown_whichever_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a budget of time it is not known beforehand."""
    with RunLog(tmp_path, Talk(plain=True), total_steps=1000, budget_s=60.0) as log:
        for step in range(1, 5):
            log.step(metrics(step))
    shown = said(capsys, "step")
    assert [line.split()[1] for line in shown] == ["1/1000", "4/1000"]


# Going on with what is there


def write_lines(path: Path, *steps: int, end: bytes = b"") -> bytes:
    lines = [json.dumps({"step": step, "loss": step / 3}).encode() + b"\n" for step in steps]
    path.write_bytes(b"".join(lines) + end)
    return b"".join(lines)


@pytest.mark.parametrize("start", [1, 4, 6])
@pytest.mark.parametrize("end", [b"", b'{"step": 7, "lo', b"\0" * 100, b"\n\xff\xfe"])
def test_metrics_go_on_behind_the_step_from_which_the_run_goes_on(
    tmp_path: Path, start: int, end: bytes
) -> None:
    whole = write_lines(tmp_path / "metrics.jsonl", *range(1, 7), end=end)
    with RunLog(tmp_path, Talk(quiet=True), total_steps=9, start=Done(step=start)) as log:
        log.step(metrics(start + 1))
    found = (tmp_path / "metrics.jsonl").read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:start])
    assert found.startswith(kept)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, start + 2))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_that_are_missing_are_told_and_none_comes_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "metrics.jsonl", 1, 2, 2, 1, 5)
    with RunLog(tmp_path, Talk(plain=True), total_steps=9, start=Done(step=5)) as log:
        log.step(metrics(6))
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 5, 6]
    assert "2 of 5 lines" in said(capsys, "metrics")[0]


def test_a_run_that_begins_begins_anew(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", 1, 2, 3)
    with RunLog(tmp_path, Talk(quiet=True), total_steps=9) as log:
        log.step(metrics(1))
    assert [line["loss"] for line in lines_of(tmp_path)] == [1.5]


def test_without_lines_at_all_a_run_goes_on(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", start_step=7)
    assert file.num_missing == 7
    file.add({"step": 8})
    file.close()
    assert lines_of(tmp_path) == [{"step": 8}]


def test_a_file_that_cannot_be_begun_is_an_error_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(DuitiError, match="cannot be written"):
        RunLog(tmp_path / "nowhere", Talk(quiet=True), total_steps=9)


# What cannot be written


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk does: a write is cut short, and the next one refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_for_a_while_costs_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, Talk(plain=True), total_steps=9) as log:
        log.step(metrics(1))
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with files_of_at_most(size + 20):
            for step in (2, 3, 4):
                log.step(metrics(step))
                # Never half a line, although 20 bytes of it would have had room.
                assert [line["step"] for line in lines_of(tmp_path)] == [1]
        log.step(metrics(5))
        assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5]
    during, end = said(capsys, "metrics")
    assert "cannot be written: File too large; training goes on" in during
    assert end.endswith("File too large; all lines are there now")


def test_lines_that_never_could_be_written_are_counted_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, Talk(plain=True), total_steps=9)
    with files_of_at_most(400), log:
        for step in range(1, 9):
            log.step(metrics(step))
    (num_there,) = {len(lines_of(tmp_path))}
    assert 1 <= num_there < 8
    assert said(capsys, "metrics")[-1].endswith(f"{8 - num_there} lines are missing")


def test_a_file_that_is_deleted_meanwhile_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, Talk(plain=True), total_steps=9) as log:
        log.step(metrics(1))
        (tmp_path / "metrics.jsonl").unlink()
        log.step(metrics(2))
    assert "it was deleted" in said(capsys, "metrics")[-1]


# Nobody listens any more

CHILD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from duiti.training.log import RunLog, Talk
from duiti.training.step import StepMetrics

given = StepMetrics(step=1, epoch=1.0, loss=1.5, num_tokens=90, supervised_tokens=30, lr=1e-3,
                    grad_norm=1.0, tokens_per_s=100.0, peak_memory_bytes=2 * 10**9,
                    micro_batch_tokens=1024, out_of_memory=1)
folder, stdout = Path(sys.argv[1]), sys.argv[2] == "stdout"
talk = Talk(stdout=stdout)
talk.say("hello", "there")
(folder / "ready").touch()
while not (folder / "gone").exists():
    time.sleep(0.01)
with RunLog(folder, talk, total_steps=40) as log:
    for step in range(1, 41):
        log.step(replace(given, step=step), {"val_loss": 0.5})
        time.sleep(0.01)
talk.say("done", "\N{SNOWMAN}")
print("somebody else", file=sys.stdout if stdout else sys.stderr, flush=True)
(folder / "ended").touch()
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path, kind: str, stream: str) -> None:
    reading, writing = os.pipe() if kind == "pipe" else pty.openpty()
    others = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), stream],
        **{**others, stream: writing}, env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    heard = b""
    while b"there" not in heard:
        heard += os.read(reading, 1000)
    os.close(reading)
    (tmp_path / "gone").touch()
    assert child.wait(timeout=300) == 0
    assert (tmp_path / "ended").exists()
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 41))


def test_a_process_without_a_stream_runs(tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", CHILD, str(tmp_path), "-"],
        check=False,
    )
    assert done.returncode == 0
    assert len(lines_of(tmp_path)) == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_stream_to_a_full_disk_raises_nothing_and_may_have_room_again() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        stream = LastingStream(full)
        for _ in range(5):
            stream.write("a line\n" * 5000)
            stream.flush()
        assert stream.fileno() == full.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing it can work


def test_a_character_that_the_stream_cannot_say_is_written_out() -> None:
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("1 · 2\n")
    stream.flush()
    assert raw.getvalue() == b"1 \\xb7 2\n"


def test_a_stream_that_is_closed_is_silent() -> None:
    closed = io.StringIO()
    closed.close()
    stream = LastingStream(closed)
    assert not stream.isatty()
    assert stream.write("x") == 1
    stream.flush()
