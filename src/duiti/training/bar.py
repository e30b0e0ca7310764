"""One line on a terminal while a run goes on: how far it has come, drawn with the loss so far.

    with Bar(console) as bar:
        bar.update(Moment(step=120, …), share=0.3)

    120/390 ▇▅▃▂▂▁▁▁▁─────────────── loss 1.2345 · val 1.3210 · 1,234 tok/s · 2.0 GB · 1:05 left

The part that is done is a curve of the smoothed loss. The line always fits: on a narrow terminal
what matters least is left out, and where letters beyond ASCII cannot be shown there are none.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from duiti.training.figures import clock, gigabytes, measured_text

LEVELS = "▁▂▃▄▅▆▇"
"""Without the full block: lines above and below are not touched."""
NUM_POINTS = 240
"""Parts of a run whose mean loss is kept, whatever its length."""
KEPT = 0.9
"""Of the smoothed loss, at an update (an exponential mean, corrected for its beginning)."""
MIN_BAR, MAX_BAR = 10, 40
"""Cells of the bar; where each takes two columns, about half as many will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What there is to say behind an update."""

    step: int
    total: int
    loss: float
    tokens_per_s: float
    memory_bytes: int
    left_s: float
    measured: Mapping[str, float] = field(default_factory=dict)
    """The newest of each figure, by its key in `metrics.jsonl`."""


class Curve:
    """The smoothed loss over a run, in as much memory at its end as at its beginning."""

    def __init__(self) -> None:
        self._sums, self._counts = [0.0] * NUM_POINTS, [0] * NUM_POINTS
        self._smooth = self._weight = 0.0

    def add(self, share: float, loss: float) -> None:
        """The loss of an update, and which share of the run is done with it."""
        if not math.isfinite(loss):
            return
        self._smooth = KEPT * self._smooth + (1 - KEPT) * loss
        self._weight = KEPT * self._weight + (1 - KEPT)
        place = min(max(math.ceil(share * NUM_POINTS) - 1, 0), NUM_POINTS - 1)
        self._sums[place] += self._smooth / self._weight
        self._counts[place] += 1

    def cells(self, num_cells: int, num_done: int) -> list[float | None]:
        """Mean of each of the first cells; None where there is nothing, as on the way to it."""
        found: list[float | None] = []
        for cell in range(num_done):
            begin, end = (i * NUM_POINTS // num_cells for i in (cell, cell + 1))
            count = sum(self._counts[begin:end])
            found.append(sum(self._sums[begin:end]) / count if count else None)
        return found


def sparkline(values: Sequence[float | None]) -> str:
    """A character each, from the lowest to the highest; what is missing is as the one before it."""
    known = [value for value in values if value is not None]
    if not known:
        return LEVELS[0] * len(values)
    low, high = min(known), max(known)
    drawn, last = "", known[0]
    for value in values:
        last = last if value is None else value
        level = (last - low) / (high - low) if high > low else 0.0
        drawn += LEVELS[round(level * (len(LEVELS) - 1))]
    return drawn


def num_columns(text: str, *, is_wide: bool = False) -> int:
    """Columns that a text takes.

    Args:
        is_wide: whether characters of ambiguous width, such as `·` and `▁`, take two, as on many
            Chinese, Japanese and Korean terminals.
    """
    columns = 0
    for character in text:
        kind = unicodedata.east_asian_width(character)
        is_mark = unicodedata.combining(character) or unicodedata.category(character) in _NO_WIDTH
        columns += 0 if is_mark else 2 if kind in "WF" or (is_wide and kind == "A") else 1
    return columns


_NO_WIDTH = ("Mn", "Me", "Cf", "Cc")


def bar_line(
    moment: Moment,
    curve: Curve,
    share: float,
    *,
    width: int,
    is_ascii: bool = False,
    is_wide: bool = False,
) -> tuple[str, str, str]:
    """The line, of at most `width` columns: what is before the bar, the done part, the rest.

    Args:
        share: of the run that is done.
        is_ascii: whether the terminal shows nothing else.
        is_wide: as for `num_columns`.
    """
    between = ", " if is_ascii or is_wide else " · "

    def columns(text: str) -> int:
        return num_columns(text, is_wide=is_wide)

    begin = f"{moment.step:,}/{moment.total:,}"
    parts = {
        "loss": f"loss {moment.loss:.4f}",
        **{f"measured {n}": text for n, text in enumerate(_clean(moment.measured, is_ascii))},
        "rate": f"{moment.tokens_per_s:,.0f} tok/s",
        "memory": gigabytes(moment.memory_bytes),
        "left": f"{clock(moment.left_s)} left",
    }
    order = ["loss", "left", "measured 0", "rate", "memory"]
    order += [key for key in parts if key not in order]
    cell = columns("-" if is_ascii else LEVELS[0])
    fewest = MIN_BAR // cell + cell - 1
    room = width - columns(begin)
    chosen: set[str] = set()
    for key in order:
        if key not in parts:
            continue
        asked = [parts[name] for name in parts if name in chosen | {key}]
        # The bar comes before all that stands behind the loss and the time that is left.
        bar = 0 if len(chosen) < 2 else fewest * cell + 1
        if columns(between.join(asked)) + 1 + bar > room:
            break
        chosen.add(key)
    text = between.join(parts[name] for name in parts if name in chosen)
    left = room - columns(text) - (1 if text else 0) - 1
    num_cells = min(left // cell, MAX_BAR)
    if num_cells < fewest:
        return _cut(f"{begin} {text}".rstrip(), width, is_wide=is_wide), "", ""
    num_done = min(max(int(share * num_cells), 1), num_cells)  # full at the end, not before
    rest = ("-" if is_ascii else "─") * (num_cells - num_done)
    done = "#" * num_done if is_ascii else sparkline(curve.cells(num_cells, num_done))
    return f"{begin} ", done, f"{rest} {text}".rstrip()


def _clean(measured: Mapping[str, float], is_ascii: bool) -> list[str]:
    """Figures as text. Names of metrics may be the user's own, and drive no terminal."""
    texts = measured_text(measured)
    kept = ["".join(c if c.isprintable() else "?" for c in text) for text in texts]
    return [text.encode("ascii", "replace").decode() for text in kept] if is_ascii else kept


