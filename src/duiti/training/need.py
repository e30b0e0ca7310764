"""The peak of a run, put together from what its tensors take and what is there beside them.

    need = expected(tensors, Circumstances(...))
    need.peak_bytes, need.describe()

On a GPU the peak is that of tensors, as `torch.cuda.max_memory_allocated` counts it; on the CPU it
is that of the process (`ru_maxrss`). The constants below are rough; `benchmarks/memory.py` measures
how far off the whole is with them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from duiti.training.shapes import TensorBytes

HEAP_SHARE = 1.4
"""Bytes of the C library's heap for a byte of activations: blocks of many sizes come and go, and
the gaps that they leave seldom fit the next one."""
LATER_BYTES = 40_000_000
"""Code of PyTorch that is read from disk when it is first used, and Python's objects."""
KERNEL_BYTES = 550_000
"""Of a matrix product in half precision on the CPU: its code is made anew for every shape."""
KERNELS_A_STEP = 64
"""New shapes of products in an update, about."""
USUAL_KERNELS = 1024
"""That are kept, where ONEDNN_PRIMITIVE_CACHE_CAPACITY does not say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What else there is in a run's memory."""

    is_cpu: bool
    is_half: bool
    """Whether matrix products are bfloat16."""
    num_steps: int
    process_bytes: int
    """What the process holds before the model is loaded."""
    loading_bytes: int
    """Files of weights that are read in another dtype, beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run takes, in bytes."""

    process_bytes: int
    """The program itself, with the data it has prepared; 0 on a GPU."""
    weights_bytes: int
    trained_bytes: int
    """Gradients and the optimizer's moments."""
    activations_bytes: int
    elsewhere_bytes: int
    """The most outside of training: while weights are read."""
    num_tokens: int
    """Of the heaviest micro-batch."""

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        training = self.weights_bytes + self.trained_bytes + self.activations_bytes
        return max(self.process_bytes + training, self.elsewhere_bytes)

    def describe(self) -> str:
        """`2.1 GB at the peak: 0.9 weights, 0.1 trained and optimizer, 0.8 activations …`."""
        is_large = self.peak_bytes >= 1e9

        def shown(count: int) -> str:
            return f"{count / 1e9:.1f}" if is_large else f"{count / 1e6:.0f}"

        parts = [
            f"{shown(self.weights_bytes)} weights",
            f"{shown(self.trained_bytes)} trained and optimizer",
            f"{shown(self.activations_bytes)} activations of {self.num_tokens:,} tokens",
        ]
        if self.process_bytes:
            parts.append(f"{shown(self.process_bytes)} the program itself")
        peak = f"{shown(self.peak_bytes)} {'GB' if is_large else 'MB'} at the peak"
        if self.peak_bytes == self.elsewhere_bytes:
            peak += ", while weights are read; in training"
        return f"{peak}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, int]:
        """The machine-readable form."""
        return {"peak_bytes": self.peak_bytes, **asdict(self)}


def expected(tensors: TensorBytes, num_tokens: int, around: Circumstances) -> Need:
    """What a run with these tensors will take."""
    process = activations = 0
    if around.is_cpu:
        kernels = min(_kernels_kept(), KERNELS_A_STEP * around.num_steps) if around.is_half else 0
        process = around.process_bytes + LATER_BYTES + KERNEL_BYTES * kernels
        activations = int(HEAP_SHARE * tensors.activations_bytes)
    else:
        activations = tensors.activations_bytes
    return Need(
        process_bytes=process,
        weights_bytes=tensors.weights_bytes,
        trained_bytes=tensors.trained_bytes,
        activations_bytes=activations,
        elsewhere_bytes=process + tensors.weights_bytes + around.loading_bytes,
        num_tokens=num_tokens,
    )


def _kernels_kept() -> int:
    stated = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    return int(stated) if stated.isdigit() else USUAL_KERNELS
