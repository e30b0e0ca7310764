"""Where the border lies between plain products and PyTorch's kernel for a document on the CPU.

    python -m benchmarks.attention

Forward and backward of one document, heads as in Qwen3-0.6B (16 of queries, 8 of keys, width 128),
both dtypes, all threads; the best of several. `duiti.model.short_attention.LONGEST` was chosen from
this table.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from duiti.model.document_attention import Variant, by_kernel
from duiti.model.short_attention import LONGEST, short_attention

HEADS, SHARED, WIDTH = 16, 8, 128
LENGTHS = (20, 50, 100, 200, 300, 400, LONGEST)
SCALE = WIDTH**-0.5


def main() -> None:
    """Print a line for each dtype and length."""
    print("dtype     tokens  kernel ms  products ms")
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            query, key, value, grad = (
                torch.randn(1, length, heads, WIDTH, dtype=dtype).transpose(1, 2)
                for heads in (HEADS, SHARED, SHARED, HEADS)
            )
            leaves = [t.requires_grad_() for t in (query, key, value)]
            kernel = seconds(lambda q, k, v: by_kernel(q, k, v, Variant(scale=SCALE)), leaves, grad)
            products = seconds(lambda q, k, v: short_attention(q, k, v, SCALE), leaves, grad)
            name = str(dtype).removeprefix("torch.")
            print(
                f"{name:<9} {length:>6}  {1e3 * kernel:>9.2f}  {1e3 * products:>11.2f}", flush=True
            )


def seconds(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], leaves: list[Tensor], grad: Tensor
) -> float:
    """Of one forward and backward pass, the best of ten."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        torch.autograd.grad(way(*leaves), leaves, grad)
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
