"""LoRA against a layer as in a textbook, written here: y = W x + s B (A x)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from made_models import make
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from duiti.config import LoraConfig
from duiti.errors import UsageError
from duiti.model.lora import (
    LoRALinear,
    adapters_off,
    adapters_scaled,
    add_lora,
    find_targets,
    lora_layers,
    lora_scale,
    merge,
)


class Textbook(nn.Module):
    """Hu et al. 2021, section 4.1."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().clone(), linear.bias.detach().clone()
        self.a = nn.Parameter(a.detach().clone())
        self.b = nn.Parameter(b.detach().clone())
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias + self.scale * ((x @ self.a.T) @ self.b.T)


def layer(**settings: object) -> LoRALinear:
    torch.manual_seed(0)
    config = LoraConfig(**{"rank": 4, "alpha": 6.0, **settings})
    adapted = LoRALinear.from_base(nn.Linear(24, 40), config, seed=3, name="a.b.q_proj")
    with torch.no_grad():
        adapted.lora_B.normal_()
    return adapted


def ids() -> Tensor:
    return torch.arange(3, 63).reshape(3, 20)


@pytest.fixture
def model(llama_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llama_dir).eval()


def adapt(model: PreTrainedModel, **settings: object) -> PreTrainedModel:
    config = LoraConfig(**{"rank": 4, "alpha": 8.0, **settings})
    add_lora(model, find_targets(model, config.target_modules), config, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapted in lora_layers(model).values():
            adapted.lora_B.normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"alpha": 0.5}, {"rank": 24}], ids=str)
def test_forward_and_gradients_are_those_of_the_textbook_layer(settings: dict[str, object]) -> None:
    ours = layer(**settings)
    rank, alpha = ours.lora_A.shape[0], {"alpha": 6.0, **settings}["alpha"]
    scale = float(alpha) / (rank**0.5 if "rslora" in settings else rank)
    assert ours.scale == pytest.approx(scale, rel=1e-15)
    textbook = Textbook(ours.base, ours.lora_A, ours.lora_B, scale)
    x = torch.randn(2, 7, 24)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(2, 7, 40)
    (ours(mine) * weights).sum().backward()
    (textbook(reference) * weights).sum().backward()
    # Sums of at most 24 + 24 + 14 terms in another order: 62 * 2^-24 = 3.7e-6 of the largest.
    for found, expected in (
        (ours(x), textbook(x)),
        (mine.grad, reference.grad),
        (ours.lora_A.grad, textbook.a.grad),
        (ours.lora_B.grad, textbook.b.grad),
    ):
        assert found is not None
        assert expected is not None
        assert (found - expected).abs().max() <= 3.7e-6 * expected.abs().max()


def test_before_training_the_adapter_changes_nothing(model: PreTrainedModel) -> None:
    before = model(ids()).logits
    add_lora(model, find_targets(model, "all-linear"), LoraConfig(), seed=0)
    # B is zero, so what is added is zero, exactly.
    assert torch.equal(model(ids()).logits, before)


def test_the_start_of_a_is_uniform_in_one_over_the_root_of_the_width() -> None:
    config = LoraConfig(rank=64)
    a = LoRALinear.from_base(nn.Linear(400, 80), config, seed=0, name="x").lora_A.detach()
    bound = 400**-0.5
    assert a.abs().max() <= bound
    # Standard deviation of U(-b, b) is b / sqrt 3; of its estimate from n = 25,600 values,
    # relatively, sqrt(0.8 / 4 / n) = 0.28 %: five of these.
    assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.014)
    assert abs(a.mean().item()) < 5 * bound / 3**0.5 / 160


def test_the_start_of_a_depends_on_seed_and_name_alone(llama_dir: Path) -> None:
    def starts(targets: tuple[str, ...], seed: int, noise: int) -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(llama_dir)
        torch.manual_seed(noise)  # torch's global state must not matter
        layers = add_lora(model, find_targets(model, targets), LoraConfig(rank=4), seed=seed)
        return {name: adapted.lora_A.detach() for name, adapted in layers.items()}

    few, many = starts(("v_proj",), 0, 1), starts(("q_proj", "v_proj", "up_proj"), 0, 2)
    assert len(few) == 2
    assert len(many) == 6
    for name, a in few.items():
        assert torch.equal(a, many[name])
        assert not torch.equal(a, starts(("v_proj",), 1, 1)[name])
    one, two = few.values()
    assert not torch.equal(one, two)


