"""Numbers and names as words of a report.

percent(0.994)            # 99.4 %
spoken("mine.py:score")   # score
"""

from __future__ import annotations


def percent(share: float) -> str:
    """A share that is only 0 or 100 % where it is exactly that."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    is_whole = 0.95 <= value <= 99 or value in (0, 100)
    return f"{value:.0f} %" if is_whole else f"{value:.1f} %"


def capital(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def spoken(name: str) -> str:
    """The name of a metric as words."""
    if name.startswith("regex:"):
        return name
    return name.rpartition(":")[2].replace("_", " ")


def score(name: str, value: float) -> str:
    """The value of a metric: a share in percent, another number in four digits."""
    if name in ("loss", "perplexity") or not 0 <= value <= 1:
        return f"{value:.4g}"
    return percent(value)


def nats(value: float) -> str:
    """A loss in three digits."""
    return f"{value:.3g}"
