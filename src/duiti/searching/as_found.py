"""Short trainings on the model of a run that has not begun, which afterwards is as it was found.

    with as_found(sft, parameters, optimizer) as begin_again:
        ...                         # trains
        begin_again()
        ...                         # trains anew, from the same start

What is trained is copied to the host, for a frozen base does not move: so adapters are their seeded
start again and weights those of the base, bit for bit. Moments of the optimizer are zero again,
gradients are gone; buffers, modes and random streams are put back at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.training.available import available_memory, resident_bytes
from duiti.training.out_of_memory import is_out_of_memory
from duiti.training.random_state import RandomState


@contextmanager
def as_found(
    sft: SFTModel, parameters: Sequence[nn.Parameter], optimizer: torch.optim.AdamW
) -> Iterator[Callable[[], None]]:
    """For as long as the context lasts, `sft` may be trained and begun again.

    Args:
        parameters: what is trained.
        optimizer: of these parameters, as `make_optimizer` makes it: it has moved nothing yet.

    Raises:
        DuitiError: there is no memory for a copy of what is trained.
    """
    moments = [optimizer.state[parameter] for parameter in parameters]
    assert not any(own["step"].item() for own in moments)  # else zero would not be its beginning
    modes = {module: module.training for module in sft.modules()}
    streams = RandomState.now(parameters[0].device)
    others = random.getstate(), np.random.get_state()
    buffers = _buffers(sft)
    start = _copied(parameters)
    rates = [group["lr"] for group in optimizer.param_groups]

    def begin_again() -> None:
        with torch.no_grad():
            for parameter, before in zip(parameters, start, strict=True):
                parameter.copy_(before)
                parameter.grad = None
            for own in moments:
                for tensor in own.values():
                    tensor.zero_()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        _put_back(sft, buffers)

    try:
        yield begin_again
    finally:
        begin_again()
        for module, was_training in modes.items():
            module.training = was_training
        streams.restore()
        random.setstate(others[0])
        np.random.set_state(others[1])


def _copied(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """On the host, whatever memory they lie in."""
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    room = available_memory(torch.device("cpu"))
    if room is not None and num_bytes > room.num_bytes - resident_bytes():
        raise _no_room(num_bytes)
    try:
        return [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise _no_room(num_bytes)


def _no_room(num_bytes: int) -> DuitiError:
    return DuitiError(
        "there is no memory for short trainings before the run",
        why=f"a copy of what is trained takes {num_bytes / 1e9:.1f} GB of the host's memory",
        fix="leave --find-lr and --more-data out; or train less: --method lora",
    )


_Buffers = dict[str, tuple[Tensor, Tensor]]
"""By name: the buffer, and what it held."""


def _buffers(sft: SFTModel) -> _Buffers:
    # Weights in four bits are buffers, too, and large: whole numbers, which nothing writes.
    return {
        name: (buffer, buffer.clone())
        for name, buffer in sft.named_buffers()
        if buffer.is_floating_point()
    }


def _put_back(sft: SFTModel, buffers: _Buffers) -> None:
    for name, (buffer, before) in buffers.items():
        buffer.copy_(before)
        # Some models put a new tensor in the place of a buffer: the old one goes back there.
        owner, _, own = name.rpartition(".")
        sft.get_submodule(owner)._buffers[own] = buffer
