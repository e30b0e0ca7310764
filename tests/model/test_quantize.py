"""A base in four bits against the arithmetic of the paper, written here; and what is trained on it
against a plain model that holds the same numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from duiti.config import LoraConfig, load_config
from duiti.data.batch import collate
from duiti.errors import DuitiError, UsageError
from duiti.model.adapter import save_adapter
from duiti.model.freeze import choose_trained
from duiti.model.load import load_model, resolve
from duiti.model.lora import add_lora, find_targets, lora_layers, merge
from duiti.model.quantize import NF4Linear, num_weights, quantize_layers, require_nf4
from duiti.model.sft_model import SFTModel
from duiti.types import Batch, Example, Origin

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is dep:FutureWarning",
)

NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]
)  # fmt: skip
"""Dettmers et al. 2023, appendix E."""
SHAPES = [(64, 64), (3, 128), (50, 96), (7, 130), (100, 48), (33, 50), (5, 7), (1, 1), (300, 160)]
"""Rows that are whole blocks, and rows that are not: of the latter, bitsandbytes' own function for
the CPU takes some wrong, so they are given to it block by block."""


def ids(*lengths: int) -> Batch:
    rows = []
    for length in lengths:
        tokens = np.random.default_rng(length).integers(4, 440, length).astype(np.int32)
        labels = tokens.copy()
        labels[: length // 2] = -100
        rows.append(Example(input_ids=tokens, labels=labels, origin=Origin("f", length)))
    return collate(rows)


def by_hand(layer: NF4Linear) -> Tensor:
    """Float32 [out, in]: the two levels of section 3 of the paper, undone step by step."""
    numbers = layer.statistics.view(torch.float32)
    table, offset, scales = numbers[:256], numbers[256], numbers[257:]
    blocks = layer.maxima.numel()
    maxima = table[layer.maxima.long()] * scales.repeat_interleave(256)[:blocks] + offset
    codes = torch.stack([layer.codes.view(-1) >> 4, layer.codes.view(-1) & 15], dim=1).view(-1)
    flat = NF4[codes.long()] * maxima.repeat_interleave(64)
    return flat[: layer.out_features * layer.in_features].view(layer.out_features, -1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_is_table_entry_times_maximum_rounded_once(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    layer = NF4Linear(torch.randn(shape) * torch.rand(shape[0], 1))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(layer.weight_as(dtype), by_hand(layer).to(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_weight_becomes_the_nearest_of_its_sixteen(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape)
    layer = NF4Linear(weight)
    flat = nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 64)).view(-1, 64)
    scaled = flat / flat.abs().amax(dim=1, keepdim=True)
    codes = torch.stack([layer.codes.view(-1) >> 4, layer.codes.view(-1) & 15], dim=1).view(-1, 64)
    chosen = (scaled - NF4[codes.long()]).abs()
    nearest = (scaled[..., None] - NF4).abs().amin(dim=-1)
    # Two neighbours may be equally near but for the rounding of the division: 2^-24 of at most 1.
    assert (chosen - nearest).max() <= 2**-23


def test_the_maxima_are_near_those_of_the_blocks() -> None:
    torch.manual_seed(0)
    weight = torch.randn(256, 256) * torch.rand(256, 1)
    layer = NF4Linear(weight)
    numbers = layer.statistics.view(torch.float32)
    table, offset, scales = numbers[:256], numbers[256], numbers[257:]
    maxima = table[layer.maxima.long()] * scales.repeat_interleave(256) + offset
    true = weight.view(-1, 64).abs().amax(dim=1)
    # The widest gap of the 8-bit table is 0.0141 of its scale, so half of it is the error at most.
    widest = table.sort().values.diff().max()
    assert widest <= 0.0145
    assert (maxima - true).abs().max() <= widest / 2 * scales.max() * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_takes_four_bits_and_an_eighth(dtype: torch.dtype) -> None:
    layer = NF4Linear(torch.randn(512, 1024).to(dtype))
    stored = sum(tensor.nbytes for tensor in layer.buffers())
    table_bytes = 4 * 257
    assert 8 * (stored - table_bytes) / (512 * 1024) == 4 + 8 / 64 + 32 / (64 * 256)
    assert not list(layer.parameters())


def test_casting_the_model_does_not_round_what_is_quantised() -> None:
    layer = NF4Linear(torch.randn(64, 64), nn.Parameter(torch.randn(64)))
    before = layer.weight_as(torch.float32)
    layer = layer.to(torch.bfloat16)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight_as(torch.float32), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_layer_is_a_plain_one_with_its_weight(dtype: torch.dtype, has_bias: bool) -> None:
    torch.manual_seed(0)
    bias = nn.Parameter(torch.randn(40).to(dtype)) if has_bias else None
    layer = NF4Linear(torch.randn(40, 96), bias)
    plain = nn.Linear(96, 40, bias=has_bias, dtype=dtype).requires_grad_(False)
    plain.weight.copy_(layer.weight_as(dtype))
    if bias is not None:
        plain.bias.copy_(bias)
    mine = torch.randn(2, 7, 96, dtype=dtype, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    grad = torch.randn(2, 7, 40, dtype=dtype)
    layer(mine).backward(grad)
    plain(theirs).backward(grad)
    assert torch.equal(layer(mine), plain(theirs))
    assert torch.equal(mine.grad, theirs.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(mine), plain(theirs))


def test_no_weight_is_kept_for_the_backward_pass() -> None:
    layer = NF4Linear(torch.randn(64, 128))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        layer(torch.randn(3, 128, requires_grad=True))
    assert kept == []


@pytest.fixture(scope="module")
def qwen2_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases in the attention."""
    values = json.loads((llama_dir / "config.json").read_text())
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "initializer_range")  # fmt: skip
    torch.manual_seed(4)
    model = Qwen2ForCausalLM(Qwen2Config(**{key: values[key] for key in same}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("models") / "qwen2"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama_dir", "qwen2_dir", "qwen3_dir"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def quantised(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_model(resolve(str(folder)), dtype=dtype, device="cpu", quantize="nf4")


def reference(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Plain transformers with the numbers that the four bits stand for."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        for name, layer in nf4_layers(model).items():
            plain.get_submodule(name).weight.copy_(layer.weight_as(torch.float32))
    return plain


def nf4_layers(model: PreTrainedModel) -> dict[str, NF4Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, NF4Linear)}


def adapted(model: PreTrainedModel) -> SFTModel:
    config = LoraConfig(rank=4, alpha=8.0)
    add_lora(model, find_targets(model, "all-linear"), config, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.1, generator=generator)
    return SFTModel(model, compute_dtype=model.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_the_dequantised_model_bit_for_bit(
    folder: Path, dtype: torch.dtype
) -> None:
    model = quantised(folder, dtype)
    plain = adapted(reference(folder, model, dtype))
    ours = adapted(model)
    batch = ids(9, 20, 33)
    losses = []
    for sft in (ours, plain):
        loss, weight = sft(batch)
        (loss / weight).backward()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])
    assert losses[0] > 0
    pairs = zip(lora_layers(ours.model).items(), lora_layers(plain.model).values(), strict=True)
    for (name, mine), theirs in pairs:
        assert mine.lora_B.grad.abs().max() > 0, name
        assert torch.equal(mine.lora_A.grad, theirs.lora_A.grad), name
        assert torch.equal(mine.lora_B.grad, theirs.lora_B.grad), name


def test_loss_and_gradients_are_those_of_peft_on_the_dequantised_model(folder: Path) -> None:
    model = quantised(folder)
    settings = PeftConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(reference(folder, model, torch.float32), settings)
    ours = adapted(model)
    layers = lora_layers(model)
    with torch.no_grad():
        for name, layer in layers.items():
            twin = theirs.base_model.model.get_submodule(name)
            twin.lora_A["default"].weight.copy_(layer.lora_A)
            twin.lora_B["default"].weight.copy_(layer.lora_B)
    batch = ids(24)
    loss, weight = ours(batch)
    (loss / weight).backward()
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.supervised + 1] = batch.targets
    theirs(input_ids=batch.input_ids[None], labels=labels[None]).loss.backward()
    for name, layer in layers.items():
        twin = theirs.base_model.model.get_submodule(name)
        for mine, other in (
            (layer.lora_A.grad, twin.lora_A["default"].weight.grad),
            (layer.lora_B.grad, twin.lora_B["default"].weight.grad),
        ):
            # The same sums of at most 128 terms in another order, through two layers, of which a
            # soft-max and norms may widen the error by ten: 10 * 128 * 2^-24 of the largest.
            assert (mine - other).abs().max() <= 1e-4 * other.abs().max(), name


