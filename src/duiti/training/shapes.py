"""What a micro-batch will need, from shapes: the model runs once on tensors without memory.

    shapes = ShapeModel(source, model_config, config)     # no weights are read
    need = shapes.need(MicroBatch(lengths=(2048,), supervised=(900,)), is_first=True)
    need.weights_bytes, need.activations_bytes

PyTorch's fake tensors have sizes and no contents. The real model, the real freezing and the real
loss run forward and backward on them, and every storage is counted from the operation that makes it
to the moment it is dropped. So this is no formula that could miss something: it is the program,
without its arithmetic.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedModel

from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import DuitiError
from duiti.model.checkpointing import can_checkpoint, checkpoint_activations
from duiti.model.freeze import choose_trained
from duiti.model.load import ModelSource
from duiti.model.quantize import num_weights, quantize_layers, require_nf4
from duiti.model.sft_model import SFTModel
from duiti.types import IGNORE_INDEX, Batch, Example, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class CannotTell(Exception):
    """Why an architecture does not run without contents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What goes through the model at once, as far as memory is concerned."""

    lengths: tuple[int, ...]
    """Tokens of each document."""
    supervised: tuple[int, ...]
    """Trained tokens of each document."""

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBytes:
    """What tensors take at the worst moment of an update, by what they are for."""

    weights_bytes: int
    """Parameters and buffers."""
    trained_bytes: int
    """Gradients of what is trained, and two moments; all float32."""
    activations_bytes: int
    """The rest: what is kept for the backward pass, and the work of the moment."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.trained_bytes + self.activations_bytes


class ShapeModel:
    """A model without weights, frozen and opened as for training."""

    def __init__(
        self,
        source: ModelSource,
        model_config: PreTrainedConfig,
        config: Config,
        *,
        is_checkpointed: bool = False,
    ) -> None:
        """
        Args:
            config: settled.
            is_checkpointed: activations are computed again in the backward pass.

        Raises:
            CannotTell: the architecture needs contents.
            UsageError: it is to be quantised, and that cannot be done here.
        """
        if config.quantize == "nf4":
            require_nf4(config.device)  # within the mode, importing what it needs would fail
        self._device = config.device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        dtype = getattr(torch, config.dtype)
        # Active while the model is built, and only then: what a forward pass makes of numbers
        # alone, such as a list of borders, is computed for real.
        with _as_a_reason(), self._mode:
            model = _without_weights(source, model_config, config, dtype)
            self._trained = list(choose_trained(model, config).parameters.values())
            self._sft = SFTModel(model, compute_dtype=dtype)
            if is_checkpointed:
                checkpoint_activations(self._sft)
            self._sft.train()

    @property
    def num_weights(self) -> int:
        """Of the whole model, whatever they are kept in."""
        return num_weights(self._sft.model)

    @property
    def can_checkpoint(self) -> bool:
        """Whether activations can be computed again in the backward pass."""
        return can_checkpoint(self._sft)

    def need(self, batch: MicroBatch, *, is_first: bool) -> TensorBytes:
        """Forward and backward of one micro-batch.

        Args:
            is_first: whether an update has no micro-batch before it, whose gradients would be there
                already.

        Raises:
            CannotTell: the architecture needs contents.
        """
        weights = [*self._sft.parameters(), *self._sft.buffers()]
        live = LiveBytes()
        live.leave_out(weights)
        with _as_a_reason():
            made = _faked(collate(list(_examples(batch)), self._device), self._mode)
            with live:
                for parameter in self._trained:
                    parameter.grad = None if is_first else torch.empty_like(parameter)
                loss, _ = self._sft(made)
                loss.backward()
                del loss
        gradient_bytes = sum(4 * parameter.numel() for parameter in self._trained)
        return TensorBytes(
            weights_bytes=_storage_bytes(weights),
            trained_bytes=3 * gradient_bytes,
            activations_bytes=max(0, live.peak_bytes - gradient_bytes),
        )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active.

    Works on tensors of every kind; what exists before is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these."""
        for tensor in tensors:
            self._notice(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            # The factor behind the loss, as a rule.
            return 1.0 if args[0].is_floating_point() else 1
        # What is given and not known yet was there before: a mask that is kept for all calls, say.
        self.leave_out(part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor))
        result = func(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                self._notice(storage, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        return result

    def _notice(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.now_bytes -= num_bytes

        self._known[key] = weakref.ref(storage, gone)
        self.now_bytes += num_bytes


def _without_weights(
    source: ModelSource, model_config: PreTrainedConfig, config: Config, dtype: torch.dtype
) -> PreTrainedModel:
    model: Any
    with torch.device(config.device):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(model_config), dtype=dtype, trust_remote_code=source.trust_remote_code
        )
    if config.quantize == "nf4":
        quantize_layers(model, device=config.device)
    loaded: PreTrainedModel = model
    return loaded


def _examples(batch: MicroBatch) -> Iterator[Example]:
    """Examples of these lengths; what they say does not matter."""
    for length, supervised in zip(batch.lengths, batch.supervised, strict=True):
        labels = np.full(length, IGNORE_INDEX, np.int32)
        labels[length - supervised :] = 0
        yield Example(input_ids=np.zeros(length, np.int32), labels=labels, origin=Origin("", 1))


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them, each storage once: a head may be tied to an embedding."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@contextmanager
def _as_a_reason() -> Iterator[None]:
    """Somebody else's code meets tensors that it was not written for: what it then says is the
    reason why nothing can be told, and never the end of the program."""
    try:
        yield
    except DuitiError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise CannotTell(f"{type(error).__name__}: {first}"[:160]) from None


def _faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    """The same, its tensors without contents."""
    return replace(
        batch,
        input_ids=mode.from_tensor(batch.input_ids),
        position_ids=mode.from_tensor(batch.position_ids),
        supervised=mode.from_tensor(batch.supervised),
        targets=mode.from_tensor(batch.targets),
    )


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor)
