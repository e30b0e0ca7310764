"""TRL, with or without Liger's kernels, on rows that are tokens already. A child of
`benchmarks.gpu`, in TRL's own environment; it imports nothing of duiti.

    python -m benchmarks.gpu.peer < job.json

A line goes to `job["lines"]` after every update. Before the line of the warm-up's end, and before
the last, it waits for the GPU: what lies between them is done work. `job["result"]` gets what TRL
logged of the first update, and the most memory that tensors had on the GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from benchmarks.speed.peer import LEAN, Lines


class GpuLines(Lines):
    """Lines that mean what they say on a GPU."""

    def __init__(self, path: Path, *, waits_at: tuple[int, ...]) -> None:
        super().__init__(path)
        self._waits_at = waits_at

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if state.global_step in self._waits_at and torch.cuda.is_available():
            torch.cuda.synchronize()
        super().on_step_end(args, state, control, **more)


def load(job: dict[str, Any]) -> Any:
    """The model to be trained. What is trained is float32, as with duiti."""
    weights = "bfloat16" if job["dtype"] == "bfloat16" and job["method"] == "lora" else "float32"
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, weights), attn_implementation=job["attention"]
    )
    if job["method"] == "lora":
        model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    return model


def train(job: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """Train as the job says."""
    updates = json.loads(Path(job["updates"]).read_text(encoding="utf-8"))[: job["num_updates"]]
    rows = datasets.Dataset.from_list([row for update in updates for row in update])
    config = SFTConfig(
        output_dir=job["output"],
        max_steps=len(updates),
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        per_device_train_batch_size=len(updates[0]) // job["parts"],
        gradient_accumulation_steps=job["parts"],
        bf16=job["dtype"] == "bfloat16",
        use_cpu=job["device"] == "cpu",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        **{**LEAN, "gradient_checkpointing": job["is_checkpointed"], **job["options"]},
    )
    lines = GpuLines(Path(job["lines"]), waits_at=(job["warmup"], len(updates)))
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[lines],
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if job["device"] != "cpu" else None
    result = {**lines.first, "peak_bytes": peak}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    given: dict[str, Any] = json.load(sys.stdin)
    train(given, load(given), AutoTokenizer.from_pretrained(given["model"]))
