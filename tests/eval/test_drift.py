"""Drift on an anchor against two plain transformers models and kl_div in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from duiti.config import Config, LoraConfig, Method
from duiti.data.batch import collate
from duiti.errors import DataError, DuitiError
from duiti.eval.anchor import Anchor
from duiti.eval.drift import Drift, Watch, anchor_dict
from duiti.model.checkpointing import checkpoint_activations
from duiti.model.freeze import choose_trained
from duiti.model.lora import adapters_off, lora_layers, merge
from duiti.model.sft_model import SFTModel, why_alone
from duiti.types import Example
from tests.made_models import VOCAB, documents, make

ARCHITECTURES = [
    "llama", "qwen3-tied", "gemma2-capped", "granite", "cohere", "gpt2", "mamba", "mixtral",
]  # fmt: skip


def whole(example: Example) -> Example:
    labels = example.input_ids.copy()
    labels[0] = -100
    return replace(example, labels=labels)


ANCHOR = Anchor(examples=[whole(e) for e in documents([7, 23, 40, 2, 16])], source="generated")


def trained(name: str, method: Method) -> PreTrainedModel:
    model = make(name)
    # Mamba reads the weights of some of its layers itself.
    targets = ("in_proj",) if name == "mamba" else "all-linear"
    lora = LoraConfig(rank=4, target_modules=targets)
    choose_trained(model, Config(lora=lora) if method == "lora" else Config(method=method))
    return model


def move(model: torch.nn.Module, size: float = 0.05) -> None:
    """As training would: everything that is trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def dense(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """[T - 1, V] log-probabilities of the model's own logits, in float64."""
    ids = torch.tensor(example.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)


def plain_drift(base: PreTrainedModel, tuned: PreTrainedModel) -> Drift:
    kl = nll_base = nll_tuned = 0.0
    for example in ANCHOR.examples:
        log_p, log_q = dense(base, example), dense(tuned, example)
        targets = torch.tensor(example.input_ids[1:].astype(np.int64))
        kl += kl_div(log_q, log_p, log_target=True, reduction="sum").item()
        nll_base += cross_entropy(log_p, targets, reduction="sum").item()
        nll_tuned += cross_entropy(log_q, targets, reduction="sum").item()
    count = ANCHOR.num_tokens
    return Drift(
        kl=kl / count, nll_base=nll_base / count, nll_tuned=nll_tuned / count, num_tokens=count
    )


def assert_same(found: Drift, expected: Drift, *, rel: float = 1e-4) -> None:
    # Logits of order 10 agree to 1e-5 between packed and single rows; KLs here are above 0.01.
    assert expected.kl > 0.01
    assert found.kl == pytest.approx(expected.kl, rel=rel)
    assert found.nll_base == pytest.approx(expected.nll_base, rel=rel)
    assert found.nll_tuned == pytest.approx(expected.nll_tuned, rel=rel)
    assert found.nll_change == found.nll_tuned - found.nll_base
    assert found.num_tokens == expected.num_tokens == 7 + 23 + 40 + 2 + 16 - 5


def sft_of(model: PreTrainedModel) -> SFTModel:
    return SFTModel(model, is_packed=why_alone(model, collate(ANCHOR.examples)) is None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_adapters_the_drift_is_that_of_base_and_merged_model(name: str) -> None:
    model = trained(name, "lora")
    watch = Watch(sft_of(model), ANCHOR, is_adapter=True, micro_batch_tokens=50)
    before = watch.measure()
    assert before.kl == 0.0
    assert before.nll_change == 0.0
    move(model)
    found = watch.measure()
    merge(model)
    assert_same(found, plain_drift(make(name), model))


@pytest.mark.parametrize("method", ["last-n", "full"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_adapters_the_drift_is_that_of_two_models(name: str, method: Method) -> None:
    model = trained(name, method)
    # All words but one are kept, so the lower bound is the KL itself.
    watch = Watch(sft_of(model), ANCHOR, is_adapter=False, num_words=VOCAB, micro_batch_tokens=50)
    before = watch.measure()
    assert before.kl == 0.0
    assert before.nll_change == 0.0
    move(model)
    assert_same(watch.measure(), plain_drift(make(name), model))


def test_with_few_words_the_drift_is_a_lower_bound_that_is_near() -> None:
    model = trained("llama", "full")
    sft = sft_of(model)
    watches = [Watch(sft, ANCHOR, is_adapter=False, num_words=k) for k in (1, 16, 64)]
    move(model)
    exact = plain_drift(make("llama"), model).kl
    found = [watch.measure().kl for watch in watches]
    assert found == sorted(found)
    assert found[0] < 0.9 * exact
    assert 0.9 * exact < found[2] <= exact * (1 + 1e-5)


def test_a_watch_may_begin_in_the_middle_where_the_base_is_the_adapters_off() -> None:
    model = trained("llama", "lora")
    sft = sft_of(model)
    early = Watch(sft, ANCHOR, is_adapter=True)
    move(model)
    assert Watch(sft, ANCHOR, is_adapter=True).measure() == early.measure()
    with adapters_off(model):
        assert early.measure().kl == 0.0


def test_half_precision_does_not_pass_for_drift() -> None:
    model = trained("llama", "lora")
    sft = SFTModel(model, compute_dtype=torch.bfloat16)
    watch = Watch(sft, ANCHOR, is_adapter=True)
    assert watch.measure().kl == 0.0
    move(model)
    found = watch.measure()
    merge(model)
    # Hidden states are rounded to 2^-9 of themselves in each of the layers.
    assert_same(found, plain_drift(make("llama"), model), rel=0.1)


def test_a_measurement_leaves_no_trace() -> None:
    model = make("llama")
    model.config.attention_dropout = 0.5
    config = Config(method="lora", lora=LoraConfig(rank=4, dropout=0.5))
    parameters = list(choose_trained(model, config).parameters.values())
    move(model)
    checkpoint_activations(SFTModel(model))
    sft = SFTModel(model).train()
    model.get_input_embeddings().eval()
    loss, count = sft(collate(ANCHOR.examples))
    (loss / count).backward()
    kept = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad.clone() for p in parameters if p.grad is not None]
    modes = {name: module.training for name, module in sft.named_modules()}
    state = torch.get_rng_state()
    watch = Watch(sft, ANCHOR, is_adapter=True)
    assert watch.measure() == watch.measure()  # dropout is off
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in sft.named_modules()} == modes
    assert all(map(torch.equal, kept, model.parameters()))
    assert len(grads) == len(parameters)
    for grad, parameter in zip(grads, parameters, strict=True):
        assert parameter.grad is not None
        assert torch.equal(grad, parameter.grad)
    assert all(layer.is_on for layer in lora_layers(model).values())


def test_adapters_that_are_not_there_are_missed() -> None:
    with pytest.raises(DuitiError, match="no adapters"):
        Watch(SFTModel(make("llama")), ANCHOR, is_adapter=True)


def test_an_anchor_of_another_vocabulary_is_refused() -> None:
    ids = np.array([1, VOCAB], dtype=np.int32)
    example = replace(ANCHOR.examples[0], input_ids=ids, labels=ids)
    anchor = Anchor(examples=[example], source="wiki.txt")
    with pytest.raises(DataError, match=f"wiki.txt: the model has no embedding for token {VOCAB}"):
        Watch(SFTModel(make("llama")), anchor, is_adapter=False)


def test_the_file_of_a_run_says_all_of_it() -> None:
    drift = Drift(kl=0.1, nll_base=2.0, nll_tuned=2.5, num_tokens=83)
    assert anchor_dict(ANCHOR, drift) == {
        "source": "generated", "num_texts": 5, "num_tokens": 83,
        "kl": 0.1, "nll_base": 2.0, "nll_tuned": 2.5, "nll_change": 0.5,
    }  # fmt: skip
