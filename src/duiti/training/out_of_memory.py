"""Memory that runs out: recognised, given back, and answered with smaller micro-batches.

    try:
        ...
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(device)                         # outside of `except`: an error keeps tensors
    budget = smaller_budget(budget, lengths)       # None: there is nothing left to divide
    step_whole(optimizer)                          # a step that is made or not made, never half

What cannot be caught: the kernel of Linux may end a process that has been promised more memory than
there is, without asking it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from duiti.data.batch import micro_batches
from duiti.errors import DuitiError

_MESSAGES = (
    "can't allocate memory",  # PyTorch's allocator on the CPU (Linux, macOS)
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA's driver, Apple's GPUs, oneDNN
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_PROBE = 1024
"""Numbers of a moment that are compared to see whether a step has written it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of the GPU, or of this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def release_memory(device: torch.device) -> None:
    """Free what a failed attempt has left behind. No reference to its error may be left."""
    # A backward pass that failed leaves its queue, and with it the graph, until the next one runs.
    with torch.enable_grad():
        torch.zeros((), requires_grad=True).backward()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def smaller_budget(budget: int, lengths: Sequence[int]) -> int | None:
    """Half of the largest micro-batch of an update, but room for its longest row.

    None where its largest micro-batch is no larger than its longest row: rows are never divided.
    """
    longest = max(lengths)
    parts = micro_batches(range(len(lengths)), lengths, budget=budget)
    largest = max(sum(lengths[row] for row in part) for part in parts)
    return None if largest <= longest else max(longest, largest // 2)


def step_whole(optimizer: torch.optim.AdamW) -> int:
    """Make a step once and whole, wherever memory runs out in it; return how often it did.

    Moments and kernels are there already (`make_optimizer`), so a step asks for next to nothing,
    and this should never be needed. But a step goes from group to group, and what it has written
    cannot be taken back. So if it fails before anything is written, the error is passed on, and the
    caller may roll the update back; if it fails later, the rest is written, from the same
    gradients: the step is the one that an undisturbed run makes, bit for bit.

    Raises:
        MemoryError, RuntimeError: memory ran out and nothing was written.
        DuitiError: memory ran out again while the rest was written.
    """
    marks = [_mark(optimizer, group["params"]) for group in optimizer.param_groups]
    try:
        optimizer.step()
        return 0
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        written = [mark for mark in marks if mark and mark.is_written(optimizer)]
        if not written:
            raise
    for mark in written:
        for parameter in mark.group:
            parameter.grad = None  # a parameter without a gradient is passed over
    release_memory(written[0].last.device)
    try:
        optimizer.step()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _half_made() from None
    return 1


@dataclass(frozen=True, slots=True)
class _Mark:
    """How a group of parameters stood before a step."""

    group: list[Tensor]
    last: Tensor
    """The last parameter of the group that has a gradient, and with it those of its state:"""
    count: Tensor
    version: int
    """Of the count before the step: it grows with every change in place."""
    moment: Tensor
    """Where its second moment begins; a view."""
    before: Tensor
    """The same before the step; a copy."""

    def is_written(self, optimizer: torch.optim.AdamW) -> bool:
        """Whether a step that failed has written this group. It counts first and then writes all
        of the group in one call; a count without the rest is taken back here."""
        if self.count._version == self.version:
            return False
        if not torch.equal(self.moment, self.before):
            return True
        assert self.last.grad is not None  # that is how it was chosen
        if not bool(self.last.grad.flatten()[:_PROBE].any()):
            raise _half_made()  # a gradient of zero leaves no trace: no way to tell
        counts = [optimizer.state[p]["step"] for p in self.group if p.grad is not None]
        torch._foreach_sub_(counts, 1)
        return False


def _mark(optimizer: torch.optim.AdamW, group: list[Tensor]) -> _Mark | None:
    last = next((p for p in reversed(group) if p.grad is not None), None)
    if last is None:
        return None
    state = optimizer.state[last]
    moment = state["exp_avg_sq"].flatten()[:_PROBE]
    return _Mark(group, last, state["step"], state["step"]._version, moment, moment.clone())


def _half_made() -> DuitiError:
    return DuitiError(
        "out of memory while the optimizer was writing its step",
        why="some weights have moved and some have not, so neither this step nor the last can be"
        " saved",
        fix="a lower --micro-batch-tokens or --max-length leaves more room",
    )