def test_the_four_bits_are_those_of_transformers_own_loading(folder: Path) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    packed = {n: m.weight for n, m in theirs.named_modules() if isinstance(m, Linear4bit)}
    ours = nf4_layers(quantised(folder))
    assert packed.keys() == ours.keys()
    for name, weight in packed.items():
        assert torch.equal(weight.data.view(-1), ours[name].codes.view(-1))
        assert torch.equal(
            dequantize_4bit(weight.data, weight.quant_state), ours[name].weight_as(torch.float32)
        )


def test_the_base_is_the_same_whatever_the_rest_computes_in(folder: Path) -> None:
    wide, low = quantised(folder), quantised(folder, torch.bfloat16)
    for name, layer in nf4_layers(wide).items():
        twin = low.get_submodule(name)
        assert torch.equal(layer.codes, twin.codes)
        assert torch.equal(layer.statistics, twin.statistics)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    assert all(dtypes[name] == p.dtype for name, p in low.named_parameters())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, low.get_buffer(name))


def test_all_linear_layers_but_the_head_are_quantised_and_nothing_else(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = quantised(folder)
    linear = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and module is not plain.get_output_embeddings()
    }
    assert nf4_layers(model).keys() == linear
    assert len(linear) == 2 * 7
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name))


def test_the_table_of_what_is_trained_counts_weights_and_bytes(llama_dir: Path) -> None:
    config = load_config(None, {"lora": {"rank": 4}, "quantize": "nf4"})
    plain = AutoModelForCausalLM.from_pretrained(llama_dir)
    model = quantised(llama_dir)
    assert num_weights(model) == num_weights(plain) == sum(p.numel() for p in plain.parameters())
    ours, theirs = choose_trained(model, config), choose_trained(plain, config)
    assert ours.describe() == theirs.describe()
    buffers = sum(buffer.nbytes for buffer in plain.buffers())
    assert theirs.frozen_bytes == 4 * (theirs.total - theirs.num_parameters) + buffers
    layers = nf4_layers(model).values()
    fewer = sum(4 * m.in_features * m.out_features for m in layers)
    fewer -= sum(tensor.nbytes for m in layers for tensor in m.buffers())
    assert ours.frozen_bytes == theirs.frozen_bytes - fewer


