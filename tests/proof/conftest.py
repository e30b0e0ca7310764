"""One more small model: GPT-2, whose linear layers are stored the other way round; and one with a
chat template of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from made_saved import CHATML
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from duiti.model.load import load_model, load_tokenizer, resolve


@pytest.fixture(scope="session")
def gpt2_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256,
        initializer_range=0.2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def own_template_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template of its own."""
    folder = tmp_path_factory.mktemp("models") / "chatml"
    source = resolve(str(llama_dir))
    load_model(source, dtype=torch.float32, device="cpu").save_pretrained(folder)
    tokenizer = copy.deepcopy(load_tokenizer(source))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder
