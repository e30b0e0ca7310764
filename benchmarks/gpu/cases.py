"""What `benchmarks.gpu` measures, as data: models, settings of the peers, bars.

CASES["lora-8b"], SETTINGS["liger"], dry(CASES["lora-8b"])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.speed.flops import Method, Shape
from benchmarks.speed.scenarios import QWEN3_06B

Family = Literal["trl", "liger", "unsloth"]
Quantity = Literal["mfu", "speed", "memory"]

QWEN3_8B = Shape(
    hidden=4096, intermediate=12_288, layers=36, heads=32, kv_heads=8, head_dim=128, vocab=151_936
)
"""But for its head, which is tied to the embedding here as in the small model."""
DRY = Shape(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What was promised for an H200."""

    quantity: Quantity
    limit: float

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.quantity == "memory" else value >= self.limit

    def verdict(self, value: float) -> str:
        """`MFU at least 0.50: 0.54, met`."""
        name = {
            "mfu": f"MFU at least {self.limit:.2f}",
            "speed": f"at least {self.limit:g}x the best peer",
            "memory": f"memory at most {self.limit:g}x the best peer's",
        }[self.quantity]
        return f"{name}: {value:.2f}, {'met' if self.is_met(value) else 'missed'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model and one method."""

    name: str
    title: str
    method: Method
    shape: Shape
    bytes_per_weight: int
    """A GPU with less memory than this times the model's weights is not tried."""
    learning_rate: float
    settings: tuple[str, ...]
    """Of the peers (`SETTINGS`) that are tried; of each family the fastest goes on."""
    rows: int = 64
    """Per update: some 12,000 tokens of GSM8K."""
    warmup: int = 3
    """Updates before the clock starts: kernels are chosen and memory is reserved in them."""
    updates: int = 20
    bars: tuple[Bar, ...] = ()

    @property
    def num_updates(self) -> int:
        return self.warmup + self.updates

    @property
    def min_memory_bytes(self) -> int:
        """Of the GPU."""
        matrices = sum(inside * outside for inside, outside in self.shape.linear().values())
        weights = self.shape.layers * matrices + self.shape.vocab * self.shape.hidden
        return self.bytes_per_weight * weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a peer is run."""

    family: Family
    parts: int = 1
    """Micro-batches of an update."""
    attention: str = "sdpa"
    """transformers' name for it; where there is no GPU, always `sdpa`."""
    is_checkpointed: bool = False
    """Activations of layers are computed again in the backward pass."""
    options: tuple[tuple[str, Any], ...] = ()
    """More fields of `SFTConfig`."""


_FLAT = (("padding_free", True), ("max_length", None))
_FLASH = "flash_attention_2"  # from the package flash-attn, or from the hub through `kernels`
SETTINGS = {
    "padded": Setting(family="trl", parts=4),
    "flat": Setting(family="trl", attention=_FLASH, options=_FLAT),
    "flat-4": Setting(family="trl", attention=_FLASH, parts=4, options=_FLAT),
    "flat-checkpointed": Setting(
        family="trl", attention=_FLASH, is_checkpointed=True, options=_FLAT
    ),
    "liger": Setting(
        family="liger", attention=_FLASH, options=(*_FLAT, ("use_liger_kernel", True))
    ),
    "liger-4": Setting(
        family="liger", attention=_FLASH, parts=4, options=(*_FLAT, ("use_liger_kernel", True))
    ),
    "liger-checkpointed": Setting(
        family="liger",
        attention=_FLASH,
        is_checkpointed=True,
        options=(*_FLAT, ("use_liger_kernel", True)),
    ),
    "unsloth": Setting(family="unsloth", parts=4),
    "unsloth-checkpointed": Setting(family="unsloth", is_checkpointed=True),
}
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Of the first update's loss and gradient norm, relative. In bfloat16 a number is off by up to
2^-9, and some ten roundings lie between a weight and its gradient."""

_LIST = (
    Case(
        name="lora-0.6b",
        title="LoRA, Qwen3-0.6B",
        method="lora",
        shape=QWEN3_06B,
        bytes_per_weight=8,
        learning_rate=1e-4,
        settings=tuple(SETTINGS),
        updates=40,
    ),
    Case(
        name="full-0.6b",
        title="full, Qwen3-0.6B",
        method="full",
        shape=QWEN3_06B,
        bytes_per_weight=24,
        learning_rate=1e-5,
        settings=tuple(SETTINGS),
        updates=40,
    ),
    Case(
        name="lora-8b",
        title="LoRA, an 8B shape",
        method="lora",
        shape=QWEN3_8B,
        bytes_per_weight=4,
        learning_rate=1e-4,
        settings=tuple(SETTINGS),
        bars=(
            Bar(quantity="mfu", limit=0.50),
            Bar(quantity="speed", limit=1.3),
            Bar(quantity="memory", limit=0.8),
        ),
    ),
    Case(
        name="full-8b",
        title="full, an 8B shape",
        method="full",
        shape=QWEN3_8B,
        # Weights, gradients and two moments in float32, and autocast's copies of the weights.
        bytes_per_weight=20,
        learning_rate=1e-5,
        settings=tuple(SETTINGS),
    ),
)
CASES = {case.name: case for case in _LIST}


def dry(case: Case) -> Case:
    """The same way on a tiny model, to see that it works. TRL's `flat` once, padded once."""
    return replace(
        case,
        title=f"{case.title}; a tiny model in its place",
        shape=DRY,
        bytes_per_weight=0,
        rows=4,
        warmup=1,
        updates=2,
        settings=("padded", "flat") if case.method == "lora" else ("flat",),
    )


DRY_CASES = ("lora-8b", "full-0.6b")
