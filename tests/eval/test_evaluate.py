"""Held-out loss, questions and scores, against sums done by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from made import examples_of
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from duiti import api
from duiti.data.templates.template import load_template
from duiti.eval.evaluate import held_out_loss, questions, score
from duiti.eval.metrics import METRICS, exact_match
from duiti.infer.model import Model, load
from duiti.model.sft_model import SFTModel
from duiti.types import Example, Origin

ROWS = [
    {"prompt": "What is the capital of France?", "response": "Paris."},
    {"prompt": "Who wrote this?", "response": "Nobody knows; everybody asks.  "},
    {"prompt": "水的化学式是什么？", "response": "水的化学式是 H2O。\n"},
    {
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "And 2 + 2?"},
            {"role": "assistant", "content": "4, of course"},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": " yes "},
        ]
    },
]


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> Model:
    return load(llama_dir, device="cpu")


@pytest.fixture(scope="module")
def examples(model: Model) -> list[Example]:
    return list(examples_of(model.template, ROWS))


def plain_losses(model: PreTrainedModel, examples: list[Example]) -> list[torch.Tensor]:
    found = []
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor(example.input_ids.astype(np.int64))
            labels = torch.tensor(example.labels.astype(np.int64))[1:]
            logits = model(input_ids=ids[None]).logits[0, :-1]
            found.append(
                cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
            )
    return found


def test_the_loss_is_the_mean_over_all_tokens_however_rows_are_batched(
    model: Model, examples: list[Example]
) -> None:
    losses = plain_losses(model.hf, examples)
    expected = torch.cat(losses).double().mean().item()
    by_row = torch.stack([row.mean() for row in losses]).mean().item()
    assert abs(by_row - expected) > 1e-3  # a mean of means would be told apart
    sft = SFTModel(model.hf)
    for budget in (1, 40, 100, 4096):
        # Losses of order 10 from logits that agree to 1e-6.
        found = held_out_loss(sft, examples, micro_batch_tokens=budget)
        assert found == pytest.approx(expected, abs=1e-5)
    one_by_one = SFTModel(model.hf, is_packed=False)
    assert held_out_loss(one_by_one, examples) == pytest.approx(expected, abs=1e-5)


def test_the_loss_counts_each_token_with_its_weight(model: Model, examples: list[Example]) -> None:
    losses = [row.double() for row in plain_losses(model.hf, examples)]
    random = np.random.default_rng(0)
    weighted = [examples[0]]  # one has none
    expected, weight_sum = losses[0].sum().item(), float(len(losses[0]))
    for row, row_losses in zip(examples[1:], losses[1:], strict=True):
        weights = random.uniform(0.2, 5.0, len(row)).astype(np.float32)
        weighted.append(replace(row, weights=weights))
        own = torch.tensor(weights[row.labels != -100].astype(np.float64))
        expected += (own * row_losses).sum().item()
        weight_sum += own.sum().item()
    expected /= weight_sum
    assert abs(expected - torch.cat(losses).mean().item()) > 1e-3  # would be told apart
    sft = SFTModel(model.hf)
    for budget in (1, 40, 100, 4096):
        # Losses of order 10 from logits that agree to 1e-6.
        found = held_out_loss(sft, weighted, micro_batch_tokens=budget)
        assert found == pytest.approx(expected, abs=1e-5)
    twice = [replace(row, weights=np.full(len(row), 2, np.float32)) for row in examples]
    assert held_out_loss(sft, twice) == held_out_loss(sft, examples)


@dataclass
class Store(Sequence[Example]):
    """Examples that know their lengths and count how often each is read."""

    rows: list[Example]
    reads: Counter[int] = field(default_factory=Counter)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return np.array([len(row) for row in self.rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError("a store is read where it is needed, not through")

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        self.reads[index] += 1
        return self.rows[index]


def test_every_example_of_a_store_is_read_once(model: Model, examples: list[Example]) -> None:
    store, sft = Store(examples), SFTModel(model.hf)
    found = held_out_loss(sft, store, micro_batch_tokens=100)
    assert found == held_out_loss(sft, examples, micro_batch_tokens=100)
    assert store.reads == dict.fromkeys(range(len(examples)), 1)


def test_measuring_leaves_mode_gradients_and_random_stream_alone(
    llama_dir: Path, examples: list[Example]
) -> None:
    hf = AutoModelForCausalLM.from_pretrained(llama_dir, attention_dropout=0.5)
    sft = SFTModel(hf).train()
    state = torch.get_rng_state()
    one, two = held_out_loss(sft, examples), held_out_loss(sft, examples)
    assert one == two  # dropout is off
    assert sft.training
    assert hf.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in hf.parameters())
    sft.eval()
    held_out_loss(sft, examples)
    assert not sft.training


@pytest.mark.parametrize("name", ["human-assistant", "instruction-response", "alpaca", "chatml"])
def test_questions_give_prompt_and_answer_back_exactly(model: Model, name: str) -> None:
    template = load_template(name, model.tokenizer)
    stops = frozenset(model.tokenizer.encode(template.stop, add_special_tokens=False))
    bound = Model(model.hf, template, stop_ids=stops, name="x")
    found = questions(examples_of(template, ROWS), bound)
    turns = []
    for row in ROWS:
        messages = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        turns += [(messages[:i], m["content"]) for i, m in enumerate(messages) if i % 2]
    assert [asked.expected for asked in found] == [answer for _, answer in turns]
    for asked, (given, _) in zip(found, turns, strict=True):
        text = model.tokenizer.apply_chat_template(
            given, chat_template=template.source, add_generation_prompt=True, tokenize=False
        )
        assert asked.prompt == model.tokenizer.encode(text, add_special_tokens=False)


def test_only_trained_answers_are_asked(model: Model) -> None:
    messages = [dict(m) for m in ROWS[3]["messages"]]
    messages[1]["train"] = False
    found = questions(examples_of(model.template, [{"messages": messages}]), model)
    assert [asked.expected for asked in found] == ["4, of course", " yes "]


def test_a_question_whose_answer_ends_the_row_without_a_stop_keeps_its_last_token(
    model: Model,
) -> None:
    ids = np.array(model.tokenizer.encode("Human: a\nAssistant: b c"), dtype=np.int32)
    labels = ids.copy()
    labels[:-2] = -100
    (asked,) = questions([Example(input_ids=ids, labels=labels, origin=Origin("x", 1))], model)
    assert asked.prompt == ids[:-2].tolist()
    assert asked.expected == model.tokenizer.decode(ids[-2:].tolist()).removeprefix(" ")


def test_scores_are_those_of_the_answers(model: Model, examples: list[Example]) -> None:
    found, texts = score(model, examples)
    prompts = [asked.prompt for asked in questions(examples, model)]
    expected = [asked.expected for asked in questions(examples, model)]
    assert len(texts) == len(expected) == 6
    assert found.metrics == {"exact_match": sum(map(exact_match, texts, expected)) / 6}
    limit = 2 * max(sum(e.labels != -100) for e in examples) + 8
    alone = [model.generate([prompt], max_new_tokens=int(limit))[0] for prompt in prompts]
    assert texts == [model.text(answer.ids) for answer in alone]
    assert found.stop_rate == sum(answer.stopped for answer in alone) / 6


def test_exact_match_forgives_white_space_around_only() -> None:
    assert METRICS["exact_match"] is exact_match
    assert exact_match(" Paris.\n", "Paris.") == 1.0
    assert exact_match("paris.", "Paris.") == 0.0
    assert exact_match("Pa ris.", "Paris.") == 0.0


def test_evaluate_gives_base_and_tuned_as_computed_by_hand(llama_dir: Path, tmp_path: Path) -> None:
    run = api.train(
        ROWS, model=str(llama_dir), output=str(tmp_path / "run"), epochs=40, batch_size=4,
        method="full", learning_rate=3e-3, device="cpu", proof=False, quiet=True,
    )  # fmt: skip
    found = api.evaluate(run, ROWS, device="cpu")
    model = load(run, device="cpu")
    examples = list(examples_of(model.template, ROWS))
    base = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    tuned = AutoModelForCausalLM.from_pretrained(run.path).eval()
    for key, plain in (("base", base), ("tuned", tuned)):
        expected = torch.cat(plain_losses(plain, examples)).double().mean().item()
        assert found[key]["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["base"]["exact_match"] == 0.0
    assert found["tuned"] == pytest.approx({**found["tuned"], "exact_match": 1.0, "stop_rate": 1.0})
    assert found["n"] == 4
    assert found["supervised_tokens"] == sum(example.num_supervised for example in examples)


def test_a_model_that_cannot_be_packed_is_measured_one_by_one(
    llama_dir: Path, tmp_path: Path, model: Model, examples: list[Example]
) -> None:
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(model.tokenizer),
            hidden_size=32,
            intermediate_size=48,
            head_dim=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            initializer_range=0.2,
            pad_token_id=1,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).eval()
    gemma.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    found = api.evaluate(tmp_path, ROWS, metrics=(), device="cpu")
    expected = torch.cat(plain_losses(gemma, examples)).double().mean().item()
    assert found["base"] == {"loss": pytest.approx(expected, abs=1e-5)}
    assert found["tuned"] is None
