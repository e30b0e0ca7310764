"""What counts as a linear layer, y = x Wᵀ + b, however it keeps its W.

if is_linear(module):
    width_in, width_out = widths(module)
    weight = weight_as(module, torch.bfloat16)      # [out, in], a view where it can be one
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from duiti.model.quantize import NF4Linear

LinearLayer: TypeAlias = nn.Linear | Conv1D | NF4Linear
"""GPT-2's Conv1D is a linear layer that stores its weight as [in, out]."""
LINEAR_KINDS = (nn.Linear, Conv1D, NF4Linear)


def has_own_forward(layer: LinearLayer) -> bool:
    """Whether the layer, of a class derived from a linear one, computes something else."""
    return type(layer).forward not in [kind.forward for kind in LINEAR_KINDS]


def is_transposed(layer: LinearLayer) -> bool:
    """Whether the weight is stored, or was before it was quantised, as [in, out]."""
    return layer.is_transposed if isinstance(layer, NF4Linear) else isinstance(layer, Conv1D)


def widths(layer: LinearLayer) -> tuple[int, int]:
    """Of a row that goes in, and of one that comes out."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    return layer.in_features, layer.out_features


def device_of(layer: LinearLayer) -> torch.device:
    """Where the weight is."""
    return layer.device if isinstance(layer, NF4Linear) else layer.weight.device


def weight_as(layer: LinearLayer, dtype: torch.dtype) -> Tensor:
    """W as [out, in]; of four bits made anew."""
    if isinstance(layer, NF4Linear):
        return layer.weight_as(dtype)
    weight = layer.weight.to(dtype)
    return weight.T if isinstance(layer, Conv1D) else weight
