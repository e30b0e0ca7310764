"""Quantities that people write, and what is none."""

import pytest

from duiti.quantities import SaveEvery, seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), (" 5M ", 300)]
)
def test_a_length_of_time(text: str, seconds: int) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "1.5h", "30m1h", "-5m", "10 minutes"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="must read like 30m"):
        seconds_in(text)


def test_saving_by_updates_by_time_and_never() -> None:
    assert SaveEvery.parse("200") == SaveEvery(steps=200)
    assert SaveEvery.parse("10m") == SaveEvery(seconds=600)
    assert SaveEvery.parse("never") == SaveEvery()
    for text in ("0", "often", "-3", "1.5", ""):
        with pytest.raises(ValueError, match="must read like 10m, 200"):
            SaveEvery.parse(text)


def test_a_save_is_due_by_its_own_measure_alone() -> None:
    assert SaveEvery(steps=3).is_due(steps=3, seconds=0)
    assert not SaveEvery(steps=3).is_due(steps=2, seconds=1e9)
    assert SaveEvery(seconds=60).is_due(steps=1, seconds=60)
    assert not SaveEvery(seconds=60).is_due(steps=10**9, seconds=59)
    assert not SaveEvery().is_due(steps=10**9, seconds=1e9)
