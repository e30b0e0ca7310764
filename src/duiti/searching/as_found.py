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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.training.available import available_memory, resident_bytes
from duiti.training.no_trace import drop_gradients, kept_buffers, without_trace
from duiti.training.out_of_memory import is_out_of_memory


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
    put_back = kept_buffers(sft)
    start = _copied(parameters)
    rates = [group["lr"] for group in optimizer.param_groups]

    def begin_again() -> None:
        drop_gradients(parameters)
        with torch.no_grad():
            for parameter, before in zip(parameters, start, strict=True):
                parameter.copy_(before)
            for own in moments:
                for tensor in own.values():
                    tensor.zero_()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        put_back()

    with without_trace(sft, parameters):
        try:
            yield begin_again
        finally:
            begin_again()


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
