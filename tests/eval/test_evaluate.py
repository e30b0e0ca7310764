"""Held-out loss, questions and scores, against sums done by hand."""

from __future__ import annotations

import json
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
from duiti.data.batch import collate
from duiti.data.templates.template import load_template
from duiti.eval.evaluate import (
    compare,
    evaluation_dict,
    held_out_loss,
    questions,
    score,
    val_metrics,
)
from duiti.eval.metrics import exact_match, token_f1
from duiti.eval.questions import WINDOW, answer_limit, answers
from duiti.eval.token_losses import answer_token_losses, example_sums, token_losses, token_texts
from duiti.infer.generate import Answer
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
    texts: list[str] = []
    found = score(
        model, examples, metrics=("exact_match", "token_f1"),
        seen=lambda asked, answer, text: texts.append(text),
    )  # fmt: skip
    asked = questions(examples, model)
    expected = [each.expected for each in asked]
    assert len(texts) == len(expected) == 6
    limit = answer_limit(examples)
    alone = [model.generate([each.prompt], max_new_tokens=limit)[0] for each in asked]
    assert texts == [model.text(answer.ids) for answer in alone]
    figures = found.as_dict()
    assert figures["exact_match"] == sum(map(exact_match, texts, expected)) / 6
    assert figures["token_f1"] == pytest.approx(sum(map(token_f1, texts, expected)) / 6)
    assert figures["stop_rate"] == sum(answer.stopped for answer in alone) / 6
    assert figures["empty"] == sum(not text.strip() for text in texts) / 6
    wanted = sum(len(each.answer) - 1 for each in asked)  # each has its stop token
    assert figures["length_ratio"] == sum(len(answer.ids) for answer in alone) / wanted


def test_loss_perplexity_and_accuracy_are_those_of_the_models_own_logits(
    model: Model, examples: list[Example]
) -> None:
    hits, count = 0, 0
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor(example.input_ids.astype(np.int64))
            labels = torch.tensor(example.labels.astype(np.int64))[1:]
            best = model.hf(input_ids=ids[None]).logits[0, :-1].argmax(dim=-1)
            hits += int((best == labels)[labels != -100].sum())
            count += int((labels != -100).sum())
    losses = torch.cat(plain_losses(model.hf, examples)).double()
    for is_packed in (True, False):
        found = score(model, examples, metrics=(), is_packed=is_packed)
        assert found.as_dict() == {
            "loss": pytest.approx(losses.mean().item(), abs=1e-5),
            "perplexity": pytest.approx(losses.mean().exp().item(), rel=1e-5),
            "token_accuracy": hits / count,
        }
        assert found.supervised_tokens == count


def test_what_is_kept_of_a_row_does_not_depend_on_how_rows_are_batched(
    model: Model, examples: list[Example]
) -> None:
    losses = [row.sum().item() for row in plain_losses(model.hf, examples)]
    weights = [np.full(len(row), 3, np.float32) for row in examples]
    heavy = [replace(row, weights=own) for row, own in zip(examples, weights, strict=True)]
    for budget in (1, 40, 100, 4096):
        found = example_sums(SFTModel(model.hf), examples, micro_batch_tokens=budget)
        np.testing.assert_allclose(found.losses, losses, atol=1e-4)
        assert found.tokens.tolist() == [example.num_supervised for example in examples]
        thrice = example_sums(SFTModel(model.hf), heavy, micro_batch_tokens=budget)
        np.testing.assert_allclose(thrice.losses, 3 * found.losses)
        np.testing.assert_allclose(thrice.weights, 3 * found.tokens)
        assert thrice.hits.tolist() == found.hits.tolist()


def test_losses_of_tokens_never_need_all_logits_at_once(
    model: Model, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate(examples)
    sft = SFTModel(model.hf)
    whole, hits = token_losses(sft, batch)
    monkeypatch.setattr("duiti.model.head.CPU_TILE", (5, 7))
    tiled, tiled_hits = token_losses(sft, batch)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert torch.equal(tiled_hits, hits)


def test_losses_of_answers_are_those_of_their_tokens(model: Model, examples: list[Example]) -> None:
    asked = questions(examples, model)
    found = answer_token_losses(model, asked)
    expected = torch.cat(plain_losses(model.hf, examples)).tolist()
    assert [loss for losses in found for loss in losses] == pytest.approx(expected, abs=1e-5)
    for item, losses in zip(asked, found, strict=True):
        assert len(losses) == len(item.answer)
        texts = token_texts(model, item.answer)
        assert len(texts) == len(item.answer)
        assert "".join(texts) == model.prompt_text(item.answer)
        assert not any("\ufffd" in text for text in texts)


def test_rows_are_told_apart_by_where_they_stand_and_not_by_example(
    model: Model, examples: list[Example]
) -> None:
    twins = [replace(examples[0], origin=Origin("x", 1)), replace(examples[1],
             origin=Origin("x", 1)), replace(examples[2], origin=Origin("x", 2))]  # fmt: skip
    found = score(model, twins, metrics=("exact_match",))
    assert found.measures["loss"].sums.shape == (2, 2)
    assert found.measures["stop_rate"].sums[:, 1].tolist() == [2, 1]
    losses = [row.sum().item() for row in plain_losses(model.hf, twins)]
    np.testing.assert_allclose(
        found.measures["loss"].sums[:, 0], [losses[0] + losses[1], losses[2]], atol=1e-4
    )


def test_a_change_is_the_difference_with_the_interval_of_the_same_rows(
    model: Model, examples: list[Example]
) -> None:
    base = score(model, examples, metrics=("exact_match", "chrf"))
    same = compare(base, base)
    assert set(same) == set(base.measures)
    assert all(found.mean == found.low == found.high == 0 for found in same.values())
    # Every row's loss one nat per token lower: no draw says otherwise.
    losses = base.measures["loss"]
    lower = losses.sums - np.stack([losses.sums[:, 1], 0 * losses.sums[:, 1]], axis=1)
    tuned = replace(base, measures={**base.measures, "loss": replace(losses, sums=lower)})
    found = evaluation_dict(base, tuned, n=4)
    assert found["change"]["loss"] == pytest.approx({"mean": -1, "low": -1, "high": -1})
    assert found["n"] == 4
    assert found["base"]["loss"] == pytest.approx(found["tuned"]["loss"] + 1)
    json.dumps(found, allow_nan=False)
    assert evaluation_dict(base, None, n=4)["tuned"] is None


def test_metrics_while_training_are_those_of_the_rows_and_leave_no_trace(
    llama_dir: Path, examples: list[Example]
) -> None:
    own = load(llama_dir, device="cpu")
    sft = SFTModel(own.hf).train()
    own.hf.model.layers[0].eval()  # one that somebody has put to rest
    modes = [module.training for module in sft.modules()]
    state = torch.get_rng_state()
    before = [parameter.clone() for parameter in own.hf.parameters()]
    found = val_metrics(own, sft, examples, ("token_f1", "chrf"))
    assert [module.training for module in sft.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, own.hf.parameters(), before))
    assert val_metrics(own, sft, examples, ()) == {}
    whole = score(own, examples, metrics=("token_f1", "chrf"))
    assert found == {name: whole.value(name) for name in ("token_f1", "chrf")}


def test_rows_are_answered_some_at_a_time(
    model: Model, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(answers(model, examples, max_new_tokens=4))
    monkeypatch.setattr("duiti.eval.questions.WINDOW", 2)
    store = Store(examples)
    asking = answers(model, store, max_new_tokens=4)
    next(asking)
    assert set(store.reads) == {0, 1}  # the third is not read yet
    assert [answer for _, answer in asking] == [answer for _, answer in whole[1:]]
    assert WINDOW > 100


def test_where_memory_runs_out_answers_are_made_in_smaller_batches(
    model: Model, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, budgets = model.generate, []

    def short_of_memory(prompts: list[list[int]], **how: int) -> list[Answer]:
        budgets.append(how["batch_tokens"])
        if how["batch_tokens"] > 5000:
            raise torch.OutOfMemoryError("no")
        return plain(prompts, **how)

    expected = list(answers(model, examples, max_new_tokens=4))
    monkeypatch.setattr(model, "generate", short_of_memory)
    assert list(answers(model, examples, max_new_tokens=4)) == expected
    assert budgets == [16384, 8192, 4096]


def test_an_answer_is_given_up_on_some_hundred_tokens_beyond_the_longest() -> None:
    def of_length(length: int) -> Example:
        ids = np.arange(length + 3, dtype=np.int32)
        labels = np.where(ids < 3, -100, ids).astype(np.int32)
        return Example(input_ids=ids, labels=labels, origin=Origin("x", 1))

    assert answer_limit([of_length(5), of_length(20)]) == 48
    assert answer_limit([of_length(3000)]) == 3520


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
    whole = {"exact_match": 1.0, "stop_rate": 1.0, "empty": 0.0, "length_ratio": 1.0}
    assert found["tuned"] == pytest.approx({**found["tuned"], **whole})
    assert found["change"]["exact_match"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["change"]["loss"]["high"] < 0
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
    assert found["base"]["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["tuned"] is None
