"""Whether the output of the frozen layers is kept from one epoch to the next: tried on the model
itself.

    sft.trunk, what = choose_trunk(sft, rows, probe, folder, config)

It is kept where layers below the first trained one are frozen, rows go through them more than once,
their output is always the same (no dropout), it is all that the layers above get of them, and the
disk has room for it. Otherwise `what` says what is in the way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from duiti.config import Config
from duiti.errors import UsageError
from duiti.model.freeze import transformer_layers
from duiti.model.kept_states import Documents, KeptStates
from duiti.model.sft_model import SFTModel
from duiti.model.trunk import Cut, Trunk, frozen_depth
from duiti.types import Batch, Example


def choose_trunk(
    sft: SFTModel,
    rows: Sequence[Sequence[Example]],
    probe: Batch,
    folder: Path,
    config: Config,
    *,
    free_bytes: int | None = None,
) -> tuple[Trunk | None, str]:
    """The trunk to use, if any, and a line about it: empty where no layers are frozen.

    Args:
        sft: a model whose trained parameters are open, and no others.
        rows: what goes through it more than once, in the order of the first time.
        probe: some of them to try it on (`probe_rows`, collated).
        folder: where the states are kept; nothing is left there.
        config: settled.
        free_bytes: of that folder's disk; it is asked by default.
    """
    try:
        depth = frozen_depth(sft.model)
    except UsageError as error:
        return None, f"output of frozen layers is not kept: {error.what}"
    if depth == 0:
        return None, ""
    layers = transformer_layers(sft.model)
    which = f"the lower {depth} of {len(layers)} layers"
    try:
        _hold_wishes(rows, config)
        cut = Cut(layers, depth)
        states = _steady_states(sft, cut, probe)
        kept = _make_room(rows, states, folder, config, free_bytes)
        trunk = Trunk(cut, kept)
        _hold_same(sft, trunk, probe)
    except _NotKept as reason:
        return None, f"{which} run anew every time: {reason}"
    size = f"{kept.documents.num_tokens:,} tokens, {_size(kept.num_bytes)} on disk"
    return trunk, f"{which} run once per row, their output is kept during the run ({size})"


class _NotKept(Exception):
    """Why the output of the frozen layers is not kept."""


def _hold_wishes(rows: Sequence[Sequence[Example]], config: Config) -> None:
    if not config.cache:
        raise _NotKept("cache is off")
    if not rows:
        raise _NotKept("no row comes twice")


@torch.no_grad()
def _steady_states(sft: SFTModel, cut: Cut, probe: Batch) -> Tensor:
    """[T, D] what the layer above the cut gets, the same in training as without dropout."""
    device = probe.input_ids.device
    found = []
    for training in (False, True):
        # Whether anything is drawn at random is what is tried here: training must not notice.
        unnoticed = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with _mode(sft, training=training), unnoticed, _apart(), cut.below() as parts:
            sft.hidden_states(probe)
        if not all(part.ndim == 3 and part.shape[0] == 1 for part in parts):
            raise _NotKept("they hand on more than a hidden state")
        # Tokens that the batch was filled up with are behind the documents.
        found.append(torch.cat(parts, dim=1)[0, : probe.num_tokens])
    if len(found[0]) != probe.num_tokens:
        raise _NotKept("they hand on more than a hidden state")
    if not _is_near(sft, found[1], found[0]):
        raise _NotKept("dropout is at work in them")
    return found[0]


def _make_room(
    rows: Sequence[Sequence[Example]],
    states: Tensor,
    folder: Path,
    config: Config,
    free_bytes: int | None,
) -> KeptStates:
    """A place on the disk for the output of all rows; `states`: that of some."""
    assert config.micro_batch_tokens != "auto"
    documents = Documents(rows, group_tokens=config.micro_batch_tokens)
    width, dtype = states.shape[1], states.dtype
    needed = documents.num_tokens * width * dtype.itemsize
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    # At most half of what is free: the run has weights to save.
    if needed > free // 2:
        raise _NotKept(f"their output takes {_size(needed)}, and the disk has {_size(free)} free")
    try:
        return KeptStates(documents, folder, width=width, dtype=dtype)
    except OSError as error:
        raise _NotKept(f"the disk has no {_size(needed)} for them ({error.strerror})") from None


@torch.no_grad()
def _hold_same(sft: SFTModel, trunk: Trunk, probe: Batch) -> None:
    """The whole network must give the same from kept states as without."""
    assert trunk.kept.documents.find(probe.documents) is not None  # else nothing would be tried
    with _mode(sft, training=False):
        expected = sft.hidden_states(probe)
        sft.trunk = trunk
        try:
            with _apart():
                found = sft.hidden_states(probe)
        finally:
            sft.trunk = None
    if not _is_near(sft, found, expected):
        raise _NotKept("the layers above need more than their output")


@contextmanager
def _apart() -> Iterator[None]:
    """Layers that are handed something else than the first one was fail in ways of their own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise _NotKept(f"they and the layers above do not run apart ({what})") from None


@contextmanager
def _mode(sft: SFTModel, *, training: bool) -> Iterator[None]:
    before = sft.training
    sft.train(training)
    try:
        yield
    finally:
        sft.train(before)


def _is_near(sft: SFTModel, found: Tensor, expected: Tensor) -> bool:
    """As close as the same sums in another order are."""
    dtypes = (sft.compute_dtype, next(sft.model.parameters()).dtype)
    tolerance = 1e-4 if dtypes == (torch.float32, torch.float32) else 3e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
