"""Texts that a model is watched on: those it writes, and those of a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from duiti.config import LoraConfig
from duiti.errors import DataError, UsageError
from duiti.eval import anchor as anchor_module
from duiti.eval.anchor import Anchor, make_anchor, read_anchor, start_token
from duiti.model.lora import add_lora, find_targets, lora_layers
from tests.made import write_rows
from tests.made_models import make

TEXTS = ["The cat sat on the mat.", "水的化学式是 H2O。", "1 + 1 = 2, and 2 + 2 = 4."]


@pytest.fixture
def model(llama_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llama_dir)


def ids_of(anchor: Anchor) -> list[list[int]]:
    return [example.input_ids.tolist() for example in anchor.examples]


def test_every_token_but_the_first_is_predicted_and_none_is_weighted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    anchor = make_anchor(model, tokenizer, seed=0, num_texts=4, num_tokens=12)
    assert anchor.source == "generated"
    for example in anchor.examples:
        assert example.input_ids[0] == tokenizer.eos_token_id
        assert example.labels[0] == -100
        assert np.array_equal(example.labels[1:], example.input_ids[1:])
        assert example.weights is None
    assert anchor.num_tokens == sum(len(ids) - 1 for ids in ids_of(anchor)) == 4 * 12


def test_the_base_writes_what_plain_sampling_gives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Every text is likely: its tokens are as surprising, on average, as the model's entropy."""
    anchor = make_anchor(model, tokenizer, seed=0, num_texts=64, num_tokens=12)
    nll, entropy = [], []
    with torch.no_grad():
        for ids in ids_of(anchor):
            tokens = torch.tensor(ids)
            log_probs = model(input_ids=tokens[None]).logits[0, :-1].double().log_softmax(dim=-1)
            nll += log_probs.gather(1, tokens[1:, None])[:, 0].neg().tolist()
            entropy += (-(log_probs.exp() * log_probs).sum(dim=-1)).tolist()
    assert len(nll) == 64 * 12
    difference = np.array(nll) - np.array(entropy)
    # The mean of independent surprises of mean 0: three standard errors.
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))
    greedy = np.mean(nll) < 0.5 * np.mean(entropy)
    assert not greedy


def test_the_anchor_follows_from_seed_and_base_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    def made(seed: int) -> list[list[int]]:
        return ids_of(make_anchor(model, tokenizer, seed=seed, num_texts=3, num_tokens=8))

    first = made(0)
    torch.rand(7)  # whatever the caller draws
    assert made(0) == first
    assert made(1) != first
    add_lora(model, find_targets(model, "all-linear"), LoraConfig(rank=4), seed=0)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    assert made(0) == first  # adapters are off meanwhile
    assert all(layer.is_on for layer in lora_layers(model).values())


def test_making_an_anchor_leaves_modes_and_random_streams_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    model.get_input_embeddings().eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    make_anchor(model, tokenizer, seed=0, num_texts=2, num_tokens=4)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_texts_that_end_early_are_followed_by_more_up_to_a_bound(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    ending = copy.deepcopy(tokenizer)
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([[0]])).logits[0, -1]
        ending.eos_token = ending.convert_ids_to_tokens(int(log_probs.argmax()))
    end = ending.eos_token_id
    anchor = make_anchor(model, ending, seed=0, num_texts=32, num_tokens=16)
    texts = ids_of(anchor)
    assert any(ids[-1] == end and len(ids) < 17 for ids in texts)
    assert all(end not in ids[1:-1] for ids in texts)
    assert len(texts) > 32
    assert anchor.num_tokens == 32 * 16
    head = model.get_output_embeddings()
    with torch.no_grad():  # a base that never says anything but the end
        head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
        head.bias[end] = 100
    texts = ids_of(make_anchor(model, ending, seed=0, num_texts=3, num_tokens=16))
    assert texts == [[end, end]] * (3 * anchor_module.MOST_ROUNDS)


