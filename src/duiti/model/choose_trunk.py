"""Whether the output of the frozen layers is kept from one epoch to the next: tried on the model
itself.

    sft.trunk, what = choose_trunk(sft, rows, batch, folder, config)

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
        probe: rows to try it on (`probe_rows`, collated).
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
    cut = Cut(layers, depth)
    found = _keep(sft, cut, rows, probe, folder, config, free_bytes)
    which = f"the lower {depth} of {len(layers)} layers"
    if isinstance(found, str):
        return None, f"{which} run anew every time: {found}"
    size = f"{found.kept.documents.num_tokens:,} tokens, {_size(found.kept.num_bytes)} on disk"
    return found, f"{which} run once per row, their output is kept during the run ({size})"


def _keep(
    sft: SFTModel,
    cut: Cut,
    rows: Sequence[Sequence[Example]],
    probe: Batch,
    folder: Path,
    config: Config,
    free_bytes: int | None,
) -> Trunk | str:
    """The trunk, or why there is none."""
    assert config.micro_batch_tokens != "auto"
    if not config.cache:
        return "cache is off"
    if not rows:
        return "no row comes twice"
    states = _states_below(sft, cut, probe, training=False)
    if states is None:
        return "they hand on more than a hidden state"
    again = _states_below(sft, cut, probe, training=True)
    if again is None or not _is_near(sft, again, states):
        return "dropout is at work in them"
    width, dtype = states.shape[1], states.dtype
    documents = Documents(rows, group_tokens=config.micro_batch_tokens)
    needed = documents.num_tokens * width * dtype.itemsize
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    # At most half of what is free: the run has weights to save.
    if needed > free // 2:
        return f"their output takes {_size(needed)}, and {_size(free)} are free on the disk"
    try:
        kept = KeptStates(documents, folder, width=width, dtype=dtype)
    except OSError as error:
        return f"{_size(needed)} for their output cannot be had ({error.strerror})"
    trunk = Trunk(cut, kept)
    if not _is_same(sft, trunk, probe):
        return "the layers above need more than their output"
    return trunk


@torch.no_grad()
def _states_below(sft: SFTModel, cut: Cut, probe: Batch, *, training: bool) -> Tensor | None:
    """[T, D] what the layer above the cut gets; None where that is not one hidden state."""
    device = probe.input_ids.device
    # Whether anything is drawn at random is what is tried here: training must not notice.
    unnoticed = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        with _mode(sft, training=training), unnoticed, cut.below() as found:
            sft.hidden_states(probe)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        return None  # a layer was handed something else than the first one
    if not all(states.ndim == 3 and states.shape[0] == 1 for states in found):
        return None
    states = torch.cat(found, dim=1)[0]
    return states if len(states) == probe.num_tokens else None


@torch.no_grad()
def _is_same(sft: SFTModel, trunk: Trunk, probe: Batch) -> bool:
    """Whether the whole network gives the same from kept states as without."""
    assert trunk.kept.documents.find(probe.documents) is not None  # else nothing would be tried
    with _mode(sft, training=False):
        expected = sft.hidden_states(probe)
        sft.trunk = trunk
        try:
            found = sft.hidden_states(probe)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
            return False  # a layer was handed something else than the first one
        finally:
            sft.trunk = None
    return _is_near(sft, found, expected)


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