def _cut(text: str, width: int, *, is_wide: bool) -> str:
    while num_columns(text, is_wide=is_wide) > width:
        text = text[:-1]
    return text


def has_wide_characters() -> bool:
    """Whether a terminal of this locale may show characters of ambiguous width in two columns."""
    locale = next((os.environ[name] for name in _LOCALE if os.environ.get(name)), "")
    return locale.startswith(("zh", "ja", "ko"))


_LOCALE = ("LC_ALL", "LC_CTYPE", "LANG")


class Bar:
    """The line, drawn again four times a second, below whatever else is printed."""

    def __init__(self, console: Console) -> None:
        self.curve = Curve()
        self._console = console
        self._moment: Moment | None = None
        self._share = 0.0
        self._is_wide = has_wide_characters()
        self._live = Live(console=console, get_renderable=self._draw, auto_refresh=True)

    def __enter__(self) -> Bar:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, moment: Moment, *, share: float) -> None:
        """Behind an update; `share` of the run is done."""
        self.curve.add(share, moment.loss)
        self._moment, self._share = moment, share

    def _draw(self) -> Text:
        if self._moment is None:
            return Text("")
        is_ascii = not self._console.encoding.lower().startswith("utf")
        # One column less: a character in the last one moves some terminals to the next line.
        before, done, rest = bar_line(self._moment, self.curve, self._share,
                                      width=self._console.width - 1, is_ascii=is_ascii,
                                      is_wide=self._is_wide)  # fmt: skip
        return Text.assemble(before, (done, "cyan"), rest, no_wrap=True, overflow="crop")
