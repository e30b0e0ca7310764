"""Frozen layers that run once give what they give when they run every time.

The reference is the same model without the trunk, and plain transformers and PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from duiti.config import Config
from duiti.data.batch import collate
from duiti.errors import DuitiError
from duiti.infer.model import load
from duiti.model import kept_states
from duiti.model.choose_trunk import choose_trunk
from duiti.model.freeze import choose_trained, transformer_layers
from duiti.model.kept_states import Documents, KeptStates
from duiti.model.sft_model import SFTModel, why_alone
from duiti.model.trunk import Trunk, frozen_depth
from duiti.run import Run
from duiti.sft import finetune
from duiti.training.log import Talk
from duiti.types import Batch, Example, Origin

# PEFT 0.21 asks transformers for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

VOCAB = 97
LENGTHS = (5, 23, 9, 12, 17, 2, 12, 30)


def shape(**more: object) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BLOOM = {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4,
         "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**shape()),
    "qwen2": lambda: hf.Qwen2Config(
        **shape(use_sliding_window=True, sliding_window=4, layer_types=SLIDING)
    ),
    "qwen3-tied": lambda: hf.Qwen3Config(**shape(tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralConfig(**shape(sliding_window=4)),
    "phi3": lambda: hf.Phi3Config(**shape()),
    "gemma2": lambda: hf.Gemma2Config(
        **shape(sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
                final_logit_softcapping=3.0)
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **shape(sliding_window=4, layer_types=SLIDING, query_pre_attn_scalar=8)
    ),
    "mixtral": lambda: hf.MixtralConfig(**shape(num_local_experts=4, num_experts_per_tok=2)),
    "gpt2": lambda: hf.GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    # Its layers return tuples, and its documents run one by one.
    "bloom": lambda: hf.BloomConfig(**BLOOM),
}  # fmt: skip


def make(name: str, **changed: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changed.items():
        setattr(config, key, value)
    model: hf.PreTrainedModel = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms start at 0 and 1, where a test would not see them
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def document(length: int, seed: int) -> Example:
    ids = np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)
    labels = ids.copy()
    labels[: length // 2] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("test", seed))


ROWS = [document(length, seed) for seed, length in enumerate(LENGTHS)]
LAST = {"method": "last-n", "last_n": {"layers": 1}}
LORA = {"method": "lora", "lora": {"layers": 1, "rank": 4}}


def opened(name: str, method: dict[str, Any], **settings: Any) -> tuple[SFTModel, Config]:
    """A model whose top layer is trained, as `finetune` makes it."""
    config = Config(**method, micro_batch_tokens=40, **settings)
    model = make(name)
    dtype = getattr(torch, "float32" if config.dtype == "auto" else config.dtype)
    model.to(dtype)
    is_packed = why_alone(model, collate(ROWS[:3])) is None
    choose_trained(model, config)
    torch.manual_seed(1)
    with torch.no_grad():  # an adapter whose B is zero has no gradient in A
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    return SFTModel(model, compute_dtype=dtype, is_packed=is_packed).train(), config


def with_trunk(sft: SFTModel, config: Config, folder: Path) -> Trunk:
    trunk, what = choose_trunk(sft, [ROWS], collate(ROWS[:3]), folder, config)
    assert trunk is not None, what
    sft.trunk = trunk
    return trunk


def loss_and_gradients(sft: SFTModel, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    sft.zero_grad()
    loss, _ = sft(batch)
    loss.backward()
    found = {key: p.grad.clone() for key, p in sft.named_parameters() if p.grad is not None}
    assert found.keys() == {key for key, p in sft.named_parameters() if p.requires_grad}
    return loss.item(), found


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]), key


class Calls:
    """Counts how often modules run."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.counts = [0] * len(modules)
        for place, module in enumerate(modules):
            module.register_forward_hook(self._counter(place))

    def _counter(self, place: int) -> Any:
        def count(*_: object) -> None:
            self.counts[place] += 1

        return count


CASES = [(method, name) for method in ("last-n", "lora") for name in CONFIGS]
METHODS = {"last-n": LAST, "lora": LORA}


