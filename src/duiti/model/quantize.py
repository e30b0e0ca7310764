"""A frozen base in four bits: NF4 with double quantisation (QLoRA, Dettmers et al. 2023).

    require_nf4(device)                       # is the extra there, and the device one of its?
    quantize_layers(model, device=device)     # every linear layer but the head, one after the other
    layer.weight_as(torch.bfloat16)           # [out, in], made anew each time that it is needed

A weight becomes one of 16 fixed numbers times the largest absolute value of its block of 64; those
maxima are kept in 8 bits, with one float32 for each 256 of them: 4.127 bits a weight. bitsandbytes
does the arithmetic, by its public functions, on the CPU and on CUDA. The result depends on the
weights that are given and on nothing else; `load_model` gives those of the files.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from duiti.errors import UsageError

BLOCK = 64
"""Weights that share a largest absolute value."""
MIN_SHARE = 0.5
"""Of a model's matrices that must fit: below it, the four bits would be a name only."""
PIECE = 2**20
"""Weights that are quantised at once: on the CPU, it takes 20 bytes for each."""
_OUTER_BLOCK = 256
_TABLE = 256
"""Maxima that share a float32, and the numbers that their 8 bits stand for: bitsandbytes' own."""


def require_nf4(device: str) -> None:
    """Raise unless NF4 can be computed here.

    Raises:
        UsageError: the extra is not installed, or it does not run on that device.
    """
    if torch.device(device).type not in ("cpu", "cuda"):
        raise UsageError(
            f"quantize: nf4 does not run on {device}", fix="--device cpu or --device cuda"
        )
    try:
        with _no_fetching():
            import_module("bitsandbytes.functional")
        _table_of_8_bits()
    except ImportError as error:
        raise UsageError(
            "quantize: nf4 needs bitsandbytes", why=str(error), fix="pip install 'duiti[qlora]'"
        ) from None


class NF4Linear(nn.Module):
    """A linear layer whose frozen weight is kept in NF4. What it computes is a plain linear layer
    with the weight `weight_as(dtype of x)`, bit for bit."""

    bias: nn.Parameter | None
    codes: Tensor
    """[out * in / 2, 1] uint8: two weights a byte, padded to whole blocks."""
    maxima: Tensor
    """[blocks] uint8: the largest absolute value of each block, in 8 bits."""
    statistics: Tensor
    """int32: what the 8 bits mean, [256] numbers, an offset, and a scale for each 256 blocks. They
    are float32; kept as their bits, so that a cast of the model does not round them."""

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None = None, *, is_transposed: bool = False
    ) -> None:
        """
        Args:
            weight: [out, in], on the device where the layer is to live.
            is_transposed: whether the layer that this one replaces stores [in, out] (Conv1D).
        """
        from bitsandbytes.functional import quantize_4bit, quantize_blockwise

        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.is_transposed = is_transposed
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        pieces = [
            # Zeros do not move a block's maximum; whole blocks are what `weight_as` needs.
            quantize_4bit(
                F.pad(piece.to(torch.float32), (0, -piece.numel() % BLOCK)),
                blocksize=BLOCK,
                quant_type="nf4",
            )
            for piece in weight.detach().reshape(-1).split(PIECE)
        ]
        maxima = torch.cat([state.absmax for _, state in pieces])
        offset = maxima.mean()
        table = torch.tensor(_table_of_8_bits(), device=weight.device)
        maxima, outer = quantize_blockwise(maxima - offset, code=table, blocksize=_OUTER_BLOCK)
        assert table.numel() == _TABLE
        numbers = [table, offset.reshape(1), outer.absmax]
        self.register_buffer("codes", torch.cat([codes for codes, _ in pieces]))
        self.register_buffer("maxima", maxima)
        self.register_buffer("statistics", torch.cat(numbers).view(torch.int32))

    @classmethod
    def from_layer(cls, layer: nn.Linear | Conv1D, device: str) -> NF4Linear:
        """The quantised form of a layer, on `device`."""
        weight, bias = layer.weight.to(device), layer.bias
        is_transposed = isinstance(layer, Conv1D)
        if bias is not None:
            bias = nn.Parameter(bias.detach().to(device))
        return cls(weight.T if is_transposed else weight, bias, is_transposed=is_transposed)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the four bits stand for: table entry times maximum in float32,
        rounded to `dtype`."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        table, offset, scales = self.statistics.view(torch.float32).split(
            [_TABLE, 1, self.statistics.numel() - _TABLE - 1]
        )
        outer = QuantState(absmax=scales, code=table, blocksize=_OUTER_BLOCK, dtype=torch.float32)
        state = QuantState(
            absmax=self.maxima,
            # One block a row: for rows that end within a block, bitsandbytes 0.50 takes the maxima
            # of other blocks on the CPU.
            shape=torch.Size((self.maxima.numel(), BLOCK)),
            dtype=dtype,
            blocksize=BLOCK,
            quant_type="nf4",
            offset=offset,
            state2=outer,
        )
        blocks: Tensor = dequantize_4bit(self.codes, state)
        num_weights = self.out_features * self.in_features
        return blocks.view(-1)[:num_weights].view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, where W is made anew for the backward pass: autograd would keep it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.weight_as(x.dtype), bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight_as(grad.dtype), None  # type: ignore[attr-defined]


@cache
def _table_of_8_bits() -> tuple[float, ...]:
    """bitsandbytes' usual one. It would keep the tensor of the first call for all the others, even
    if that call was made on tensors without numbers, as to find out what memory they take."""
    from bitsandbytes.functional import create_dynamic_map

    return tuple(create_dynamic_map().tolist())


def quantize_layers(model: PreTrainedModel, *, device: str) -> list[str]:
    """Replace every linear layer but the head by its quantised form on `device`; their names.

    One after the other, each freed before the next: the model never exists twice.

    Raises:
        UsageError: too little of the model is in linear layers.
    """
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        # A derived class may compute something else: it is left as it is.
        if type(module).forward in (nn.Linear.forward, Conv1D.forward) and module is not head
    ]
    _check_share(model, names)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | Conv1D)
        model.set_submodule(name, NF4Linear.from_layer(layer, device))
    return names


def num_weights(model: nn.Module) -> int:
    """Parameters of the model; a quantised layer counts those that it stands for."""
    quantised = [m for m in model.modules() if isinstance(m, NF4Linear)]
    stored = sum(parameter.numel() for parameter in model.parameters())
    return stored + sum(layer.in_features * layer.out_features for layer in quantised)


def _check_share(model: PreTrainedModel, names: list[str]) -> None:
    """Experts that are stacked in one tensor, for one, are no linear layers."""
    lookups = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    apart = {id(p) for m in (*lookups, model.get_output_embeddings()) for p in m.parameters()}
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in apart)
    fit = sum(model.get_parameter(f"{name}.weight").numel() for name in names)
    if fit < MIN_SHARE * matrices or not fit:
        raise UsageError(
            f"quantize: nf4 fits only {fit / max(matrices, 1):.0%} of the weights of"
            f" {type(model).__name__}",
            why="the others are not in linear layers (experts are often stacked in one tensor)",
            fix="leave --quantize out",
        )


@contextmanager
def _no_fetching() -> Iterator[None]:
    """On import, bitsandbytes takes a faster CPU kernel from the hub if it can, and warns if it
    cannot. It is for a product that is not used here, and the hub is for models that are named."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    before = {name: sys.modules[name] for name in ("kernels",) if name in sys.modules}
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the import system's "not here"
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        sys.modules.update(before)
