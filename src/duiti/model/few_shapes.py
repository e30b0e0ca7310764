"""Sizes that come again. For bfloat16 the CPU's library makes code for every new size of a product,
a quarter of a megabyte, and never lets go of it: tokens and documents of ever new lengths would
take gigabytes in a long run. So they are filled up to few sizes, with rows that nothing sees.

    more = missing(len(ids), TOKENS, device, dtype)      # 0 wherever it is not needed
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TOKENS, SUPERVISED, SHORT, LONG = 64, 32, 16, 128
"""What a micro-batch, its trained positions, a short and a long document are filled up to a
multiple of: about a fiftieth more work, half of which is won back, as less code is made."""


def missing(count: int, step: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many to add to make it a multiple of `step`; 0 where sizes do not matter."""
    return -count % step if device.type == "cpu" and dtype == torch.bfloat16 else 0


def filled(rows: Tensor, more: int, dim: int = 0) -> Tensor:
    """The tensor with that many zeros behind."""
    if not more:
        return rows
    return F.pad(rows, (0, 0) * (rows.ndim - 1 - dim % rows.ndim) + (0, more))
