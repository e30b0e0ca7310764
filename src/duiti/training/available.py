"""How much memory a run may use: what the machine, its containers and its limits leave.

    room = available_memory(torch.device("cpu"))
    room.num_bytes, room.reason              # 21.4e9, "free on this machine"

On the CPU the amount is for the whole process, what it holds already included: it can be compared
with a process's peak. On a GPU it is for tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

CPU_SHARE = 0.95
GPU_SHARE = 0.93
"""Of what is free: a prediction errs by a few percent, and PyTorch's allocator for GPUs loses some
memory between blocks."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that may be used."""

    num_bytes: int
    reason: str
    """Where the number comes from, as the end of a sentence."""


def available_memory(device: torch.device) -> Room | None:
    """What a run on this device may use by now; None: there is no way to tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        usable = int(GPU_SHARE * (free + torch.cuda.memory_reserved(device)))
        return Room(usable, "free on the GPU")
    if device.type != "cpu":
        return None
    held = resident_bytes()
    rooms = [Room(int(CPU_SHARE * (free + held)), why) for free, why in _free_amounts(Path("/"))]
    limit = _address_space()
    if limit is not None:
        rooms.append(Room(limit, "this process's limit of address space"))
    return min(rooms, key=lambda room: room.num_bytes, default=None)


def resident_bytes() -> int:
    """Memory that this process holds by now; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(kib) * 1024 for name, kib in _fields(status) if name == "VmRSS"), 0)


def _free_amounts(root: Path) -> Iterator[tuple[int, str]]:
    """(bytes, whose) of each limit that Linux has; `root` is where its files hang."""
    try:
        meminfo = (root / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return
    for name, kib in _fields(meminfo):
        if name == "MemAvailable":
            yield int(kib) * 1024, "free on this machine"
    yield from ((free, "free in this container") for free in _free_in_groups(root))


def _free_in_groups(root: Path) -> Iterator[int]:
    """Of each control group that this process is in, up to the top one that has a limit.

    A group's use counts cached files too; those are given back when memory is short, so inactive
    ones count as free.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container its own group is often mounted as the top one.
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            free = _free_in(group, *names)
            if free is not None:
                yield free
            if group == top:
                break


def _free_in(group: Path, limit_file: str, use_file: str, cached_key: str) -> int | None:
    try:
        limit = (group / limit_file).read_text(encoding="utf-8").strip()
        used = int((group / use_file).read_text(encoding="utf-8"))
        stat = (group / "memory.stat").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    # "max", or a number beyond all memory, says that there is none.
    if not limit.isdigit() or int(limit) >= 2**60:
        return None
    counts = dict(line.split() for line in stat.splitlines())
    return max(0, int(limit) - used + int(counts.get(cached_key, 0)))


def _address_space() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """`Name:  123 kB` lines as (name, number)."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            yield name, words[0]