def test_layers_without_numbers_have_the_same_shapes_and_leave_nothing_behind() -> None:
    real = NF4Linear(torch.randn(64, 96))
    with FakeTensorMode():
        fake = NF4Linear(torch.randn(64, 96))
        x = torch.randn(3, 96, requires_grad=True)
        fake(x).sum().backward()
    assert x.grad.shape == (3, 96)
    for name, buffer in real.named_buffers():
        twin = fake.get_buffer(name)
        assert isinstance(twin, FakeTensor)
        assert (twin.shape, twin.dtype) == (buffer.shape, buffer.dtype)
    assert torch.isfinite(NF4Linear(torch.randn(64, 96))(torch.randn(2, 96))).all()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(6)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    ).eval()


@torch.no_grad()
def test_a_layer_that_stores_its_weight_the_other_way_round_is_quantised_too() -> None:
    model, plain = gpt2(), gpt2()
    names = quantize_layers(model, device="cpu")
    assert len(names) == 2 * 4
    for name in names:
        layer = model.get_submodule(name)
        assert layer.is_transposed
        plain.get_submodule(name).weight.copy_(layer.weight_as(torch.float32).T)
    tokens = torch.arange(3, 43)[None]
    found, expected = model(tokens).logits, plain(tokens).logits
    # The same sums of at most 256 terms in another order, through two layers.
    assert (found - expected).abs().max() <= 2 * 256 * 2**-24 * expected.abs().max()
    assert (found - gpt2()(tokens).logits).abs().max() > 1e-3


@torch.no_grad()
def test_an_adapter_of_such_layers_fits_the_original_model_in_peft(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    model = adapted(quantised(tmp_path / "base")).model
    (tmp_path / "adapter").mkdir()
    config = LoraConfig(rank=4, alpha=8.0)
    save_adapter(model, tmp_path / "adapter", config, base=str(tmp_path / "base"))
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path / "adapter").eval()
    expected = adapted(gpt2()).model
    tokens = torch.arange(3, 43)[None]
    wanted = expected(tokens).logits
    # The same sums of at most 256 terms in another order, through two layers.
    assert (theirs(tokens).logits - wanted).abs().max() <= 2 * 256 * 2**-24 * wanted.abs().max()


def test_a_model_that_is_mostly_no_linear_layers_is_refused() -> None:
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"fits only 1[0-9]% of the weights") as caught:
        quantize_layers(model, device="cpu")
    assert "experts" in caught.value.why
    assert not nf4_layers(model)


@pytest.mark.parametrize("method", ["full", "last-n"])
def test_only_adapters_are_trained_on_four_bits(method: str) -> None:
    with pytest.raises(UsageError, match=f"only adapters.*method: lora, not {method}"):
        load_config(None, {"quantize": "nf4", "method": method})


def test_an_adapter_is_not_merged_into_four_bits(llama_dir: Path) -> None:
    model = adapted(quantised(llama_dir)).model
    with pytest.raises(DuitiError, match="cannot be merged into a base in four bits") as caught:
        merge(model)
    assert caught.value.fix


def test_a_device_without_nf4_is_refused() -> None:
    with pytest.raises(UsageError, match="does not run on mps"):
        require_nf4("mps")


def test_without_the_extra_the_error_says_what_to_install(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs bitsandbytes") as caught:
        quantised(llama_dir)
    assert caught.value.fix == "pip install 'duiti[qlora]'"


def test_a_model_that_is_packed_already_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_dir, tmp_path / "model"))
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(values))
    for quantize in ("none", "nf4"):
        with pytest.raises(UsageError, match="packed already") as caught:
            load_model(resolve(str(folder)), dtype=torch.float32, device="cpu", quantize=quantize)
        assert "--quantize nf4" in caught.value.fix


def test_nothing_is_fetched_and_nothing_said_when_bitsandbytes_is_imported(
    tmp_path: Path,
) -> None:
    # A package that fetches from the hub, for bitsandbytes to find.
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    raise SystemExit(7)\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from duiti.model.quantize import require_nf4; require_nf4('cpu');"
        "import bitsandbytes, kernels; kernels.get_kernel"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_package_that_was_imported_before_stays_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", own)
    require_nf4("cpu")
    assert sys.modules["kernels"] is own
