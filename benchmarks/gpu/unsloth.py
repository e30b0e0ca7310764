"""Unsloth on rows that are tokens already. A child of `benchmarks.gpu`, in Unsloth's own
environment; it needs a GPU to be imported at all.

    python -m benchmarks.gpu.unsloth < job.json

The adapter starts from Unsloth's own random numbers: it is zero before the first update on either
side, so the loss is that of duiti, but the norm of the gradient is not.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import unsloth  # type: ignore[import-not-found]  # isort: skip  # changes what comes after it

import torch

from benchmarks.gpu.peer import train
from benchmarks.speed.scenarios import ALPHA, RANK

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(job: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer, as Unsloth's documentation has it."""
    checkpointing = "unsloth" if job["is_checkpointed"] else False
    is_full = job["method"] == "full"
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=job["model"],
        max_seq_length=job["longest"],
        dtype=torch.float32 if is_full else torch.bfloat16,
        load_in_4bit=False,
        full_finetuning=is_full,
        use_gradient_checkpointing=checkpointing,
    )
    if is_full:
        return model, tokenizer
    adapted = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        target_modules=PROJECTIONS,
        use_gradient_checkpointing=checkpointing,
        random_state=job["seed"],
    )
    return adapted, tokenizer


if __name__ == "__main__":
    given: dict[str, Any] = json.load(sys.stdin)
    train(given, *load(given))
