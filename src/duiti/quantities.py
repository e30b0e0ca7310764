"""Quantities as people write them: `8GB`, `30m`, `200`.

size_in_bytes("8GB"); seconds_in("1h30m"); save_every = SaveEvery.parse("10m")
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def size_in_bytes(text: str) -> int:
    """`8GB`, `512 MB`, `1.5GiB`.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError("must read like 8GB or 512MB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** ("KMGT".index(found[2].upper()) + 1))


def seconds_in(text: str) -> float:
    """`90s`, `30m`, `2h`, `1h30m`, `1.5h`.

    Raises:
        ValueError: it is no length of time, or none at all.
    """
    seconds = _seconds(text)
    if seconds is None:
        raise ValueError("must read like 90s, 30m, 2h or 1h30m")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How much is rehearsed, and what."""

    share: float
    """Of the rows of an epoch, rehearsal included."""
    file: str | None
    """None: text that the base model writes itself."""

    @classmethod
    def parse(cls, text: str) -> Replay:
        """`5%`, or `5%:file`.

        Raises:
            ValueError: it is neither.
        """
        share, colon, file = text.strip().partition(":")
        found = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,4})?)%", share.strip())
        if found is None or not float(found[1]) or (colon and not file.strip()):
            raise ValueError("must read like 5%, or 5%:file, between 0% and 100%")
        return cls(share=float(found[1]) / 100, file=file.strip() or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveEvery:
    """When something is saved: after so many updates, or after so much time, or never."""

    steps: int | None = None
    """At every multiple of this many updates."""
    seconds: float | None = None
    """Once this much time has passed since the last time."""

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """`10m`, `90s`, `1h` (time), `200` (updates) or `never`.

        Raises:
            ValueError: it is none of these.
        """
        word = text.strip().lower()
        if word == "never":
            return cls()
        if re.fullmatch(r"[0-9]{1,9}", word) and int(word) > 0:
            return cls(steps=int(word))
        seconds = _seconds(word)
        if seconds is None:
            raise ValueError("must read like 10m, 90s or 1h (time), 200 (updates), or never")
        return cls(seconds=seconds)

    def is_due(self, step: int, now_s: float, last_step: int, last_s: float) -> bool:
        """Whether to save now, behind update `step`.

        Multiples of `steps` do not move where a run was stopped and went on in between, so an
        undisturbed run and a resumed one save behind the same updates.

        Args:
            step: updates that are made, from 1.
            now_s: of a clock that never goes back, so that setting the machine's clock, a wrong
                time zone or the year 1970 change nothing.
            last_step: behind which it was saved last; 0 before the first time.
            last_s: when that was, or when the process began to train.
        """
        if step <= last_step:
            return False
        if self.steps is not None:
            return step // self.steps > last_step // self.steps
        return self.seconds is not None and now_s - last_s >= self.seconds


_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}
# Nine digits are a lifetime in seconds; more would only overflow somewhere else.
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_DURATION = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?", re.IGNORECASE)


def _seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    amounts = zip(found.groups(default="0"), _UNITS_S.values(), strict=True)
    return sum(float(amount) * unit_s for amount, unit_s in amounts) or None
