"""Memory that is freed is used again without asking the system. Each case is a process of its own,
for the setting cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, sys
from duiti.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def touch():
    size = 160_000_000  # beyond every threshold of glibc's own
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_touched_again(how: str) -> int:
    command = [sys.executable, "-c", PROBE, how]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_block_takes_the_memory_of_the_one_before() -> None:
    assert pages_touched_again("keep") < pages_touched_again("leave") // 10