@pytest.mark.parametrize(("method", "name"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_network(
    tmp_path: Path, name: str, method: str
) -> None:
    sft, config = opened(name, METHODS[method])
    batch = collate(ROWS[2:7])
    expected, reference = loss_and_gradients(sft, batch)
    with_trunk(sft, config, tmp_path)
    calls = Calls(list(transformer_layers(sft.model)))
    first, gradients = loss_and_gradients(sft, batch)
    # The same sums, maybe cut into other blocks: as for documents that run together (1e-5 and 1e-4
    # of the tensor's largest, test_attention.py).
    assert first == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == reference.keys()
    for key, gradient in reference.items():
        assert (gradients[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, key
    assert calls.counts[0] > 0
    calls.counts = [0, 0, 0]
    second, again = loss_and_gradients(sft, batch)
    assert calls.counts[:2] == [0, 0]
    assert calls.counts[2] > 0
    assert second == first
    assert_equal(again, gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "name"), CASES)
def test_one_by_one_not_a_bit_differs(tmp_path: Path, name: str, method: str, dtype: str) -> None:
    """Each document alone is the same products of the same shapes, with the trunk and without."""
    sft, config = opened(name, METHODS[method], dtype=dtype)
    sft.is_packed = False
    batch = collate(ROWS[2:7])
    expected, reference = loss_and_gradients(sft, batch)
    with_trunk(sft, config, tmp_path)
    for _ in range(2):
        found, gradients = loss_and_gradients(sft, batch)
        assert found == expected
        assert_equal(gradients, reference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_of_a_document_do_not_depend_on_what_was_asked_before(
    tmp_path: Path, dtype: str
) -> None:
    """So a run that is taken up again, or cut otherwise, goes on as it would have."""
    found = []
    for order in ([[0, 1, 2, 3], [4, 5], [6, 7]], [[7], [5, 2], [6, 0, 1], [3, 4]]):
        sft, config = opened("llama", LAST, dtype=dtype)
        trunk = with_trunk(sft, config, tmp_path)
        kept = trunk.kept
        kept._is_there = [False] * kept.documents.num_groups
        for places in order:
            sft.hidden_states(collate([ROWS[place] for place in places]))
        assert all(kept._is_there)
        places = kept.documents.find([row.input_ids for row in ROWS])
        assert places is not None
        found.append(kept.read(places, torch.device("cpu")))
    assert torch.equal(found[0], found[1])
    assert found[0].dtype == getattr(torch, dtype)
    assert found[0].shape == (sum(LENGTHS), 32)


def test_what_is_kept_is_what_the_first_trained_layer_gets(tmp_path: Path) -> None:
    sft, config = opened("qwen3-tied", LAST)
    given: list[Tensor] = []
    layer = transformer_layers(sft.model)[2]
    handle = layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    for row in ROWS:
        sft.model(input_ids=torch.tensor(row.input_ids.astype(np.int64))[None])
    handle.remove()
    trunk = with_trunk(sft, config, tmp_path)
    found = trunk.states(collate(ROWS), sft._run)
    assert found is not None
    assert not found.requires_grad
    expected = torch.cat(given, dim=1)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_batch_with_an_unknown_document_goes_through_the_whole_network(tmp_path: Path) -> None:
    sft, config = opened("llama", LAST)
    batch = collate([ROWS[1], document(11, 99)])
    expected = loss_and_gradients(sft, batch)
    trunk = with_trunk(sft, config, tmp_path)
    assert trunk.states(batch, sft._run) is None
    found = loss_and_gradients(sft, batch)
    assert found[0] == expected[0]
    assert_equal(found[1], expected[1])


def test_names_weights_layers_and_logits_are_untouched(tmp_path: Path) -> None:
    sft, config = opened("gemma3", LORA)
    model, ids = sft.model, torch.arange(3, 43).reshape(2, 20)
    layers = list(transformer_layers(model))
    before, logits = model.state_dict(), model.eval()(ids).logits
    names = [name for name, _ in model.named_modules()]
    with_trunk(sft, config, tmp_path)
    sft(collate(ROWS[:4]))
    assert list(transformer_layers(model)) == layers
    assert names == [name for name, _ in model.named_modules()]
    assert_equal(model.state_dict(), before)
    assert torch.equal(model(ids).logits, logits)
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("fails", [0, 2])
def test_the_layers_are_back_in_their_place_after_a_failure(tmp_path: Path, fails: int) -> None:
    sft, config = opened("llama", LAST)
    layers = list(transformer_layers(sft.model))
    trunk = with_trunk(sft, config, tmp_path)
    batch = collate(ROWS)
    expected, _ = loss_and_gradients(sft, batch)
    trunk.kept._is_there = [False] * trunk.kept.documents.num_groups

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    handle = layers[fails].register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        sft(batch)
    handle.remove()
    assert list(transformer_layers(sft.model)) == layers
    assert not any(layer._forward_hooks for layer in layers)
    assert loss_and_gradients(sft, batch)[0] == expected


# Where the trunk ends


def test_the_trunk_ends_below_the_first_trained_parameter_or_is_none() -> None:
    model = make("llama")
    depths = {
        "model.layers.2.mlp.up_proj.weight": 2,
        "model.layers.1.input_layernorm.weight": 1,
        "model.layers.0.self_attn.k_proj.weight": 0,
        "model.embed_tokens.weight": 0,
    }
    for name, depth in depths.items():
        model.requires_grad_(False)
        for opened_name in (name, "model.norm.weight", "lm_head.weight"):
            model.get_parameter("model.layers.2.mlp.gate_proj.weight").requires_grad_()
            model.get_parameter(opened_name).requires_grad_()
        assert frozen_depth(model) == depth, name
    model.requires_grad_(False)
    assert frozen_depth(model) == 0


def test_a_trained_head_that_is_the_embedding_leaves_nothing_frozen() -> None:
    model = make("qwen3-tied").requires_grad_(False)
    for name in ("model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight"):
        model.get_parameter(name).requires_grad_()
    assert frozen_depth(model) == 0


# Why there is none


def why_not(name: str, tmp_path: Path, method: dict[str, Any] = LAST, **more: Any) -> str:
    rows = more.pop("rows", [ROWS])
    free = more.pop("free_bytes", None)
    sft, config = opened(name, method, **more)
    state = torch.get_rng_state()
    trunk, what = choose_trunk(sft, rows, collate(ROWS[:3]), tmp_path, config, free_bytes=free)
    assert trunk is None
    assert sft.trunk is None
    assert sft.training
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []
    return what


def test_without_frozen_layers_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert why_not("llama", tmp_path, {"method": "full"}) == ""
    assert why_not("llama", tmp_path, {"method": "lora"}) == ""


def test_what_the_user_or_the_rows_rule_out_is_said(tmp_path: Path) -> None:
    begin = "the lower 2 of 3 layers run anew every time: "
    assert why_not("llama", tmp_path, cache=False) == f"{begin}cache is off"
    assert why_not("llama", tmp_path, rows=[]) == f"{begin}no row comes twice"


def test_no_more_than_half_of_the_free_disk_is_taken(tmp_path: Path) -> None:
    needed = sum(LENGTHS) * 32 * 4
    said = why_not("llama", tmp_path, free_bytes=2 * needed - 1)
    assert said.endswith("their output takes 0.0141 MB, and the disk has 0.0282 MB free")
    sft, config = opened("llama", LAST)
    free = 2 * needed
    trunk, what = choose_trunk(sft, [ROWS], collate(ROWS[:3]), tmp_path, config, free_bytes=free)
    assert trunk is not None
    assert trunk.kept.num_bytes == needed
    assert what == (
        "the lower 2 of 3 layers run once per row, their output is kept during the run"
        " (110 tokens, 0.0141 MB on disk)"
    )
    assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize("where", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_layers_that_drop_out_are_not_kept(tmp_path: Path, where: str) -> None:
    CONFIGS["dropping"] = lambda: hf.GPT2Config(
        **{**GPT2, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, where: 0.1}
    )
    assert why_not("dropping", tmp_path).endswith("dropout is at work in them")


def test_layers_that_share_more_than_a_hidden_state_are_not_kept(tmp_path: Path) -> None:
    """Gemma 3n hands on several streams; the last layers of Gemma 4 reuse keys of a lower one."""
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    common = {
        **shape(sliding_window=4, num_kv_shared_layers=1, layer_types=kinds),
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "num_hidden_layers": 4,
    }
    CONFIGS["gemma3n"] = lambda: hf.Gemma3nTextConfig(
        **{**common, "intermediate_size": [48] * 4}, altup_num_inputs=2, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    CONFIGS["gemma4"] = lambda: hf.Gemma4TextConfig(**common)
    method = {"method": "last-n", "last_n": {"layers": 1, "train_norm": False}}
    assert why_not("gemma3n", tmp_path, method).endswith("hand on more than a hidden state")
    said = why_not("gemma4", tmp_path, method)
    assert "they and the layers above do not run apart" in said


def test_a_layer_that_reads_what_a_lower_one_left_behind_is_found_out(tmp_path: Path) -> None:
    """What is left of the last documents that went through the lower layers has the right shape."""
    sft, config = opened("llama", LAST)
    layers = transformer_layers(sft.model)
    left: list[Tensor] = []

    def leave(module: nn.Module, given: object, states: Tensor) -> None:
        left[:] = [states.mean(dim=1, keepdim=True)]

    layers[0].register_forward_hook(leave)
    layers[2].register_forward_pre_hook(lambda module, given: (given[0] + left[0], *given[1:]))
    rows = [ROWS[3], ROWS[6], ROWS[0]]
    trunk, what = choose_trunk(sft, [ROWS], collate(rows), tmp_path, config)
    assert trunk is None
    assert what.endswith("the layers above need more than their output")


def test_layers_that_cannot_be_told_apart_are_not_kept(tmp_path: Path) -> None:
    sft, config = opened("llama", LORA)
    sft.model.other = nn.ModuleList(nn.Identity() for _ in range(3))
    trunk, what = choose_trunk(sft, [ROWS], collate(ROWS[:3]), tmp_path, config)
    assert trunk is None
    assert "cannot tell the layers of LlamaForCausalLM apart" in what


def test_a_disk_that_fills_up_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    sft, config = opened("llama", LAST)
    trunk = with_trunk(sft, config, tmp_path)
    trunk.kept._is_there = [False] * trunk.kept.documents.num_groups
    monkeypatch.setattr(kept_states.os, "pwrite", full)
    with pytest.raises(DuitiError, match="No space left") as caught:
        sft(collate(ROWS))
    assert "--no-cache" in caught.value.fix
    monkeypatch.setattr(kept_states.os, "posix_fallocate", full)
    sft.trunk = None
    assert (
        "the disk has no 0.0141 MB for them (No space left"
        in choose_trunk(sft, [ROWS], collate(ROWS[:3]), tmp_path, config)[1]
    )


# Groups of documents


def test_groups_follow_the_rows_and_their_budget_and_hold_a_text_once() -> None:
    train = [*ROWS[:4], ROWS[1], document(50, 20)]
    found = Documents([train, [ROWS[0], ROWS[7]]], group_tokens=40)
    texts = [[len(ids) for ids in found.ids(group)] for group in range(found.num_groups)]
    # 5 + 23 + 9 fit, 12 more do not; 50 alone; rows to measure on begin a group of their own.
    assert texts == [[5, 23, 9], [12], [50], [30]]
    assert found.num_tokens == 5 + 23 + 9 + 12 + 50 + 30
    assert found.find([ROWS[1].input_ids, ROWS[0].input_ids.astype(np.int64)]) == [1, 0]
    assert found.find([ROWS[1].input_ids, document(3, 50).input_ids]) is None
    assert found.groups_of([5, 0, 1, 5]) == [3, 0]
    without = Documents([train], group_tokens=40)
    assert without.borders == found.borders[:4]


def test_states_come_back_to_the_bit_in_any_order(tmp_path: Path) -> None:
    documents = Documents([ROWS], group_tokens=40)
    kept = KeptStates(documents, tmp_path, width=6, dtype=torch.bfloat16)
    states = torch.randn(documents.num_tokens, 6).bfloat16()
    bounds = [int(documents.starts[place]) for place in documents.borders]
    for group, (begin, end) in enumerate(pairwise(bounds)):
        assert group in kept.missing(range(8))
        kept.write(group, states[begin:end])
    assert kept.missing(range(8)) == []
    pieces = states.split(list(LENGTHS))
    found = kept.read([6, 0, 3, 0], torch.device("cpu"))
    assert torch.equal(found, torch.cat([pieces[place] for place in (6, 0, 3, 0)]))


# Whole runs


def pairs() -> list[dict[str, str]]:
    return [
        {"prompt": f"Who wrote number {n}?" + " Please." * (n % 4), "response": f"It was {n * 7}."}
        for n in range(12)
    ]


def run(model: Path, output: Path, method: dict[str, Any], **more: Any) -> Run:
    config = Config(
        model=str(model), output=str(output), device="cpu", epochs=2, batch_size=5,
        learning_rate=1e-2, **method, **more,
    )  # fmt: skip
    return finetune(config, rows=pairs(), talk=Talk(plain=True))


def weights(found: Run) -> dict[str, Tensor]:
    (path,) = found.path.glob("*.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def bloom_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose documents run one by one."""
    folder = tmp_path_factory.mktemp("models") / "bloom"
    tokenizer = hf.AutoTokenizer.from_pretrained(llama_dir)
    torch.manual_seed(0)
    config = hf.BloomConfig(**{**BLOOM, "vocab_size": len(tokenizer)}, seq_length=512)
    hf.BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_run_one_by_one_ends_with_the_same_bytes_cached_or_not(
    bloom_dir: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    on = run(bloom_dir, tmp_path / "on", METHODS[method], val="30%")
    assert "frozen    the lower 2 of 3 layers run once per row" in capsys.readouterr().err
    off = run(bloom_dir, tmp_path / "off", METHODS[method], val="30%", cache=False)
    assert "frozen    the lower 2 of 3 layers run anew every time: cache is off" in (
        capsys.readouterr().err
    )
    assert_equal(weights(on), weights(off))
    keys = ("loss", "grad_norm", "val_loss")
    assert [[line.get(key) for key in keys] for line in on.metrics] == [
        [line.get(key) for key in keys] for line in off.metrics
    ]
    assert {path.name for path in on.path.iterdir()} == {path.name for path in off.path.iterdir()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["llama_dir", "qwen3_dir"])
def test_a_run_ends_with_the_same_weights_cached_or_not(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, method: str
) -> None:
    """Packed, sums are cut into other blocks: gradients differ by some 1e-6 of their largest entry.
    Adam divides by the size of each entry, so one that is 1e-3 of the largest moves by 1e-3 of the
    rate more or less in each of the six updates: 6e-3 of the rate of 1e-2."""
    folder = request.getfixturevalue(which)
    on = run(folder, tmp_path / "on", METHODS[method], val="30%")
    off = run(folder, tmp_path / "off", METHODS[method], val="30%", cache=False)
    expected = weights(off)
    for key, tensor in weights(on).items():
        assert (tensor - expected[key]).abs().max() <= 6e-5, key
    for one, two in zip(on.metrics, off.metrics, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one.get("val_loss", 0) == pytest.approx(two.get("val_loss", 0), rel=1e-5)


@pytest.mark.parametrize("more", [{}, {"val": "30%"}], ids=["alone", "measured"])
def test_one_epoch_keeps_only_what_is_measured(
    llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str]
) -> None:
    method = {**LAST, "max_steps": 3}
    run(llama_dir, tmp_path / "run", method, **more)
    said = capsys.readouterr().err
    assert ("no row comes twice" in said) == (not more)
    assert ("run once per row" in said) == bool(more)


def test_adapters_on_the_last_layers_open_in_peft_with_the_same_logits(
    llama_dir: Path, tmp_path: Path
) -> None:
    found = run(llama_dir, tmp_path / "run", {"lora": {"layers": 1}})
    assert {name.split(".")[4] for name in weights(found)} == {"1"}
    ids = torch.arange(4, 64).reshape(3, 20)
    theirs = PeftModel.from_pretrained(
        hf.AutoModelForCausalLM.from_pretrained(llama_dir), found.path
    )
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
        logits = load(found, device="cpu").hf(ids).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert load(found, device="cpu").chat([{"role": "user", "content": "Who?"}], max_new_tokens=4)
