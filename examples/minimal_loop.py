"""The parts without the recipe: LoRA on the embedded model `tiny`, in a training loop of your own.

    python examples/minimal_loop.py --steps 60

It asks held-out questions, trains on pairs about other things, asks again, and leaves an adapter
that PEFT opens, as does `duiti chat runs/minimal-loop`. `duiti.sft.finetune` adds what a real run
needs: checks, validation, logs, a reason for every setting. Takes some ten seconds.
"""

from __future__ import annotations

import argparse
from itertools import count, islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from duiti.config import LoraConfig
from duiti.data.batch import collate, epoch_updates, micro_batches
from duiti.data.jobs import make_encoder
from duiti.data.reading.read import read_rows
from duiti.data.rows.formats import to_sample
from duiti.data.templates.template import Template, load_template
from duiti.data.tokens.encode import Encoder
from duiti.infer.generate import generate
from duiti.infer.model import stop_ids_of
from duiti.model.adapter import save_adapter
from duiti.model.load import load_model, load_tokenizer, resolve
from duiti.model.lora import add_lora, find_targets
from duiti.model.sft_model import SFTModel
from duiti.tiny import DataName, data_path
from duiti.training.optim import RatePlan, learning_rate_at, make_optimizer
from duiti.types import Example, Row, Sample

LORA = LoraConfig(rank=16, alpha=32)


def read_samples(name: DataName, num_rows: int) -> list[Sample]:
    """Row → Sample: lines of a file to messages."""
    rows = islice(read_rows(data_path(name)), num_rows)
    return [to_sample(row) for row in rows if isinstance(row, Row)]


def encode(samples: list[Sample], encoder: Encoder) -> list[Example]:
    """Sample → Example: messages to ids and labels, which are -100 on all that is given."""
    return [
        piece.example(sample.origin)
        for sample in samples
        for piece in encoder.encode(sample).pieces
    ]


def train(sft: SFTModel, examples: list[Example], rate: RatePlan, *, batch_size: int) -> None:
    """The gradient of an update is that of the mean over all its trained tokens: losses are summed
    over the micro-batches and divided once, so another cut into micro-batches changes nothing."""
    parameters = [parameter for parameter in sft.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, weight_decay=0.0)
    lengths = [len(example) for example in examples]
    updates = (
        rows
        for epoch in count()
        for rows in epoch_updates(len(examples), batch_size, seed=0, epoch=epoch)
    )
    for step, rows in enumerate(islice(updates, rate.total_steps), start=1):
        optimizer.zero_grad()
        loss_sum = weight_sum = 0.0
        for part in micro_batches(rows, lengths, budget=1024):
            loss, weight = sft(collate([examples[row] for row in part]))
            loss.backward()
            loss_sum += loss.item()
            weight_sum += weight
        for parameter in parameters:
            assert parameter.grad is not None  # every adapter takes part in every update
            parameter.grad /= weight_sum
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, rate)
        optimizer.step()
        print(f"step {step} loss {loss_sum / weight_sum:.4f}")


def ask(
    model: PreTrainedModel, template: Template, encoder: Encoder, samples: list[Sample], when: str
) -> None:
    """Answer the questions; print the first answer, and how many are right to the letter."""
    prompts = [encoder.prompt_ids(sample.messages[:-1]) for sample in samples]
    stop_ids = stop_ids_of(model, template)
    answers = generate(model, prompts, stop_ids=stop_ids, max_new_tokens=32)
    texts = [str(template.tokenizer.decode(list(answer.ids))).strip() for answer in answers]
    right = sum(s.messages[-1].content == text for s, text in zip(samples, texts, strict=True))
    print(f"{when}: {texts[0]}\n{when}, right: {right} of {len(texts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the embedded model in a plain loop.")
    parser.add_argument("--steps", type=int, default=60, help="updates of the weights")
    parser.add_argument("--output", type=Path, default=Path("runs/minimal-loop"))
    arguments = parser.parse_args()

    source = resolve("tiny")
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=torch.float32, device="cpu")
    template = load_template("human-assistant", tokenizer)
    encoder = make_encoder(template)
    held_out = read_samples("heldout", 40)

    print(f"question: {held_out[0].messages[0].content}")
    ask(model, template, encoder, held_out, "before")
    add_lora(model, find_targets(model, LORA.target_modules), LORA, seed=0)
    rate = RatePlan(peak=2e-3, schedule="cosine", warmup_steps=3, total_steps=arguments.steps)
    examples = encode(read_samples("train", 800), encoder)
    train(SFTModel(model).train(), examples, rate, batch_size=16)
    ask(model, template, encoder, held_out, "after")

    arguments.output.mkdir(parents=True, exist_ok=True)
    save_adapter(model, arguments.output, LORA, base=source.name)
    print(f"saved: {arguments.output}")


if __name__ == "__main__":
    main()
