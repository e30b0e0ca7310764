"""`--track`: the numbers of a run, handed to trackers beside training.

    trackers = start_trackers(["wandb"], folder, config, start_step=0)
    trackers.log(12, {"loss": 1.5, "val_loss": 1.4})
    trackers.news()                                 # what there is to say since the last call
    trackers.close(); trackers.summary()

A tracker gets the numbers of `metrics.jsonl`, and those settings that are numbers or words out of a
list: no row, no path, no template. Training never waits for one. One that fails is said once and
dropped, and the run goes on; `metrics.jsonl` holds the same numbers in any case.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from duiti.config import Config, own_settings
from duiti.run import Run
from duiti.training.trackers import TRACKERS, Tracked, Tracker

MAX_WAITING = 10_000
"""Updates that may wait for a slow tracker; one that is further behind is dropped."""
MAX_CLOSE_S = 60.0
"""That the end of a run waits for a tracker."""
MAX_REASON = 200
"""Characters of what a tracker says about its failure."""
_SENT = ("model", "device", "budget")
"""Settings in free words that are sent all the same; `model` only where it is no folder."""


def start_trackers(
    names: Sequence[str], folder: Path, config: Config, *, start_step: int = 0
) -> Trackers | None:
    """Begin with each; None where there are none.

    Args:
        folder: of the run.
        start_step: the update behind which it begins or goes on.
    """
    if not names:
        return None
    run = Tracked(
        folder=folder, id=Run(folder).id, settings=sent_settings(config), start_step=start_step
    )
    return Trackers({name: TRACKERS[name]() for name in dict.fromkeys(names)}, run)


def sent_settings(config: Config) -> dict[str, bool | int | float | str]:
    """What trackers are told of the settings: numbers, switches, and words that can only be one of
    a few. A path, a name of a field or whatever else a user may write is none of these."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in own_settings(config).items():
        section = getattr(config, key)
        if isinstance(section, BaseModel):
            words = _literals(type(section))
            inner = {f"{key}.{name}": item for name, item in value.items()}
            found |= {k: v for k, v in inner.items() if _is_sent(k.partition(".")[2], v, words)}
        elif _is_sent(key, value, _literals(Config)):
            found[key] = value
    if config.model.startswith((".", "/", "~")) or Path(config.model).is_dir():
        found.pop("model", None)
    return found


def _is_sent(key: str, value: object, words: Mapping[str, frozenset[str]]) -> bool:
    if isinstance(value, str):
        return value != "" and (key in _SENT or value in words.get(key, ()))
    return isinstance(value, bool | int | float)


def _literals(model: type[BaseModel]) -> dict[str, frozenset[str]]:
    """Of each field the words that its type lists."""
    return {name: frozenset(_words(field.annotation)) for name, field in model.model_fields.items()}


def _words(annotation: Any) -> list[str]:
    inner = get_args(annotation)
    return [word for each in inner for word in ([each] if isinstance(each, str) else _words(each))]


class Trackers:
    """Those of a run. Nothing here raises, and nothing makes training wait."""

    def __init__(self, trackers: Mapping[str, Tracker], run: Tracked) -> None:
        self._feeds = [_Feed(name, tracker, run) for name, tracker in trackers.items()]

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Hand over the numbers among the values of an update."""
        numbers = numbers_of(values)
        for feed in self._feeds:
            feed.offer(step, numbers)

    def news(self) -> list[str]:
        """Where numbers go, and what went wrong, since the last call."""
        return [text for feed in self._feeds for text in feed.take_news()]

    def close(self) -> None:
        """Wait for what is under way, for a while."""
        for feed in self._feeds:
            feed.close()

    def summary(self) -> list[str]:
        """What is missing at the end, if anything is."""
        return [
            f"{feed.name}: {feed.num_missing:,} of {feed.num_offered:,} updates were not recorded;"
            " metrics.jsonl has them all"
            for feed in self._feeds
            if feed.num_missing
        ]


def numbers_of(values: Mapping[str, object]) -> dict[str, float]:
    """The finite numbers among values, without the step."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key != "step"
        and math.isfinite(value)
    }


class _Feed:
    """One tracker with a thread that works for it."""

    def __init__(self, name: str, tracker: Tracker, run: Tracked) -> None:
        self.name = name
        self.num_offered = self._num_recorded = 0
        self._tracker = tracker
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None]
        self._waiting = queue.Queue(MAX_WAITING)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_dropped = False
        try:
            self._news.put(f"{name}: {tracker.start(run)}")
        except Exception as error:  # somebody else's code
            self._drop(error)
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        if not self._is_dropped:
            self._thread.start()

    @property
    def num_missing(self) -> int:
        return self.num_offered - self._num_recorded

    def offer(self, step: int, numbers: Mapping[str, float]) -> None:
        self.num_offered += 1
        if not self._is_dropped:
            try:
                self._waiting.put_nowait((step, numbers))
            except queue.Full:
                self._drop(RuntimeError(f"it is {MAX_WAITING:,} updates behind"))

    def take_news(self) -> list[str]:
        return [self._news.get() for _ in range(self._news.qsize())]

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        until = time.monotonic() + MAX_CLOSE_S
        with suppress(queue.Full):
            if not self._is_dropped:
                self._waiting.put(None, timeout=MAX_CLOSE_S)
            self._thread.join(until - time.monotonic())
        if self._thread.is_alive():
            self._drop(RuntimeError(f"it did not come to its end within {MAX_CLOSE_S:.0f} s"))

    def _work(self) -> None:
        try:
            while not self._is_dropped and (item := self._waiting.get()) is not None:
                self._tracker.log(*item)
                self._num_recorded += 1
            self._tracker.finish()
        except Exception as error:  # somebody else's code
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if not self._is_dropped:
            self._is_dropped = True
            first = (str(error).splitlines() or [""])[0][:MAX_REASON]
            reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
            self._news.put(f"{self.name} failed and is left out from here on ({reason});"
                           " training goes on")  # fmt: skip
