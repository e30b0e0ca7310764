"""What may be used is the least of what machine, control groups and limits leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from duiti.training import available
from duiti.training.available import available_memory, resident_bytes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000 kB\nMemAvailable:    8000000 kB\n"


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def free(root: Path) -> list[int]:
    return [amount for amount, _ in available._free_amounts(root)]


def test_a_machine_says_what_is_available(tmp_path: Path) -> None:
    assert free(files(tmp_path, {"proc/meminfo": MEMINFO})) == [8_000_000 * 1024]


def test_a_system_without_these_files_says_nothing(tmp_path: Path) -> None:
    assert free(tmp_path) == []


@pytest.mark.parametrize("path", ["/", "/job/step"])
def test_version_2_of_control_groups(tmp_path: Path, path: str) -> None:
    group = f"sys/fs/cgroup{path}".rstrip("/")
    root = files(tmp_path, {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": f"0::{path}\n",
        f"{group}/memory.max": "5000\n", f"{group}/memory.current": "3000\n",
        f"{group}/memory.stat": "anon 2000\ninactive_file 700\n",
    })  # fmt: skip
    assert free(root) == [8_000_000 * 1024, 2700]


def test_a_group_without_a_limit_has_that_of_the_one_above(tmp_path: Path) -> None:
    root = files(tmp_path, {
        "proc/self/cgroup": "0::/job/step\n", "proc/meminfo": MEMINFO,
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "10\n",
        "sys/fs/cgroup/job/step/memory.stat": "inactive_file 0\n",
        "sys/fs/cgroup/job/memory.max": "900\n", "sys/fs/cgroup/job/memory.current": "100\n",
        "sys/fs/cgroup/job/memory.stat": "inactive_file 0\n",
    })  # fmt: skip
    assert free(root)[1:] == [800]


def test_version_1_of_control_groups_mounted_as_the_top_one(tmp_path: Path) -> None:
    root = files(tmp_path, {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/123\n", "proc/meminfo": MEMINFO,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 500\ntotal_inactive_file 400\n",
    })  # fmt: skip
    assert free(root)[1:] == [5400]


def test_a_number_beyond_all_memory_is_no_limit(tmp_path: Path) -> None:
    root = files(tmp_path, {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 400\n",
    })  # fmt: skip
    assert free(root) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says it there")
def test_this_machine_has_some_and_this_process_holds_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resident_bytes() > 10_000_000
    room = available_memory(torch.device("cpu"))
    assert room is not None
    assert room.num_bytes > 0
    monkeypatch.setattr(available, "_address_space", lambda: 12345)
    limited = available_memory(torch.device("cpu"))
    assert limited is not None
    assert limited.num_bytes == 12345