def test_adding_lora_leaves_the_global_random_stream_alone(model: PreTrainedModel) -> None:
    state = torch.get_rng_state()
    add_lora(model, find_targets(model, "all-linear"), LoraConfig(), seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_linear_is_every_linear_layer_but_the_head(model: PreTrainedModel) -> None:
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    assert set(find_targets(model, "all-linear")) == linear
    assert len(linear) == 14


def test_only_a_and_b_are_trained_and_they_are_float32(llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16)
    adapt(model)
    open_ = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(open_) == 28
    assert all(n.endswith(("lora_A", "lora_B")) for n in open_)
    assert {p.dtype for p in open_.values()} == {torch.float32}


def test_base_weights_and_biases_are_bitwise_unchanged_by_training() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, attention_bias=True, mlp_bias=True, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert sum(n.endswith("bias") for n in before) == 14
    add_lora(model, find_targets(model, "all-linear"), LoraConfig(rank=4), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if "lora_" not in n}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(bool(adapted.lora_B.any()) for adapted in lora_layers(model).values())


def test_the_input_is_not_changed() -> None:
    adapted = layer(dropout=0.5)
    x = torch.randn(3, 24)
    kept = x.clone()
    adapted(x.requires_grad_()).sum().backward()
    assert torch.equal(x, kept)


def test_merged_equals_adapted(model: PreTrainedModel) -> None:
    adapt(model)
    with torch.no_grad():
        adapted, plain = model(ids()).logits, None
        with adapters_off(model):
            plain = model(ids()).logits
        merge(model)
        merged = model(ids()).logits
    assert not lora_layers(model)
    assert (adapted - plain).abs().max() > 0.1  # or the test below says nothing
    # 14 layers, each W + sBA rounded once (2^-24) over sums of at most 128: a few 1e-6 at most.
    assert (adapted - merged).abs().max() <= 1e-5 * adapted.abs().max()


def test_merging_twice_adds_the_update_once(model: PreTrainedModel) -> None:
    adapt(model)
    spent = next(iter(lora_layers(model).values()))
    merge(model)
    once = {n: p.detach().clone() for n, p in model.named_parameters()}
    merge(model)
    spent.merge()
    assert all(torch.equal(p, once[n]) for n, p in model.named_parameters())


def test_a_bfloat16_merge_is_the_float32_sum_rounded_once() -> None:
    adapted = layer()
    adapted.base.to(torch.bfloat16)
    w = adapted.base.weight.detach().double()
    exact = w + adapted.scale * (
        adapted.lora_B.detach().double() @ adapted.lora_A.detach().double()
    )
    merged = adapted.merge().weight.detach()
    assert merged.dtype == torch.bfloat16
    # Half a unit in the last place (2^-8 relative), and float32's own error on the way.
    assert bool(((merged.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all())


def test_with_adapters_off_it_is_the_base_model_bitwise(llama_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    model = adapt(AutoModelForCausalLM.from_pretrained(llama_dir).eval())
    with torch.no_grad():
        on = model(ids()).logits
        with adapters_off(model):
            assert torch.equal(model(ids()).logits, plain(ids()).logits)
        assert torch.equal(model(ids()).logits, on)
        assert not torch.equal(on, plain(ids()).logits)


def test_adapters_come_back_on_after_an_error(model: PreTrainedModel) -> None:
    adapt(model)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert all(adapted.is_on for adapted in lora_layers(model).values())


def test_adapters_off_within_adapters_off_stays_off(model: PreTrainedModel) -> None:
    """`with model.base(): evaluate(model, …)` enters it twice."""
    adapt(model)
    with adapters_off(model):
        with adapters_off(model):
            pass
        assert not any(adapted.is_on for adapted in lora_layers(model).values())
    assert all(adapted.is_on for adapted in lora_layers(model).values())


def test_dropout_acts_in_training_only_and_on_the_adapter_only() -> None:
    adapted, x = layer(dropout=0.5), torch.randn(50, 24)
    without = layer()
    adapted.eval()
    assert torch.equal(adapted(x), without(x))
    adapted.train()
    torch.manual_seed(0)
    assert not torch.allclose(adapted(x), without(x))
    adapted.is_on = False
    assert torch.equal(adapted(x), adapted.base(x))


def test_dropout_keeps_the_expected_value() -> None:
    adapted, x = layer(dropout=0.25).train(), torch.randn(1, 24)
    torch.manual_seed(0)
    with torch.no_grad():
        update = adapted(x.expand(20_000, 24)) - adapted.base(x)
        expected = layer()(x) - layer().base(x)
    # Five standard errors of the mean of 20,000 draws.
    assert bool(((update.mean(0) - expected[0]).abs() <= 5 * update.std(0) / 20_000**0.5).all())


def test_the_scale_is_alpha_over_rank_or_over_its_root() -> None:
    assert lora_scale(LoraConfig(rank=16, alpha=8)) == 0.5
    assert lora_scale(LoraConfig(rank=16, alpha=8, rslora=True)) == 2.0


def test_a_rank_that_does_not_fit_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match=r"lora\.rank 33 is larger than .*k_proj allows \(32\)"):
        add_lora(model, find_targets(model, "all-linear"), LoraConfig(rank=33), seed=0)


@pytest.mark.parametrize(
    ("targets", "hint"), [(("q_porj",), "q_proj"), (("q_proj", "nothing"), ""), (("proj",), "")]
)
def test_a_target_that_matches_nothing_is_refused(
    model: PreTrainedModel, targets: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(UsageError, match="matches no linear layer") as caught:
        find_targets(model, targets)
    assert hint in str(caught.value)


def test_a_tied_head_is_refused(qwen3_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    with pytest.raises(UsageError, match="tied"):
        find_targets(model, ("lm_head",))


def test_a_model_without_linear_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    for block in gpt2.transformer.h:
        block.attn, block.mlp = nn.Identity(), nn.Identity()
    with pytest.raises(UsageError, match="finds no linear layer"):
        find_targets(gpt2, "all-linear")


def test_a_linear_layer_that_computes_something_else_is_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UsageError, match="lora cannot adapt"):
        LoRALinear.from_base(Doubled(24, 40), LoraConfig(rank=4), seed=0, name="a.b")


def test_a_layer_whose_weight_the_model_reads_itself_is_refused() -> None:
    """It would never be asked for the update."""
    model = make("mamba")
    add_lora(model, ["backbone.layers.0.mixer.dt_proj"], LoraConfig(rank=2), seed=0)
    assert not hasattr(model.get_submodule("backbone.layers.0.mixer.dt_proj"), "weight")
    with pytest.raises(UsageError, match=r"cannot adapt backbone\.layers\.0\.mixer\.dt_proj"):
        model(torch.tensor([[5, 6, 7]]), use_cache=False)


def test_a_target_named_twice_is_adapted_once(model: PreTrainedModel) -> None:
    names = find_targets(model, ("q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj"))
    assert sorted(names) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    return


def test_the_dial_scales_what_every_adapter_adds_and_restores_it_bit_for_bit(
    model: PreTrainedModel,
) -> None:
    with torch.no_grad():
        plain = model(input_ids=ids()).logits
        adapt(model)
        full = model(input_ids=ids()).logits
        scales = [layer.scale for layer in lora_layers(model).values()]
        with adapters_scaled(model, 1):
            assert torch.equal(model(input_ids=ids()).logits, full)
        with adapters_scaled(model, 0):
            at_zero = model(input_ids=ids()).logits
        with adapters_scaled(model, 0.5):
            at_half = model(input_ids=ids()).logits
            with adapters_off(model):
                assert torch.equal(model(input_ids=ids()).logits, plain)
        for layer in lora_layers(model).values():
            layer.lora_B *= 0.5  # a power of two: the same numbers
        by_hand = model(input_ids=ids()).logits
    assert (at_zero - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (at_half - by_hand).abs().max() <= 1e-5 * full.abs().max()
    assert (at_half - full).abs().max() > 0.1
    assert [layer.scale for layer in lora_layers(model).values()] == scales


def test_the_dial_goes_back_after_an_error_too_and_ends_at_twelve_tenths(
    model: PreTrainedModel,
) -> None:
    adapt(model)
    with pytest.raises(ZeroDivisionError), adapters_scaled(model, 0.3):
        raise ZeroDivisionError
    assert {layer.scale for layer in lora_layers(model).values()} == {2.0}
    for strength in (-0.01, 1.21, float("nan")):
        with pytest.raises(UsageError, match="no strength"), adapters_scaled(model, strength):
            pass
