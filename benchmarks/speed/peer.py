"""TRL on rows that are tokens already. A child of `benchmarks/train_speed.py`, in TRL's own
environment; it imports nothing of duiti.

    python benchmarks/speed/peer.py < job.json

The job names a model folder, the rows of each update (`benchmarks/speed/setup.py`), the adapter to
start from and TRL's settings. The rows are given as `input_ids` and `labels`, which `SFTTrainer`
takes as they are, and in their order (`train_sampling_strategy="sequential"`).

A line goes to `job["lines"]` after every update; whoever waits for it has the clock. At the end
`job["result"]` holds what TRL logged of the first update: loss, gradient norm, tokens.
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
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

LEAN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
}
"""What every setting but the defaults has: nothing is computed twice, nothing is written. Fused
AdamW and the loss in chunks are defaults."""


class Lines(TrainerCallback):
    """Writes a line after every update, and keeps what is logged of the first."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")
        self.first: dict[str, float] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.file.write(json.dumps({"step": state.global_step}) + "\n")
        self.file.flush()
        control.should_log = control.should_log or state.global_step == 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not self.first and logs is not None:
            self.first = dict(logs)


def main() -> None:
    """Train as the job says."""
    job: dict[str, Any] = json.load(sys.stdin)
    settings = dict(job["settings"])
    is_low = job["dtype"] == "bfloat16"
    # What is trained stays float32 on both sides, and full fine-tuning trains every weight.
    lean_weights = job["dtype"] if job["method"] == "lora" else "float32"
    weights = "float32" if job["is_default"] else lean_weights
    attention = settings.pop("attention", "sdpa")
    has_autocast = settings.pop("autocast", is_low)
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, weights), attn_implementation=attention
    )
    if job["method"] == "lora":
        model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    updates = json.loads(Path(job["updates"]).read_text(encoding="utf-8"))[: job["num_updates"]]
    rows = datasets.Dataset.from_list([row for update in updates for row in update])
    lean = {} if job["is_default"] else LEAN
    config = SFTConfig(
        output_dir=job["output"],
        max_steps=len(updates),
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=has_autocast,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        **{**lean, **settings},
    )
    lines = Lines(Path(job["lines"]))
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[lines],
    )
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    first = {name: lines.first[name] for name in ("loss", "grad_norm", "num_tokens")}
    result = {**first, "trained_parameters": trained, "threads": torch.get_num_threads()}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
