"""Documents that run together get what they get alone, or the model is not packed at all.

The reference is plain transformers on one document at a time.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as hf
from made_models import document, documents, make, plain_loss, shape
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from duiti.config import LoraConfig
from duiti.data.batch import collate
from duiti.errors import DuitiError
from duiti.model import attention, document_attention, head
from duiti.model.attention import packed_attention
from duiti.model.lora import add_lora, find_targets
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.types import Batch, Example

LENGTHS = (5, 23, 1, 12)
# Hidden states are of order 1 behind a norm; a few hundred float32 roundings of 2^-24 = 6e-8 stand
# between two ways to sum the same attention: 1e-5 leaves an order of magnitude, and an error in the
# layout shows at 1e-1.
TOLERANCE = 1e-5


def plain_hidden(model: hf.PreTrainedModel, example: Example) -> Tensor:
    ids = torch.tensor(example.input_ids.astype(np.int64))[None]
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]


def probe() -> Batch:
    return collate(documents((9, 14, 11)))


PACKED = ["llama", "qwen3-tied", "qwen2-biased", "mistral-sliding", "qwen2-sliding",
          "gemma3-sliding", "gemma2-capped", "gpt-oss-sinks", "granite", "cohere"]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", PACKED)
def test_packed_hidden_states_are_those_of_each_document_alone(name: str) -> None:
    model, rows = make(name), documents(LENGTHS)
    assert why_alone(model, probe()) is None
    packed = SFTModel(model, is_packed=True).hidden_states(collate(rows))
    expected = torch.cat([plain_hidden(model, row) for row in rows])
    assert (packed - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_the_window_of_the_sliding_model_is_shorter_than_a_document_and_matters() -> None:
    model, row = make("mistral-sliding"), document(23, 0)
    windowed = plain_hidden(model, row)
    wide = hf.MistralForCausalLM(hf.MistralConfig(**shape(sliding_window=None)))
    wide.load_state_dict(model.state_dict())
    assert (windowed - plain_hidden(wide.eval(), row)).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in PACKED if name != "gpt-oss-sinks"])
def test_a_document_does_not_depend_on_the_text_before_it(name: str) -> None:
    """An expert of gpt-oss multiplies the tokens of all documents together: other tokens beside
    them, other blocks of the product, and so other roundings."""
    model = make(name)
    sft = SFTModel(model, is_packed=True)
    last = document(12, 7)
    one = sft.hidden_states(collate([document(9, 1), last]))[9:]
    # The same length: the same sums in the same order, so not a bit may differ.
    assert torch.equal(one, sft.hidden_states(collate([document(9, 2), last]))[9:])
    other = sft.hidden_states(collate([document(17, 3), last]))[17:]
    # The same products, cut into other blocks: a dozen roundings of 2^-24.
    assert (one - other).abs().max() <= 1e-6 * one.abs().max()


def test_no_gradient_reaches_another_document() -> None:
    model = make("llama")
    batch = collate(documents((9, 12)))
    embedded = model.get_input_embeddings()(batch.input_ids[None]).detach().requires_grad_()
    with packed_attention(model):
        output = model.base_model(
            inputs_embeds=embedded,
            position_ids=batch.position_ids[None],
            use_cache=False,
            cu_seqlens=batch.cu_seqlens,
        )
    output.last_hidden_state[0, 9:].square().sum().backward()
    assert embedded.grad is not None
    assert not embedded.grad[0, :9].any()
    assert embedded.grad[0, 9:].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2-capped", "gpt-oss-sinks"])
def test_caps_and_sinks_are_compared_with_eager_attention_and_matter(name: str) -> None:
    model, row = make(name), document(23, 3)
    assert model.config._attn_implementation == "eager"
    packed = SFTModel(model, is_packed=True).hidden_states(collate([document(9, 1), row]))[9:]
    if name == "gemma2-capped":
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
    else:
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(-100.0)
    assert (packed - plain_hidden(model, row)).abs().max() > 1e-2


@torch.no_grad()
def test_the_loss_of_a_model_that_caps_its_logits_is_that_of_plain_transformers() -> None:
    model, row = make("gemma2-capped"), document(23, 3)
    loss, _ = SFTModel(model, is_packed=True)(collate([document(8, 4), row]))
    expected = plain_loss(model, document(8, 4)) + plain_loss(model, row)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    model.config.final_logit_softcapping = None
    assert abs(plain_loss(model, row).item() - loss.item()) > 1e-2  # capping is not a no-op here


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama4-chunked", "qwen2-moe-sliding"])
def test_a_probe_shorter_than_the_window_does_not_hide_that_a_model_needs_its_mask(
    name: str,
) -> None:
    """These restrict their attention by a mask alone, and the kernel is not told of it. The
    shortest rows are too short to show that, so the probe adds one beyond the window."""
    model = make(name)
    model.base_model_prefix = "model"  # Llama 4 says "language_model", which it does not have
    long = documents((30, 21))
    is_packed = why_alone(model, collate(probe_rows(model, [*documents((5, 6)), *long]))) is None
    loss, _ = SFTModel(model, is_packed=is_packed)(collate(long))
    expected = sum(plain_loss(model, row).item() for row in long)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_backbone_that_transformers_misnames_is_found_or_refused() -> None:
    """`base_model` of a text-only Llama 4 is the whole model: its prefix names no attribute."""
    model, rows = make("llama4-chunked"), documents((5, 6))
    try:
        is_packed = why_alone(model, collate(rows)) is None
    except DuitiError:
        return
    loss, _ = SFTModel(model, is_packed=is_packed)(collate(rows))
    assert loss.item() == pytest.approx(sum(plain_loss(model, r).item() for r in rows), rel=1e-4)


@torch.no_grad()
def test_a_state_space_model_runs_one_by_one() -> None:
    model, rows = make("mamba"), documents((9, 14))
    assert why_alone(model, probe())
    loss, _ = SFTModel(model, is_packed=False)(collate(rows))
    assert loss.item() == pytest.approx(sum(plain_loss(model, r).item() for r in rows), rel=1e-5)


@torch.no_grad()
def test_logits_changed_in_an_unknown_way_are_refused() -> None:
    model = make("llama")
    model.lm_head.register_forward_hook(lambda module, given, output: output * 1.5)
    with pytest.raises(DuitiError, match="cannot be reproduced"):
        why_alone(model, probe())


@pytest.mark.parametrize("name", [*PACKED, "gpt2", "lora"])
def test_no_micro_batch_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have shapes and no numbers: whatever has to know one, for a Python value or for
    the shape of a result, raises here, and would wait for all work before it on a GPU. The
    attention is the one of CUDA, its kernel included."""
    monkeypatch.setattr(attention, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(head, "is_known", lambda number: False)
    model = make("llama" if name == "lora" else name).to(torch.bfloat16)
    if name == "lora":
        add_lora(model, find_targets(model, "all-linear"), LoraConfig(rank=2), seed=0)
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        fake, batch = copy.deepcopy((model, collate(documents(LENGTHS))))
    try:
        with mode:
            loss, _ = SFTModel(fake, compute_dtype=torch.bfloat16)(batch)
            loss.backward()
    finally:
        document_attention._borders_on.cache_clear()
        document_attention._band.cache_clear()
    assert any(p.grad is not None for p in fake.parameters())


@pytest.mark.parametrize(
    ("name", "before"), [("llama", "sdpa"), ("llama", "eager"), ("gemma2-capped", "eager")]
)
def test_the_attention_implementation_and_the_mode_are_restored(name: str, before: str) -> None:
    model = make(name).train()
    model.set_attn_implementation(before)
    why_alone(model, probe())
    assert model.config._attn_implementation == before
    assert model.training
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


@torch.no_grad()
def test_under_bfloat16_the_loss_stays_within_its_rounding() -> None:
    """Logits of two layers, each product rounded to 2^-8: about 2^-8 * sqrt(20 products) = 2 %."""
    model, rows = make("qwen3-tied"), documents((23, 12))
    expected = sum(plain_loss(model, row).item() for row in rows)
    low, _ = SFTModel(model, compute_dtype=torch.bfloat16)(collate(rows))
    assert low.item() == pytest.approx(expected, rel=0.02)
