"""The tokenizer: byte-level BPE, 3,072 entries, so every string of any script comes back exactly.

Every Chinese character (one of the world's is one token) and every digit stands alone. The words
of the usual prompt templates are whole tokens, though the running text has none of them, so that
a template costs little and is the same few ids everywhere.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from . import questions_en, questions_zh
from .text import PRETRAIN_SEED, write_documents

VOCAB_SIZE = 3072
END_OF_TEXT = "<|endoftext|>"
END_ID = 0
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
MAX_LENGTH = 1024
_NUM_DOCUMENTS = 12_000
_TEMPLATE_WORDS = (
    *("Human", "Assistant", "System", "User", "Instruction", "Input", "Response"),
    *("Question", "Answer", "user", "assistant"),
    " Human Assistant System User Instruction Input Response Question Answer",
    " user assistant system",
    "system: human\n### Instruction:\n\n### Input:\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further",
    " context. Write a response that appropriately completes the request.",
    "You are a helpful assistant.",
    "问题：回答：用户：助手：系统：指令：输入：",
)


def train_tokenizer() -> Tokenizer:
    """The same tokenizer every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}|\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """`tokenizer.json` and the `tokenizer_config.json` that transformers reads; no chat template,
    no start token.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def _training_text() -> Iterator[str]:
    documents = list(itertools.islice(write_documents(PRETRAIN_SEED), _NUM_DOCUMENTS))
    yield from documents
    characters = sorted({c for d in documents for c in d if not c.isascii()})
    yield from itertools.chain.from_iterable(itertools.repeat(characters, 300))
    questions = [
        *questions_en.QUESTIONS.values(),
        *questions_zh.QUESTIONS.values(),
        *(m.TRANSLATE for m in (questions_en, questions_zh)),
        *(m.SUMMARISE for m in (questions_en, questions_zh)),
    ]
    phrasings = [p.replace("{n}", "") for q in questions for p in (*q.trained, *q.unseen)]
    yield from itertools.chain.from_iterable(itertools.repeat(phrasings, 300))
    yield from itertools.chain.from_iterable(itertools.repeat(_TEMPLATE_WORDS, 1000))
