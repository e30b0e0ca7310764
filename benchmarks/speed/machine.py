"""The machine that a benchmark ran on, and how much of it others took meanwhile.

    facts = machine()
    began = stamp(); …; share = others_since(began)

Times of a machine that is busy with other things say little. So the share of its processors that
went to other processes stands beside the times.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Columns of its first line that are no work: idle, and waiting for a disk."""
_COUNTED = 8
"""Columns before those of guests, which are in the first two already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Processor time at a moment."""

    at_s: float
    machine_s: float
    """Of all processes, on all cores, since the machine started."""
    own_s: float
    """Of this process and its children that have ended."""


def machine() -> dict[str, object]:
    """Processor, cores, system."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def stamp() -> Stamp | None:
    """Now; None where the system does not tell."""
    try:
        line = _STAT.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    ticks = [int(field) for field in line.split()[1 : 1 + _COUNTED]]
    busy = sum(count for column, count in enumerate(ticks) if column not in _IDLE)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Stamp(
        at_s=time.monotonic(),
        machine_s=busy / os.sysconf("SC_CLK_TCK"),
        own_s=sum(usage.ru_utime + usage.ru_stime for usage in usages),
    )


def others_since(began: Stamp | None) -> float | None:
    """The share of the machine's processors that other processes took since then."""
    now = stamp()
    if began is None or now is None:
        return None
    others = (now.machine_s - began.machine_s) - (now.own_s - began.own_s)
    available = (now.at_s - began.at_s) * (os.cpu_count() or 1)
    return max(0.0, others / available)


def processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
