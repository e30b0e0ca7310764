"""How the C library keeps the memory of the CPU's tensors.

keep_freed_memory()          # before training on the CPU
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let what is freed serve what comes next, instead of going back to the system.

    glibc asks the system anew for every large tensor, and its pages are zeroed at the first touch,
    which full fine-tuning notices. Other C libraries are left as they are.

    Returns:
        Whether the C library took the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