@pytest.mark.parametrize(("name", "num_texts"), [("llama", 70), ("mamba", 5)])
def test_no_text_is_written_twice(
    name: str, num_texts: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Neither where there are more than a batch, nor by a model that takes texts one by one."""
    anchor = make_anchor(make(name), tokenizer, seed=0, num_texts=num_texts, num_tokens=6)
    texts = [tuple(ids) for ids in ids_of(anchor)]
    assert len(texts) >= num_texts
    long = [ids for ids in texts if len(ids) > 4]  # two that end at once may be alike
    assert len(long) > num_texts / 2
    assert len(set(long)) == len(long)


def test_half_precision_over_float32_layers_writes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.bfloat16()
    model.get_submodule("model.layers.1").float()  # as last-n leaves it
    anchor = make_anchor(
        model, tokenizer, seed=0, num_texts=2, num_tokens=4, compute_dtype=torch.bfloat16
    )
    assert anchor.num_tokens == 8


def test_a_text_begins_with_bos_else_eos_else_another_special_token(
    bos_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert start_token(bos_tokenizer, 1000) == bos_tokenizer.bos_token_id
    assert start_token(tokenizer, 1000) == tokenizer.eos_token_id
    # A bos that the model has no embedding for.
    assert start_token(bos_tokenizer, bos_tokenizer.bos_token_id) == bos_tokenizer.eos_token_id
    core = tokenizer.backend_tokenizer
    padded = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<|endoftext|>", pad_token="<|pad|>"
    )
    assert start_token(padded, 1000) == padded.pad_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<|endoftext|>")
    with pytest.raises(UsageError, match="cannot write an anchor") as caught:
        start_token(bare, 1000)
    assert "--anchor" in caught.value.fix


def test_a_plain_text_is_cut_into_pieces_that_make_it_whole_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "\n\n".join(TEXTS) + "\n"
    path = tmp_path / "wiki.txt"
    path.write_text(text, encoding="utf-8")
    anchor = read_anchor(path, tokenizer, max_length=7)
    pieces = ids_of(anchor)
    assert [len(ids) for ids in pieces[:-1]] == [7] * (len(pieces) - 1)
    # A last piece of one token predicts nothing, and is no piece.
    whole = tokenizer.encode(text)
    assert [token for ids in pieces for token in ids] in (whole, whole[:-1])
    assert anchor.source == str(path)
    assert not anchor.is_cut
    assert anchor.num_tokens == sum(map(len, pieces)) - len(pieces)


def test_every_piece_begins_with_bos_where_the_tokenizer_does_that(
    tmp_path: Path, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    pieces = ids_of(read_anchor(path, bos_tokenizer, max_length=6))
    assert all(ids[0] == bos_tokenizer.bos_token_id and len(ids) <= 6 for ids in pieces)
    kept = [token for ids in pieces for token in ids[1:]]
    assert bos_tokenizer.decode(kept) == "".join(TEXTS)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_rows_are_texts_of_their_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    rows = [{"text": text, "source": "x"} for text in TEXTS]
    text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    anchor = read_anchor(path, tokenizer, max_length=1000)
    assert ids_of(anchor) == [tokenizer.encode(text) for text in TEXTS]
    if kind == "jsonl":
        assert [example.origin.line for example in anchor.examples] == [1, 2, 3]


def test_rows_at_fault_are_named_together_without_their_content(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "fine"}', '{"prompt": "secret"}', '{"text": 3}', '{"text": " "}', "{", "7"]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_anchor(path, tokenizer, max_length=10)
    message = str(caught.value)
    for number, reason in enumerate(["no field text", "not a string", "empty"], start=2):
        assert f"a.jsonl:{number}: " in message
        assert reason in message
    assert "a.jsonl:5: " in message
    assert "secret" not in message


@pytest.mark.parametrize("content", [b"", b" \n \n", b"\n"])
def test_a_file_without_text_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: bytes
) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="no text"):
            read_anchor(tmp_path / name, tokenizer, max_length=10)


def test_bytes_that_are_no_text_are_named_by_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nfine\n\xff\xfe bad\n")
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8"):
        read_anchor(path, tokenizer, max_length=10)
    path.write_bytes("fine 水".encode()[:-1])  # the file itself ends within a character
    with pytest.raises(DataError, match=r"a\.txt:1: not UTF-8"):
        read_anchor(path, tokenizer, max_length=10)


def test_a_file_that_is_missing_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("nowhere.txt", "nowhere.jsonl"):
        with pytest.raises(UsageError, match=f"no such file: {name}"):
            read_anchor(name, tokenizer, max_length=10)


def test_of_a_large_file_the_beginning_is_taken_and_that_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor_module, "MOST_BYTES", 11)  # 550 end in the middle of a character
    text = "水" * 1000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    write_rows(tmp_path / "a.jsonl", [{"text": text}] * 3)
    for name in ("a.txt", "a.jsonl"):
        anchor = read_anchor(tmp_path / name, tokenizer, max_length=16, max_tokens=50)
        assert anchor.num_tokens == 50
        assert anchor.is_cut
        assert "which has more" in anchor.describe()
        joined = [token for ids in ids_of(anchor) for token in ids]
        assert joined == tokenizer.encode(text)[: len(joined)]
