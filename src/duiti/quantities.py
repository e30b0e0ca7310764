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
    """`90s`, `30m`, `2h`, `1h30m`.

    Raises:
        ValueError: it is no length of time, or none at all.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    parts = [int(part or 0) for part in found.groups()] if found else [0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds == 0:
        raise ValueError("must read like 30m, 90s or 1h30m")
    return float(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveEvery:
    """How often something is saved: after so many updates, or after so much time, or never."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """`200` (updates), `10m`, `never`.

        Raises:
            ValueError: it is none of these.
        """
        text = text.strip().lower()
        if text == "never":
            return cls()
        if text.isdecimal() and int(text) > 0:
            return cls(steps=int(text))
        try:
            return cls(seconds=seconds_in(text))
        except ValueError:
            raise ValueError("must read like 10m, 200 (updates) or never") from None

    def is_due(self, *, steps: int, seconds: float) -> bool:
        """Whether to save, so many updates and so much time after the last time."""
        if self.steps is not None:
            return steps >= self.steps
        return self.seconds is not None and seconds >= self.seconds
