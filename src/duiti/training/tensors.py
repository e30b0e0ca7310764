"""The tensors that training moves, as two files: parameters, and the moments of AdamW.

    tensors = snapshot(trained.parameters, optimizer)        # copies; training may go on
    save_tensors(folder, tensors)                            # may run in another thread
    steps = check_tensors(folder, trained.parameters, optimizer)
    put_tensors(folder, trained.parameters, optimizer)       # into a model made anew

`trained.safetensors` by parameter, `optimizer.safetensors` by parameter and moment
(`name.exp_avg`), all float32, so that nothing is rounded on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from duiti.errors import DuitiError, shown_name

TRAINED_FILE = "trained.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of a parameter; the last is how often it was moved."""
_ENTRY_BYTES = 192
"""What a tensor takes in the head of its file beside its name, at most."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of all tensors of a moment, on the host."""

    trained: dict[str, Tensor]
    """By parameter."""
    optimizer: dict[str, Tensor]
    """By parameter and moment."""

    @property
    def num_bytes(self) -> int:
        tensors = (*self.trained.values(), *self.optimizer.values())
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def optimizer_steps(self) -> int:
        """How often AdamW has moved the parameter that it moved most often."""
        counts = [t.item() for name, t in self.optimizer.items() if _moment(name) == "step"]
        return int(max(counts))

    def fault(self) -> str:
        """What must not be saved, by name, or an empty string."""
        for name, tensor in self.trained.items():
            if fault := _fault(tensor):
                return f"{name} {fault}"
        for name, tensor in self.optimizer.items():
            if fault := _fault(tensor, _moment(name)):
                return f"{name} {fault}"
        return ""


def snapshot(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW, *, copy: bool = True
) -> Snapshot:
    """Copies that do not change when training goes on; `snapshot_bytes` tells how large.

    Args:
        trained: by full name, as `choose_trained(…).parameters`.
        optimizer: as `make_optimizer` makes it, of the same parameters.
        copy: False: what is on the host already is not copied, and training must wait until the
            snapshot is written.
    """
    return Snapshot(
        {name: _on_host(parameter, copy) for name, parameter in trained.items()},
        {name: _on_host(tensor, copy) for name, tensor in _moments(trained, optimizer).items()},
    )


def snapshot_bytes(trained: Mapping[str, nn.Parameter]) -> int:
    """Memory of the host that a snapshot takes, for as long as it is kept."""
    return sum(12 * parameter.numel() + 4 for parameter in trained.values())


def file_bytes(trained: Mapping[str, nn.Parameter]) -> int:
    """What the two files take, at most."""
    heads = sum(4 * (len(name.encode()) + _ENTRY_BYTES) for name in trained)
    return snapshot_bytes(trained) + heads


def save_tensors(folder: Path, tensors: Snapshot) -> None:
    """Write the two files.

    Raises:
        OSError, SafetensorError: one cannot be written.
    """
    for name, content in (
        (TRAINED_FILE, tensors.trained),
        (OPTIMIZER_FILE, tensors.optimizer),
    ):
        save_file(content, folder / name, metadata={"format": "pt"})


def check_tensors(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> int:
    """Whether the files hold exactly the tensors of this run; how often AdamW has stepped in them.

    Raises:
        DuitiError: with the first difference.
    """
    path = folder / OPTIMIZER_FILE
    if not path.is_file():
        raise refused(path, "it is missing, and a run never goes on with a fresh optimizer")
    _check(folder / TRAINED_FILE, trained, are_moments=False)
    return _check(path, _moments(trained, optimizer), are_moments=True)


def put_tensors(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    """Into the tensors that are there, so that whatever refers to them goes on to.

    Raises:
        DuitiError: a file cannot be read; `check_tensors` says so beforehand.
    """
    for name, into in (
        (TRAINED_FILE, trained),
        (OPTIMIZER_FILE, _moments(trained, optimizer)),
    ):
        try:
            with safe_open(folder / name, framework="pt", device="cpu") as file, torch.no_grad():
                for key, tensor in into.items():
                    tensor.copy_(file.get_tensor(key))
        except (OSError, SafetensorError) as error:
            raise refused(folder / name, str(error)) from None


def refused(path: Path, why: str) -> DuitiError:
    """A file of a checkpoint with which this run cannot go on."""
    return DuitiError(
        f"{path}: not the state of this run",
        why=why,
        fix="--resume goes on from the newest checkpoint that is whole",
    )


def _moments(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in trained.items()
        for moment in MOMENTS
    }


def _moment(name: str) -> str:
    return name.rpartition(".")[2]


def _on_host(tensor: Tensor, copy: bool) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=copy).contiguous()


def _fault(tensor: Tensor, moment: str = "") -> str:
    """What is wrong with numbers, or an empty string. Makes no copy of them."""
    if tensor.numel() == 0:
        return ""
    least, most = (value.item() for value in torch.aminmax(tensor))  # NaN if there is one
    if not (math.isfinite(least) and math.isfinite(most)):
        return "holds numbers that are not finite"
    if moment == "exp_avg_sq" and least < 0:
        return "holds squares below zero"
    if moment == "step" and (least < 0 or least != int(least)):
        return f"counts {least} steps"
    return ""


def _check(path: Path, expected: Mapping[str, Tensor], *, are_moments: bool) -> int:
    """The largest step count among exactly these tensors, or 0."""
    steps = 0
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = set(file.keys())
            for name in sorted(expected.keys() - found):
                raise refused(path, f"{name} is missing")
            for name in sorted(found - expected.keys()):
                raise refused(path, f"{shown_name(name)} does not belong there")
            for name, tensor in expected.items():
                moment = _moment(name) if are_moments else ""
                described = file.get_slice(name)
                shape, dtype = described.get_shape(), described.get_dtype()
                if (shape, dtype) != (list(tensor.shape), "F32"):
                    wanted = f"{list(tensor.shape)} of F32"
                    raise refused(path, f"{name} is {shape} of {dtype} and not {wanted}")
                stored = file.get_tensor(name)
                if fault := _fault(stored, moment):
                    raise refused(path, f"{name} {fault}")
                if moment == "step":
                    steps = max(steps, int(stored.item()))
    except FileNotFoundError:
        raise refused(path, "it is missing") from None
    except (OSError, SafetensorError) as error:
        raise refused(path, str(error)) from None
    return steps
