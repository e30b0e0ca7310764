"""The numbers of an update are those of plain arithmetic, on every kind of architecture, in every
layout.

The reference never meets our code: plain transformers (for adapters PEFT), every row alone, dense
logits, `cross_entropy`, once in float64 (the truth) and once in float32 (what rounding costs).

Tolerance: float32 rounds each result to 2^-24 of itself, and a gradient is what thousands of such
roundings leave, some of them grown by cancellation. How far that goes depends on the architecture
and is measured, not guessed: it is the distance of the float32 reference from the truth, about
1e-6. Ours sums the same terms in another order, so its distance is another draw of the same size;
it may be SPREAD times as long, and never more. A document that sees its neighbour, a wrong window,
a dropped bias or a scale that is off by a hundredth stand at 1e-2 and above.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from made_models import VOCAB, document, documents, make, plain_loss
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiti.config import Config, LoraConfig
from duiti.data.batch import collate
from duiti.model.adapter import save_adapter
from duiti.model.freeze import choose_trained
from duiti.model.lora import add_lora, find_targets, lora_layers
from duiti.model.sft_model import SFTModel, probe_rows, why_alone

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

SPREAD = 2.0
LAYOUTS = {
    "1x8": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "2x4": [[5, 2, 7, 0], [1, 3, 6, 4]],
    "8x1": [[0], [1], [2], [3], [4], [5], [6], [7]],
}
LENGTHS = (24, 5, 13, 30, 9, 17, 2, 21)
# Architectures whose documents can be told apart in one run, and two that need a run for each.
PACKED = [
    "llama", "qwen2-biased", "qwen2-sliding", "qwen3-tied", "gemma", "gemma2-capped",
    "gemma3-sliding", "mistral-sliding", "phi3-fused", "gpt2", "gpt-oss-sinks", "granite",
    "cohere", "olmo2", "mixtral", "qwen3-moe",
]  # fmt: skip
ONE_BY_ONE = ["mamba", "qwen2-moe-sliding"]
EXPERTS = ["mixtral", "qwen3-moe", "gpt-oss-sinks"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SHARED = ["gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(rank=3, alpha=4.5)


@dataclass(frozen=True)
class Numbers:
    """Of eight rows: the sum of their losses, and its gradient by parameter, in float64."""

    loss: float
    grads: dict[str, Tensor]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Of two gradients, relative to the second."""
    assert one.keys() == two.keys()
    between = torch.stack([(one[name] - grad).norm() for name, grad in two.items()]).norm()
    return float(between / torch.stack([grad.norm() for grad in two.values()]).norm())


def farthest(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The same for the worst single tensor. One whose gradient is zero but for rounding (that of a
    key's bias is: softmax does not see it) is measured by the size of the others."""
    whole = torch.stack([grad.norm() for grad in two.values()]).norm()
    return max(
        float((one[name] - grad).norm() / max(grad.norm(), 1e-3 * whole))
        for name, grad in two.items()
    )


def plain_numbers(model: nn.Module, dtype: torch.dtype) -> Numbers:
    own = copy.deepcopy(model).to(dtype)
    loss = sum(plain_loss(own, row) for row in documents(LENGTHS))
    loss.backward()
    return Numbers(loss.item(), gradients(own))


def our_numbers(model: PreTrainedModel, layout: str) -> Numbers:
    rows = documents(LENGTHS)
    sft = SFTModel(model, is_packed=why_alone(model, collate(probe_rows(model, rows))) is None)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for part in LAYOUTS[layout]:
        loss, _ = sft(collate([rows[index] for index in part]))
        loss.backward()
        total += loss.item()
    return Numbers(total, gradients(model))


def assert_same(found: Numbers, low: Numbers, exact: Numbers) -> None:
    # A loss is a sum of order 1e3 whose terms are rounded to 2^-24: twenty of them at most.
    assert found.loss == pytest.approx(exact.loss, rel=20 * 2**-24)
    for measure in (distance, farthest):
        bound = SPREAD * measure(low.grads, exact.grads)
        assert bound < 2e-5  # or it would allow anything
        assert measure(found.grads, exact.grads) <= bound, measure.__name__


# Full fine-tuning


def eager(model: nn.Module) -> nn.Module:
    """With experts one by one: another path than the grouped products, and one that knows
    float64."""
    model = copy.deepcopy(model)
    if any("Experts" in type(module).__name__ for module in model.modules()):
        model.set_experts_implementation("eager")
    return model


@cache
def full(name: str) -> tuple[Numbers, Numbers]:
    model = eager(make(name))
    return plain_numbers(model, torch.float32), plain_numbers(model, torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*PACKED, *ONE_BY_ONE])
def test_loss_and_every_gradient_are_those_of_plain_transformers(name: str, layout: str) -> None:
    """Packed is alone, the loss without logits is dense cross-entropy on the model's own logits,
    and 1x8, 2x4 and 8x1 are one update."""
    assert_same(our_numbers(make(name), layout), *full(name))


@pytest.mark.parametrize("name", PACKED)
def test_these_are_packed(name: str) -> None:
    """Or the test above would say nothing about packing."""
    assert why_alone(make(name), collate(documents((9, 14, 11)))) is None


@pytest.mark.parametrize("layout", ["1x8", "2x4"])
@pytest.mark.parametrize("name", PACKED)
def test_layouts_are_closer_to_one_another_than_to_the_truth(name: str, layout: str) -> None:
    """Only the order of sums differs: of at most 8 parts, and of the 121 tokens in a product.
    sqrt(129) * 2^-24 = 7e-7 of the terms, which are a few times as large as their sum."""
    model = make(name)
    one, other = our_numbers(model, "8x1"), our_numbers(model, layout)
    assert other.loss == pytest.approx(one.loss, rel=20 * 2**-24)
    assert distance(other.grads, one.grads) <= 2e-6


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt2", "gemma3-sliding"])
def test_a_document_that_sees_its_neighbour_would_be_told_apart(name: str) -> None:
    model = make(name)
    rows = documents(LENGTHS)
    batch = collate(rows)
    joined = copy.copy(batch)
    object.__setattr__(joined, "cu_seqlens", (0, batch.num_tokens))
    loss, _ = SFTModel(model)(joined)
    loss.backward()
    _, exact = full(name)
    assert distance(gradients(model), exact.grads) > 1e-2


# Adapters: PEFT is the reference


def adapted(name: str) -> PreTrainedModel:
    """Our adapters, B moved off zero, without which A would have no gradient."""
    model = make(name)
    add_lora(model, find_targets(model, "all-linear"), LORA, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.2, generator=generator)
    return model


def by_peft(name: str, values: dict[str, Tensor]) -> nn.Module:
    """PEFT's adapters with these values of A and B, by the names that ours have."""
    targets: list[str] | str = "all-linear"
    if name in EXPERTS:
        targets = ATTENTION
    elif name == "qwen2-moe-sliding":
        targets = ATTENTION + SHARED  # not its gate, which gives one number
    config = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(eager(make(name)), config)
    found = {our_name(n): p for n, p in model.named_parameters() if "lora_" in n}
    assert found.keys() == values.keys()  # the same layers are adapted
    with torch.no_grad():
        for key, parameter in found.items():
            parameter.copy_(values[key])
    return model


def our_name(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".default.weight")


@cache
def lora(name: str) -> tuple[Numbers, Numbers]:
    values = {n: p.detach() for n, p in adapted(name).named_parameters() if "lora_" in n}
    model = by_peft(name, values)

    def numbers(dtype: torch.dtype) -> Numbers:
        found = plain_numbers(model, dtype)
        return Numbers(found.loss, {our_name(n): grad for n, grad in found.grads.items()})

    return numbers(torch.float32), numbers(torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*PACKED, "qwen2-moe-sliding"])
