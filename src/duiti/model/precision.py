"""Which dtype the matrix products run in: measured on this machine, not assumed.

dtype, reason = choose_dtype(device="cpu", hidden_size=1024)
"""

from __future__ import annotations

import time
from functools import cache

import torch

from duiti.config import Dtype

SMALL_WIDTH = 512
"""Below it a step is bound by overhead, not by products, and half precision gains nothing."""
MIN_GAIN = 1.5
"""Faster by less, bfloat16 is not worth its rounding; and far from where noise would decide."""


def choose_dtype(*, device: str, hidden_size: int) -> tuple[Dtype, str]:
    """The dtype of matrix products on this device for a model of this width, and why."""
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU multiplies bfloat16 in hardware"
        return "float32", "this GPU has no bfloat16 in hardware"
    if kind != "cpu":
        return "float32", "bfloat16 is not measured on this device"
    if hidden_size < SMALL_WIDTH:
        return "float32", f"layers of width {hidden_size} are too small to gain from bfloat16"
    gain = bf16_gain()
    verdict = f"this CPU multiplies bfloat16 {gain:.1f}x as fast as float32"
    return ("bfloat16" if gain >= MIN_GAIN else "float32"), verdict


@cache
def bf16_gain(size: int = 1024, repeats: int = 5) -> float:
    """How much faster the CPU multiplies [size, size] matrices in bfloat16 (best of `repeats`)."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        a @ b  # the first product sets the kernel up
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]
