"""What `benchmarks/train_speed.py` measures, as data: models, rows, settings of the peer, bars.

SCENARIOS["lora-4-bf16"], PEERS["padding-free"], QUICK
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.speed.flops import Method, Shape

Dtype = Literal["float32", "bfloat16"]
RowKind = Literal["gsm8k", "alpaca-zh", "tiny"]
Quantity = Literal["speed", "roofline", "memory"]

ROWS_PER_UPDATE = 8
RANK, ALPHA = 16, 32
SEED = 0
DEFAULTS = "defaults"
"""The name of the peer's settings as they come."""

QWEN3_06B = Shape(
    hidden=1024, intermediate=3072, layers=28, heads=16, kv_heads=8, head_dim=128, vocab=151_936
)
FOUR_LAYERS = replace(QWEN3_06B, layers=4)
SMALL = Shape(hidden=256, intermediate=768, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What was promised."""

    quantity: Quantity
    limit: float
    """At least this times the peer's speed, or of the roofline; of its memory at most this."""

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.quantity == "memory" else value >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One line of the table."""

    name: str
    title: str
    title_zh: str
    method: Method = "lora"
    dtype: Dtype
    shape: Shape | None
    """None: the embedded model."""
    rows: RowKind = "gsm8k"
    learning_rate: float = 1e-4
    peers: tuple[str, ...]
    """Settings of the peer (`PEERS`) that are tried; the fastest is what duiti is compared with."""
    threads: tuple[int, ...] = (2,)
    """Each side takes what suits it best of these."""
    warmup: int = 1
    """Updates before the clock starts."""
    updates: int = 3
    bars: tuple[Bar, ...] = ()

    @property
    def num_updates(self) -> int:
        return self.warmup + self.updates


_FLAT: dict[str, Any] = {"padding_free": True, "max_length": None}
PEERS: dict[str, dict[str, Any]] = {
    # The settings as they come: activation checkpointing, padded batches, weights in float32 and
    # under bfloat16 an autocast over them.
    DEFAULTS: {},
    # Row by row there is no padding, and no mask; but eight small products for one large.
    "row-by-row": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    # One flat row without padding. Its documentation asks for FlashAttention; with sdpa
    # transformers builds a block mask from the positions, so the result is right here too.
    "padding-free": _FLAT,
    "halves": {**_FLAT, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "padded": {},
    "eager": {**_FLAT, "attention": "eager"},
    # Threads that spin while they wait: faster where nothing else runs, perhaps.
    "spinning": {**_FLAT, "environment": {"OMP_WAIT_POLICY": "ACTIVE"}},
    # Products in bfloat16 because the weights are, without autocast.
    "no-autocast": {**_FLAT, "autocast": False},
}
"""Of the peer, by name: `environment` is that of its process, `attention` and `autocast` are ours
(`benchmarks/speed/peer.py`), the others are fields of `SFTConfig`."""

_TRIED = ("row-by-row", "padding-free", "halves", "padded")
_MORE = (*_TRIED, "eager", "spinning")
_LIST = (
    Scenario(
        name="lora-4-fp32",
        title="LoRA, 4 layers, float32",
        title_zh="LoRA，4 层，float32",
        dtype="float32",
        shape=FOUR_LAYERS,
        peers=_MORE,
        bars=(
            Bar(quantity="speed", limit=5.5),
            Bar(quantity="roofline", limit=0.80),
            Bar(quantity="memory", limit=0.35),
        ),
    ),
    Scenario(
        name="lora-4-bf16",
        title="LoRA, 4 layers, bfloat16",
        title_zh="LoRA，4 层，bfloat16",
        dtype="bfloat16",
        shape=FOUR_LAYERS,
        peers=(*_MORE, "no-autocast"),
        bars=(
            Bar(quantity="speed", limit=10),
            Bar(quantity="roofline", limit=0.75),
            Bar(quantity="memory", limit=0.35),
        ),
    ),
    Scenario(
        name="alpaca-zh",
        title="LoRA, 4 layers, bfloat16, alpaca-zh rows",
        title_zh="LoRA，4 层，bfloat16，alpaca-zh 数据",
        dtype="bfloat16",
        shape=FOUR_LAYERS,
        rows="alpaca-zh",
        peers=_TRIED,
        bars=(Bar(quantity="speed", limit=8),),
    ),
    Scenario(
        name="full-4-fp32",
        title="full, 4 layers, float32",
        title_zh="全参数，4 层，float32",
        method="full",
        dtype="float32",
        shape=FOUR_LAYERS,
        learning_rate=1e-5,
        peers=_TRIED,
        bars=(Bar(quantity="speed", limit=2.5),),
    ),
    Scenario(
        name="full-4-bf16",
        title="full, 4 layers, bfloat16",
        title_zh="全参数，4 层，bfloat16",
        method="full",
        dtype="bfloat16",
        shape=FOUR_LAYERS,
        learning_rate=1e-5,
        peers=_TRIED,
        bars=(Bar(quantity="speed", limit=2.5),),
    ),
    Scenario(
        name="lora-28-bf16",
        title="LoRA, all 28 layers, bfloat16",
        title_zh="LoRA，全部 28 层，bfloat16",
        dtype="bfloat16",
        shape=QWEN3_06B,
        peers=_TRIED[:2],
        updates=2,
        bars=(Bar(quantity="speed", limit=4),),
    ),
    Scenario(
        name="lora-28-fp32",
        title="LoRA, all 28 layers, float32",
        title_zh="LoRA，全部 28 层，float32",
        dtype="float32",
        shape=QWEN3_06B,
        peers=_TRIED[:2],
        updates=2,
        bars=(Bar(quantity="speed", limit=4),),
    ),
    Scenario(
        name="tiny",
        title="LoRA, the embedded model",
        title_zh="LoRA，附带的小模型",
        dtype="float32",
        shape=None,
        rows="tiny",
        learning_rate=4e-3,
        peers=("padding-free", "padded", "spinning"),
        threads=(1, 2),
        warmup=10,
        updates=100,
        bars=(Bar(quantity="speed", limit=5),),
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _LIST}


def quick(scenario: Scenario) -> Scenario:
    """The same on a small model, without trials and without bars: does it still work?"""
    return replace(
        scenario,
        title=scenario.title if scenario.shape is None else "a small model in its place",
        shape=None if scenario.shape is None else SMALL,
        peers=scenario.peers[:1],
        threads=scenario.threads[-1:],
        warmup=1,
        updates=2 if scenario.shape is not None else 20,
        bars=(),
    )


QUICK = ("lora-4-fp32", "lora-4-bf16", "full-4-fp32", "tiny")
