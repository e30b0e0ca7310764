"""`10m`, `200`, `never`, `1h30m`: what people write, and when a checkpoint is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.quantities import SaveEvery, seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h1m1s", 3661),
        ("1.5h", 5400), (" 10M ", 600), ("0h5m", 300), ("999999999s", 999_999_999),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds
    assert SaveEvery.parse(text) == SaveEvery(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "30", "m", "0m", "-5m", "5 m", "30m1h", "1h30", "5min", "1d", "inf", "nan", "1e3s",
     "9" * 5000 + "s", "١٠m", "10m\n10m"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ValueError, match="must read like 90s, 30m, 2h or 1h30m"):
        seconds_in(text)


def test_save_every_takes_updates_time_or_never() -> None:
    assert SaveEvery.parse("200") == SaveEvery(steps=200)
    assert SaveEvery.parse("10m") == SaveEvery(seconds=600)
    assert SaveEvery.parse(" Never ") == SaveEvery()


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "often", "auto", "0s", "9" * 5000, "2 00"])
def test_what_is_no_pace_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"must read like 10m, .* 200 \(updates\), or never"):
        SaveEvery.parse(text)


@given(every=st.integers(1, 50), total=st.integers(1, 200), stops=st.sets(st.integers(1, 200)))
def test_checkpoints_by_updates_are_the_multiples_wherever_a_run_was_stopped(
    every: int, total: int, stops: set[int]
) -> None:
    pace = SaveEvery(steps=every)
    last = 0
    due = set()
    for step in range(1, total + 1):
        if pace.is_due(step, 0.0, last, 0.0):
            due.add(step)
            last = step
        elif step in stops:  # a signal: it is saved here too, out of turn
            last = step
    assert due == set(range(every, total + 1, every))


def test_checkpoints_by_time_count_from_the_last_one() -> None:
    pace = SaveEvery(seconds=60)
    assert not pace.is_due(1, 159.9, 0, 100.0)
    assert pace.is_due(1, 160.0, 0, 100.0)
    assert not pace.is_due(2, 161.0, 1, 160.0)


def test_nothing_is_saved_twice_and_never_is_never() -> None:
    assert not SaveEvery(seconds=60).is_due(5, 1e9, 5, 0.0)
    assert not SaveEvery(steps=5).is_due(5, 0.0, 5, 0.0)
    assert not SaveEvery().is_due(10**6, 1e9, 0, 0.0)
