"""The random streams that training draws from: of the CPU, and of the device.

    seed_streams(device, seed=0, step=200)      # before update 200
    before = RandomState.now(device)
    ...                                         # a measurement
    before.restore()

Every update begins with streams that follow from (seed, step) alone. So dropout is a function of
seed, step and layout: whatever draws between two updates (validation, samples, code of the caller)
changes nothing, an update that begins anew draws the same, and a run that goes on after a stop
needs no stream to be saved.

These are PyTorch's global streams, for that is where `dropout` draws from. They are training's own
while it runs, and afterwards they stand where its last update left them. Those of Python and NumPy
are not touched. Neither function waits for the device: the state of a GPU's generator is kept on
the host.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_streams(device: torch.device, *, seed: int, step: int) -> None:
    """Put the streams where update `step` begins, whatever was drawn before."""
    digest = hashlib.sha256(f"update:{seed}:{step}".encode()).digest()
    # 63 bits, well mixed: the generator of the CPU uses the lowest 32 only.
    number = int.from_bytes(digest[:8], "big") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@dataclass(frozen=True, slots=True)
class RandomState:
    """A moment of the streams, for what must leave no trace in them."""

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
