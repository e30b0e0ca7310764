"""Where the random streams stand, and back to there: of the CPU, and of the device.

    before = RandomState.now(device)
    ...
    before.restore()

Neither waits for the device: PyTorch keeps the state of a GPU's generator on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """A moment of the random streams that training draws from."""

    device: torch.device
    on_host: Tensor
    on_device: Tensor | None
    """Of the GPU's generator; None on the CPU."""

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The streams as they stand."""
        on_device = None
        if device.type == "cuda":
            on_device = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            on_device = torch.mps.get_rng_state()
        return cls(device, torch.get_rng_state(), on_device)

    def restore(self) -> None:
        """What is drawn next is what was drawn after `now`."""
        torch.set_rng_state(self.on_host)
        if self.on_device is None:
            return
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.on_device, self.device)
        else:
            torch.mps.set_rng_state(self.on_device)
