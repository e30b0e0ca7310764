"""The matrix-product rate of a device: what a run's FLOPs per second are measured against.

    python -m benchmarks.gpu.matmul cuda bfloat16

Prints FLOPs per second of torch's product of activations with a weight (`linear`): for each size
the rate over a second of products one after the other, as training runs them (a rate of bursts
would be higher, for a GPU that is warm clocks down), and of the sizes the best.
"""

from __future__ import annotations

import sys
import time

import torch
from torch.nn.functional import linear

SIZES = {"cuda": (4096, 8192, 12_288), "cpu": (512, 1024)}
SECONDS = {"cuda": 1.0, "cpu": 0.1}


def best_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second."""
    kind = torch.device(device).type
    return max(_rate(device, dtype, size, SECONDS[kind]) for size in SIZES[kind])


def _rate(device: str, dtype: torch.dtype, size: int, seconds: float) -> float:
    x, weight = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):  # the first products set kernels up
        linear(x, weight)
    _wait(device)
    num_products, batch, started = 0, 8, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(batch):
            linear(x, weight)
        num_products += batch
        _wait(device)
    return num_products * 2 * size**3 / (time.perf_counter() - started)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(best_rate(sys.argv[1], getattr(torch, sys.argv[2])))
