"""The matrix-product rate of this machine: the roof that a run is measured against.

    python -m benchmarks.speed.matmul_rate bfloat16

Prints FLOPs per second, the best over square products of several sizes around 2048 and over
several tries each, in torch's own product of activations with a weight (`linear`), with the threads
that the environment gives (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import sys
import time

import torch
from torch.nn.functional import linear

SIZES = (1024, 1536, 2048, 3072)
TRIES = 6


def best_rate(dtype: torch.dtype) -> float:
    """FLOPs per second."""
    best = 0.0
    for size in SIZES:
        x, weight = (torch.randn(size, size).to(dtype) for _ in range(2))
        linear(x, weight)  # the first product sets the kernel up
        for _ in range(TRIES):
            started = time.perf_counter()
            linear(x, weight)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    print(best_rate(getattr(torch, sys.argv[1])))
