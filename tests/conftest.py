"""Throwaway tokenizers and two-layer random models, made once per session in about a second.

| fixture | what |
|---|---|
| `tokenizer` | byte-level BPE, about 500 tokens, no chat template, adds nothing by itself |
| `bos_tokenizer` | the same, but it begins every text with `<|bos|>` |
| `metaspace_tokenizer` | SentencePiece-like: `▁` for a space, and one before every text |
| `legacy_metaspace_tokenizer` | the same, and `▁` after every special token too |
| `llama_dir` | a saved Llama-like model, head untied, with `tokenizer` |
| `qwen3_dir` | a saved Qwen3-like model, head tied to the embedding, with `tokenizer` |

The tokenizers are shared: a test that sets a chat template works on a `copy.deepcopy`.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, and for child processes
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)

# Session fixtures are shared by all examples on purpose; a slow machine is no failure; the same
# examples in every run.
settings.register_profile(
    "duiti",
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("duiti")

EOS, PAD, IM_START, IM_END, BOS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|bos|>",
)
CORPUS = [
    "Human: What is the capital of France?\nAssistant: The capital of France is Paris.",
    "### Instruction:\nTranslate the sentence.\n\n### Response:\nThe cat sat on the mat.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "system\nuser\nassistant\nYou answer in one word.\n",
    "1 + 1 = 2, and 2 + 2 = 4. Who wrote this? Nobody knows; everybody asks.",
    "水的化学式是什么？水的化学式是 H2O。",
]


def _pass_over(number: int, frame: FrameType | None) -> None:
    """As if the signal was ignored, but what is started from here does not ignore it."""


# A shell has its background jobs ignore Ctrl-C, `nohup` has them ignore a hang-up, and children
# inherit that: tests that ask a child to stop would wait for good.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _pass_over)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of tests, and of the processes that they start, is not the user's to keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUITI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level([EOS, PAD, IM_START, IM_END])


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    found = byte_level([EOS, PAD, IM_START, IM_END, BOS])
    found.bos_token = BOS
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, found.convert_tokens_to_ids(BOS))]
    )
    return found


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    return metaspace(prepend_scheme="first")


@pytest.fixture(scope="session")
def legacy_metaspace_tokenizer() -> PreTrainedTokenizerFast:
    return metaspace(prepend_scheme="always")


@pytest.fixture(scope="session")
def llama_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(**_shape(tokenizer), tie_word_embeddings=False)
    torch.manual_seed(1)
    return _save(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def qwen3_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen3Config(**_shape(tokenizer), tie_word_embeddings=True, head_dim=16)
    torch.manual_seed(2)
    return _save(Qwen3ForCausalLM(config), tokenizer, tmp_path_factory.mktemp("models") / "qwen3")


def byte_level(specials: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text is tokens and comes back unchanged."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return _wrap(raw)


def metaspace(*, prepend_scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's: `▁` stands for a space and is put before a text."""
    pre = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=True)
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=240, min_frequency=2, show_progress=False)
    )
    learnt = json.loads(raw.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([EOS, PAD, IM_START, IM_END])
    return _wrap(tokenizer)


def _wrap(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IM_START, IM_END],
        clean_up_tokenization_spaces=False,
    )


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | float | None]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Five times the usual: tokens must differ in their effect for a test to see it.
        "initializer_range": 0.1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def _save(
    model: LlamaForCausalLM | Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
