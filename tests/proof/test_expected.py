"""Which rows and conversations are compared; and that looking at the model leaves no trace."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import DATE, prepared, settled, write_rows
from made_models import document
from made_models import make as model_of
from made_saved import CHATML
from transformers import PreTrainedTokenizerFast

from duiti.config import Config
from duiti.data.jobs import PrepareOptions, day
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template, load_template
from duiti.model.freeze import choose_trained
from duiti.proof.chats import NUM_ROWS as NUM_ROW_CHATS
from duiti.proof.chats import Chat, sample_chats
from duiti.proof.expected import (
    ENOUGH,
    MAX_TOKENS,
    NUM_ROWS,
    expectations,
    held_out_rows,
    scored_answer,
    scored_part,
)
from duiti.proof.plain_reader import prompt_of, token_logprobs


def store(*lengths: int) -> ExampleStore:
    return ExampleStore.from_examples([document(n, line) for line, n in enumerate(lengths, 1)])


def test_held_out_rows_come_first_and_short_ones_with_enough_to_score() -> None:
    lengths = [len(row.ids) for row in held_out_rows(store(60, 4, 40, 2 * ENOUGH, 50))]
    assert lengths == [32, 40, 50, 60, 4]
    assert held_out_rows(ExampleStore(), store(9, 10)) == held_out_rows(store(9, 10))
    lengths = [len(row.ids) for row in held_out_rows(store(80, 70), store(33, *[40] * 20))]
    assert lengths == [70, 80, 33, *[40] * (NUM_ROWS - 3)]


def test_tokens_are_bounded_and_a_row_too_long_is_cut_to_its_first_answer() -> None:
    rows = held_out_rows(store(5000, 300, 290))
    assert [len(row.ids) for row in rows] == [290]
    example = document(5000, 1)
    (row,) = held_out_rows(store(5000))
    assert len(row.ids) == MAX_TOKENS
    assert row.scored
    assert row == scored_part(example, MAX_TOKENS)
    first = 2500 - MAX_TOKENS // 2
    assert row.ids == example.input_ids[first : first + MAX_TOKENS].tolist()
    assert row.scored == list(range(MAX_TOKENS // 2, MAX_TOKENS))


def test_every_trained_token_of_a_whole_row_is_scored() -> None:
    example = document(20, 1)
    row = scored_part(example, 20)
    assert row == scored_answer(example.input_ids[:10].tolist(), example.input_ids[10:].tolist())


def test_log_probabilities_are_those_of_the_textbook() -> None:
    model, example = model_of("llama"), document(20, 1)
    row = scored_part(example, 20)
    (found,) = token_logprobs(model, [{"ids": row.ids, "scored": row.scored}])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    expected = [float(logits[t - 1].log_softmax(-1)[row.ids[t]]) for t in range(10, 20)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_looking_leaves_no_trace() -> None:
    model = model_of("gpt2")
    choose_trained(model, Config(lora={"rank": 2, "dropout": 0.5}))
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    rows = held_out_rows(store(20))
    expected = expectations(model, rows, [], dtype=torch.bfloat16, stops=[2])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    # B is zero: the adapter changes nothing yet.
    assert expected.base == expected.logprobs != expected.rounded[0]


def chats_of(
    tokenizer: PreTrainedTokenizerFast, folder: Path, rows: list[dict[str, Any]], **options: Any
) -> list[Chat]:
    template = bound(tokenizer)
    file = write_rows(folder / "rows.jsonl", rows)
    data = prepared(template, file, **options)
    store = settled(template, file, **options).train
    return sample_chats(template, PrepareOptions(date=DATE, **options), data.files, [store])


def bound(tokenizer: PreTrainedTokenizerFast) -> Template:
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHATML
    return load_template("model", own)


def of_rows(chats: list[Chat]) -> list[list[str]]:
    return [[str(m["content"]) for m in chat.messages] for chat in chats if chat.is_row]


def test_prompts_of_rows_are_those_that_were_trained(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Say", "input": "it.", "output": "It."},
        {"prompt": "Who <|im_end|> wrote?", "response": "Nobody."},
        {"messages": [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1", "train": False},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2"},
        ]},
    ]  # fmt: skip
    chats = chats_of(tokenizer, tmp_path, rows, special_tokens="escape")
    # The second is left out: plain transformers lets the token act that was text in training.
    assert of_rows(chats) == [["Say\nit."], ["Short.", "One?", "1", "Two?"]]
    for chat in chats:
        found = bound(tokenizer).tokenizer.apply_chat_template(
            chat.messages, add_generation_prompt=True
        )
        assert found["input_ids"] == chat.prompt_ids
    assert len(chats) > NUM_ROW_CHATS


def test_rows_that_are_gone_leave_the_common_questions(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who?", "response": "Me."}])
    template = bound(tokenizer)
    data = prepared(template, file)
    file.unlink()
    chats = sample_chats(template, PrepareOptions(date=DATE), data.files, [data.store])
    assert of_rows(chats) == []
    assert len(chats) == 4


def test_a_prompt_that_was_not_trained_is_not_taken_for_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The file was edited meanwhile: its first row is another one now."""
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who?", "response": "Me."}])
    template = bound(tokenizer)
    data = prepared(template, file)
    file.write_text(json.dumps({"prompt": "Whom?", "response": "Me."}) + "\n")
    chats = sample_chats(template, PrepareOptions(date=DATE), data.files, [data.store])
    assert of_rows(chats) == []


def test_the_first_token_is_predicted_by_nothing() -> None:
    whole = document(12, 1)
    everything = replace(whole, labels=whole.input_ids)  # as `train_on: all` has it
    assert scored_part(everything, 12).scored == list(range(1, 12))
    assert 0 not in scored_part(everything, 8).scored


def test_a_template_that_asks_for_the_date_is_told_todays(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Which is what plain transformers tells it."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ strftime_now('%d %B %Y') }}" + CHATML
    template = load_template("model", own)
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who?", "response": "Me."}])
    for date, num_rows in (("2001-02-03", 0), (day("auto"), 1)):
        data = prepared(template, file, date=date)
        chats = sample_chats(template, PrepareOptions(date=date), data.files, [data.store])
        assert len(of_rows(chats)) == num_rows
        for chat in chats:
            assert chat.date
            values = {"messages": chat.messages, "tools": chat.tools}
            found = prompt_of(own, values)
            assert found == chat.prompt_ids or chat.date != day("auto")