def test_loss_and_gradients_of_adapters_are_those_of_peft(name: str, layout: str) -> None:
    model = adapted(name)
    found = our_numbers(model, layout)
    assert_same(found, *lora(name))
    # Only A and B have one, and all of them.
    assert found.grads.keys() == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert all(bool(grad.any()) for grad in found.grads.values())


# Experts


def test_a_mixture_of_experts_is_trained_whole_and_its_router_too() -> None:
    for name in EXPERTS:
        found = our_numbers(make(name), "1x8").grads
        assert any("experts" in key for key in found)
        assert any(key.endswith(("gate.weight", "router.weight")) for key in found)


@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_reach_the_attention_of_a_mixture_of_experts_and_not_its_experts(
    name: str,
) -> None:
    """Its experts are tensors of three dimensions and its router one of two: no linear layers. So
    they stay as they are. PEFT's all-linear leaves them out as well for GPT-OSS, and adapts them
    for some other architectures, by names that it knows."""
    trained = choose_trained(make(name), Config(lora={"rank": 3}))
    experts = [
        p.numel() for n, p in make(name).named_parameters() if "experts" in n and p.ndim == 3
    ]
    assert trained.frozen_experts == sum(experts) > 0
    names = set(lora_layers(adapted(name)))
    assert len(names) == 2 * len(ATTENTION)
    assert {n.rpartition(".")[2] for n in names} == set(ATTENTION)


@torch.no_grad()
@pytest.mark.parametrize("name", EXPERTS)
def test_such_adapters_are_what_peft_opens(name: str, tmp_path: Path) -> None:
    model, ids = adapted(name), torch.arange(3, 43)[None]
    save_adapter(model, tmp_path, LORA, base="x")
    opened = peft.PeftModel.from_pretrained(make(name), tmp_path).eval()
    expected = model(input_ids=ids).logits
    # Logits are sums of 32 products whose factors passed two layers: some dozen roundings.
    assert (opened(input_ids=ids).logits - expected).abs().max() <= 3e-6 * expected.abs().max()


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_the_loss_of_balance_is_no_part_of_ours(name: str) -> None:
    """A model whose configuration asks for router logits adds it to its own loss. Ours is the
    cross-entropy of the trained tokens, whatever the configuration asks for."""
    model, row = make(name), document(24, 3)
    expected = plain_loss(model, row).item()
    model.config.output_router_logits = True
    found, count = SFTModel(model)(collate([row]))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    ids, labels = (torch.tensor(values)[None].long() for values in (row.input_ids, row.labels))
    with_balance: Any = model(input_ids=ids, labels=labels, output_router_logits=True)
    assert abs(with_balance.loss.item() - expected / count) > 1e-3


@pytest.mark.parametrize("name", EXPERTS)
def test_no_token_is_dropped_where_all_ask_for_the_same_expert(name: str) -> None:
    """Capacity limits would make a document depend on its neighbours: there are none. All tokens
    of eight rows are sent to the first experts; each row still gets what it gets alone."""
    model = make(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("gate.weight", "router.weight")):
                parameter.zero_()  # all experts alike: the first are taken
    rows = documents((40,) * 8)
    packed = SFTModel(model).hidden_states(collate(rows))
    alone = torch.cat([SFTModel(model).hidden_states(collate([row])) for row in rows])
    # Hidden states of order 1: a dozen roundings of 2^-24.
    assert (packed - alone).abs().max() <= 1e-6 * alone.abs().max()


def test_the_vocabulary_of_these_models_is_small_and_their_ids_are_in_it() -> None:
    assert all(int(row.input_ids.max()) < VOCAB for row in documents(LENGTHS))
