"""The one line on a terminal: it fits, whatever the terminal, and its curve is the loss."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from duiti.training.bar import LEVELS, Bar, Curve, Moment, bar_line, num_columns, sparkline
from duiti.training.figures import figure, measured_text


def moment(**more: Any) -> Moment:
    values = {
        "step": 120, "total": 390, "loss": 1.2345, "tokens_per_s": 1234.0,
        "memory_bytes": 2 * 10**9, "left_s": 65.0, "measured": {"val_loss": 1.321}, **more,
    }  # fmt: skip
    return Moment(**values)


def falling(share: float = 0.5) -> Curve:
    curve = Curve()
    for n in range(1, 101):
        curve.add(share * n / 100, 5.0 - n / 25)
    return curve


def line(width: int, **more: Any) -> str:
    flags = {key: more.pop(key) for key in ("is_ascii", "is_wide") if key in more}
    return "".join(bar_line(moment(**more), falling(), 0.5, width=width, **flags))


def test_eighty_columns_hold_all_there_is_to_say() -> None:
    found = line(80)
    assert re.fullmatch(r"120/390 [▁-▇]+─+ loss 1\.2345 · val 1\.3210 · 1,234 tok/s · 2\.0 GB"
                        r" · 1:05 left", found)  # fmt: skip
    assert cell_len(found) <= 80


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(65, "GB"), (50, "tok/s"), (44, "val"), (20, "left")],
)
def test_a_narrow_terminal_gets_what_matters_most(width: int, left_out: str) -> None:
    assert left_out not in line(width)
    assert line(width).startswith("120/390")
    assert "loss 1.2345" in line(width)


@given(
    width=st.integers(1, 200),
    step=st.integers(1, 10**7),
    loss=st.floats(),
    names=st.lists(st.text(max_size=12), max_size=4),
    share=st.floats(0, 1),
    is_ascii=st.booleans(),
    is_wide=st.booleans(),
)
def test_it_never_is_wider_than_the_terminal(
    width: int, step: int, loss: float, names: list[str], share: float, is_ascii: bool,
    is_wide: bool,
) -> None:  # fmt: skip
    now = moment(step=step, total=10**7, loss=loss, measured={f"val_{n}": 0.5 for n in names})
    curve = falling(share)
    found = "".join(bar_line(now, curve, share, width=width, is_ascii=is_ascii, is_wide=is_wide))
    assert num_columns(found, is_wide=is_wide) <= width
    assert found.isprintable()
    assert not is_ascii or found.isascii()


def test_chinese_takes_two_columns_and_where_it_is_so_the_drawing_does_too() -> None:
    found = line(80, measured={"val_精确匹配": 0.5})
    assert "精确匹配 0.5000" in found
    assert cell_len(found) <= 80  # as rich counts it
    assert num_columns("精·▁a") == 5
    assert num_columns("精·▁a", is_wide=True) == 7
    wide = line(80, is_wide=True)
    assert num_columns(wide, is_wide=True) <= 80
    assert wide.endswith("loss 1.2345, val 1.3210, 1,234 tok/s, 2.0 GB, 1:05 left")
    assert len(re.findall("[▁-▇─]", wide)) >= 6


def test_a_curve_that_falls_is_drawn_as_one() -> None:
    (before, done, rest) = bar_line(moment(), falling(), 0.5, width=80)
    assert done == "".join(sorted(done, reverse=True))
    assert (done[0], done[-1]) == (LEVELS[-1], LEVELS[0])
    assert before == "120/390 "
    assert abs(len(done) - rest.count("─")) <= 1


def test_the_bar_is_full_at_the_end_and_not_before() -> None:
    rests = [bar_line(moment(), falling(), share, width=80)[2] for share in (0.99, 1.0)]
    assert [rest.count("─") for rest in rests] == [1, 0]


def test_a_curve_takes_the_same_memory_for_a_million_updates_and_smooths_them() -> None:
    curve = Curve()
    for n in range(20_000):
        curve.add((n + 1) / 20_000, 2.0 + (-1) ** n)
    cells = curve.cells(20, 20)
    assert all(value is not None and abs(value - 2.0) < 0.1 for value in cells[1:])
    assert len(curve._sums) == 240


def test_smoothing_begins_at_the_first_loss_and_not_at_zero() -> None:
    curve = Curve()
    curve.add(0.004, 4.0)
    assert curve.cells(240, 1) == [pytest.approx(4.0)]


def test_a_loss_that_is_no_number_leaves_a_gap_that_is_drawn_over() -> None:
    curve = Curve()
    for share, loss in ((0.1, 3.0), (0.2, float("nan")), (0.3, 1.0)):
        curve.add(share, loss)
    assert curve.cells(10, 3)[1] is None
    assert sparkline([3.0, None, 1.0]) == "▇▇▁"
    assert sparkline([None, None]) == "▁▁"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_figures_are_named_shortly_and_differences_have_a_sign() -> None:
    measured = {"val_loss": 1.25, "val_exact_match": 0.5, "anchor_kl": 3e-5,
                "anchor_nll_change": 0.01}  # fmt: skip
    assert measured_text(measured) == [
        "val 1.2500", "exact_match 0.5000", "anchor kl 3.0e-05", "anchor nll +0.0100",
    ]  # fmt: skip
    assert figure("x", float("nan")) == "nan"


def test_names_of_the_users_own_metrics_drive_no_terminal() -> None:
    assert "\x1b" not in line(120, measured={"val_\x1b[2J": 0.5})


def test_on_a_terminal_the_line_is_drawn_over_itself() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with Bar(console) as bar:
        bar.update(moment(), share=0.3)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = shown.replace("\r", "\n").rstrip("\n").splitlines()[-1]
    assert last.startswith("120/390 ▁")
    assert cell_len(last) <= 79


CHILD = """
from pathlib import Path
import sys
from duiti.training.log import RunLog, Talk
from duiti.training.step import StepMetrics

with RunLog(Path(sys.argv[1]), Talk(), total_steps=30) as log:
    for step in range(1, 31):
        log.step(StepMetrics(step=step, epoch=1.0, loss=5 / step, num_tokens=90, lr=1e-3,
                             supervised_tokens=30, grad_norm=1.0, tokens_per_s=1234.0,
                             peak_memory_bytes=2 * 10**9, micro_batch_tokens=8, out_of_memory=0),
                 {"val_loss": 2.0} if step % 10 == 0 else {})
        if step == 15:
            log._talk.say("note", "a line in between")
"""


@pytest.mark.parametrize(
    ("term", "columns"), [("xterm-256color", 80), ("xterm-256color", 40), ("dumb", 80)]
)
def test_in_a_real_terminal(tmp_path: Any, term: str, columns: int) -> None:
    reading, writing = pty.openpty()
    ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": term, "PYTHONIOENCODING": "utf-8"}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdin=writing,
                             stdout=writing, stderr=writing, env=environment)  # fmt: skip
    os.close(writing)
    heard = b""
    try:
        while more := os.read(reading, 65536):
            heard += more
    except OSError:  # how a terminal without a writer ends on Linux
        pass
    os.close(reading)
    assert child.wait(timeout=60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", heard.decode())
    lines = [each for each in re.split(r"[\r\n]+", plain) if each]
    assert "note      a line in between" in lines
    if term == "dumb":
        assert "step      30/30" in lines[-1]
        return
    bars = [each for each in lines if re.match(r"\d+/30", each)]
    assert bars[-1].startswith("30/30 ")
    assert "─" not in bars[-1]
    assert all(cell_len(each) < columns for each in bars)
