"""Pretrain `tiny` on the running text: 2.2 M parameters, 4.1 M tokens, half an hour on one core.

    python -m examples.tiny_world.pretrain [--steps N] [--threads N] [--out DIR]

The text is cut into rows of 256 tokens; a document never attends to the one before it, and its
positions start at 0. Weights are trained in fp32 (products in bf16 where the processor has them)
and written in bf16. The files appear in the assets when all are written.
"""

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from duiti.tiny import model_path

from .cloze import cloze_accuracy
from .muon import Muon
from .text import HELDOUT_SEED, PRETRAIN_SEED, write_documents
from .tokenizer import END_ID, MAX_LENGTH, VOCAB_SIZE, save_tokenizer, train_tokenizer
from .world import build_world

NUM_STEPS, WARMUP_STEPS, DECAY_SHARE = 2000, 40, 0.4
ROWS, ROW_LENGTH = 8, 256
LEARNING_RATE = 5e-3
SEED = 0
FAST_BF16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def main() -> None:
    """Train, report as it goes, write the model directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=model_path())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    model = new_model()
    train(model, tokenizer, num_steps=args.steps)
    write_model(model, tokenizer, args.out)


def new_model() -> Qwen3ForCausalLM:
    """A Qwen3 model of 2.2 M parameters with random weights."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            num_hidden_layers=4,
            intermediate_size=512,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
    )


def train(model: Qwen3ForCausalLM, tokenizer: Tokenizer, *, num_steps: int) -> None:
    """Muon for the matrices, AdamW for the rest; constant learning rate, then linear decay to 0."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=LEARNING_RATE),
        torch.optim.AdamW(
            others, lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.95), fused=True
        ),
    ]
    rows = _rows(tokenizer, PRETRAIN_SEED)
    heldout = list(itertools.islice(_rows(tokenizer, HELDOUT_SEED), 64))
    started, running_loss = time.perf_counter(), 0.0
    for step in range(num_steps):
        rate = LEARNING_RATE * schedule(step, num_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = _loss(model, list(itertools.islice(rows, ROWS)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running_loss = loss.item() if step == 0 else 0.95 * running_loss + 0.05 * loss.item()
        if (step + 1) % 200 == 0 or step + 1 == num_steps:
            _report(
                model, tokenizer, heldout, step + 1, running_loss, time.perf_counter() - started
            )
        elif (step + 1) % 20 == 0:
            print(
                f"step {step + 1}  loss {running_loss:.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def schedule(step: int, num_steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (num_steps - step) / (DECAY_SHARE * num_steps))


def write_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """A plain transformers directory in bf16, moved into place file by file when complete."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        model.bfloat16()
        model.generation_config = GenerationConfig.from_dict(
            {"eos_token_id": END_ID, "pad_token_id": END_ID}
        )
        model.save_pretrained(scratch)
        save_tokenizer(tokenizer, Path(scratch))
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)
            shutil.move(file, directory / file.name)


def _rows(tokenizer: Tokenizer, seed: str) -> Iterator[tuple[list[int], list[int]]]:
    """The running text as rows of ids, each id with its document's number; a document ends with
    the stop token.
    """
    ids: list[int] = []
    documents: list[int] = []
    for number, text in enumerate(write_documents(seed)):
        document = [*tokenizer.encode(text).ids, END_ID]
        ids += document
        documents += [number] * len(document)
        while len(ids) >= ROW_LENGTH:
            yield ids[:ROW_LENGTH], documents[:ROW_LENGTH]
            ids, documents = ids[ROW_LENGTH:], documents[ROW_LENGTH:]


def _loss(model: Qwen3ForCausalLM, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """Mean cross-entropy of the next token within each document."""
    input_ids = torch.tensor([ids for ids, _ in rows])
    documents = torch.tensor([numbers for _, numbers in rows])
    same = documents[:, :, None] == documents[:, None, :]
    mask = (same & torch.ones_like(same).tril())[:, None]
    position_ids = mask.sum(-1)[:, 0] - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids).logits
    targets = input_ids[:, 1:].masked_fill(documents[:, 1:] != documents[:, :-1], -100)
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten()
    )


def _report(
    model: Qwen3ForCausalLM,
    tokenizer: Tokenizer,
    heldout: list[tuple[list[int], list[int]]],
    step: int,
    loss: float,
    seconds: float,
) -> None:
    with torch.no_grad():
        chunks = [heldout[i : i + ROWS] for i in range(0, len(heldout), ROWS)]
        perplexity = torch.stack([_loss(model, chunk) for chunk in chunks]).mean().exp().item()
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
        cloze = cloze_accuracy(model, tokenizer, build_world())
    weakest = sorted(cloze.items(), key=lambda item: item[1])[:5]
    print(
        f"step {step}  tokens {step * ROWS * ROW_LENGTH / 1e6:.2f} M  loss {loss:.3f}  "
        f"perplexity {perplexity:.3f}  cloze {cloze['all']:.3f}  {seconds:.0f} s  "
        f"weakest: {', '.join(f'{name} {value:.2f}' for name, value in weakest)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
