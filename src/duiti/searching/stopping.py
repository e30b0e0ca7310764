"""What is said when a signal comes before the run has begun."""

from __future__ import annotations

from signal import Signals

from duiti.training.log import Talk


def say_abandoning(talk: Talk, by: Signals) -> None:
    """That a signal was heard, and that there is nothing to save."""
    talk.say("stopping", f"{by.name}: after this update; the run has not begun")
