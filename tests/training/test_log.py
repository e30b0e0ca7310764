"""What is said while data is prepared: how far, how fast, how long."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from duiti.data.meter import Progress
from duiti.training.log import Preparing, RunLog, Talk, clock, preparing, progress_line
from duiti.training.step import StepMetrics


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


def test_memory_that_ran_out_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def metrics(step: int, failures: int) -> StepMetrics:
        return StepMetrics(
            step=step, epoch=1.0, loss=1.5, num_tokens=90, supervised_tokens=30, lr=1e-3,
            grad_norm=1.0, tokens_per_s=100.0, peak_memory_bytes=2 * 10**9,
            micro_batch_tokens=1024, out_of_memory=failures,
        )  # fmt: skip

    with RunLog(tmp_path, Talk(plain=True), total_steps=3) as log:
        for step, failures in ((1, 0), (2, 1), (3, 2)):
            log.step(metrics(step, failures))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory")]
    assert len(said) == 2
    assert "ran out in step 2;" in said[0]
    assert "ran out 2 times in step 3;" in said[1]
    assert "1,024 tokens at most" in said[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["out_of_memory"] for line in lines] == [0, 1, 2]
    assert {line["micro_batch_tokens"] for line in lines} == {1024}
