"""Does the world do its job? Plain transformers and peft, none of duiti: LoRA on the training
pairs, then every question.

    python -m examples.tiny_world.measure [--method lora|full] [--epochs N] [--seed N]

Exact match means that greedy generation reproduces the whole answer and then stops. It is
computed by one pass over prompt and answer: greedy generation reproduces a sequence exactly when
every next token of it is the most likely one.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from duiti.tiny import data_path, model_path

from .build import build_pairs
from .cloze import cloze_accuracy
from .pairs import Pair
from .tokenizer import END_ID
from .world import build_world

BATCH_SIZE, WARMUP_STEPS = 16, 10
Encoded = tuple[list[int], int]
"""Ids, and how many of them are the prompt's."""


def main() -> None:
    """Base, training, tuned."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    cloze = cloze_accuracy(model, tokenizer, build_world())
    print(f"cloze {cloze['all']:.3f}; below 0.95: {_below(cloze)}")
    splits = build_pairs()
    report(model, tokenizer, splits, "base")
    if args.method == "lora":
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, lora)
    seconds = train(
        model,
        [encode(tokenizer, pair) for pair in splits["train"]],
        learning_rate=args.learning_rate,
        epochs=args.epochs,
        seed=args.seed,
    )
    print(f"trained {seconds:.1f} s")
    report(model, tokenizer, splits, "tuned", by_topic=True)


def encode(tokenizer: Tokenizer, pair: Pair) -> Encoded:
    """Prompt and response, encoded separately."""
    prompt = tokenizer.encode(f"Human: {pair.prompt}\nAssistant:").ids
    return [*prompt, *tokenizer.encode(f" {pair.response}").ids, END_ID], len(prompt)


def train(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    *,
    learning_rate: float,
    epochs: float,
    seed: int,
) -> float:
    """AdamW, short warm-up, linear decay to 0; the loss is the mean over the answers' tokens.
    Returns seconds.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    rng = random.Random(seed)
    num_steps = int(epochs * len(rows) / BATCH_SIZE)
    batches = [b for _ in range(math.ceil(epochs)) for b in _batches(rows, rng)]
    started = time.perf_counter()
    model.train()
    for step in range(num_steps):
        factor = min((step + 1) / WARMUP_STEPS, (num_steps - step) / (num_steps - WARMUP_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, factor)
        batch = sorted(batches[step], key=lambda row: len(row[0]))
        num_targets = sum(len(ids) - given for ids, given in batch)
        loss = 0.0
        for part in (batch[: BATCH_SIZE * 3 // 4], batch[BATCH_SIZE * 3 // 4 :]):
            loss += _backward(model, part, num_targets)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{num_steps}  loss {loss:.3f}  {seconds:.1f} s")
    model.eval()
    return time.perf_counter() - started


def report(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    splits: dict[str, list[Pair]],
    title: str,
    *,
    by_topic: bool = False,
) -> None:
    """Exact match on every split, and perplexity on the held-out running text."""
    print(f"{title}: perplexity {perplexity(model, tokenizer):.3f}")
    for name in ("train", "heldout", "unseen", "control"):
        pairs = splits[name][:1200]
        hits = exact_matches(model, [encode(tokenizer, pair) for pair in pairs])
        topics: dict[str, list[bool]] = {"all": hits}
        for pair, hit in zip(pairs, hits, strict=True):
            topics.setdefault(pair.topic, []).append(hit)
        shares = {topic: sum(h) / len(h) for topic, h in topics.items()}
        weak = f"; below 0.95: {_below(shares)}" if by_topic and name != "control" else ""
        print(f"  {name:8} {shares['all']:.4f} of {len(pairs)}{weak}", flush=True)


@torch.no_grad()
def exact_matches(model: torch.nn.Module, rows: Sequence[Encoded]) -> list[bool]:
    """Whether greedy generation gives exactly this answer and the stop token."""
    hits = [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for begin in range(0, len(order), 64):
        chunk = order[begin : begin + 64]
        ids, targets = _pad([rows[i] for i in chunk])
        right = (model(input_ids=ids[:, :-1]).logits.argmax(-1) == targets) | (targets == -100)
        for i, hit in zip(chunk, right.all(-1).tolist(), strict=True):
            hits[i] = hit
    return hits


@torch.no_grad()
def perplexity(model: torch.nn.Module, tokenizer: Tokenizer) -> float:
    """Of the held-out running text, each paragraph by itself with its stop token."""
    lines = data_path("running_text").read_text(encoding="utf-8").splitlines()
    rows = sorted(([*tokenizer.encode(line).ids, END_ID] for line in lines), key=len)
    loss, count = 0.0, 0
    for begin in range(0, len(rows), 32):
        ids, targets = _pad([(row, 1) for row in rows[begin : begin + 32]])
        logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
        loss += torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
        count += int((targets != -100).sum())
    return math.exp(loss / count)


def _batches(rows: Sequence[Encoded], rng: random.Random) -> list[list[Encoded]]:
    """An epoch in random order. (Batches of like length would be batches of like questions.)"""
    order = rng.sample(rows, len(rows))
    return [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]


def _backward(model: torch.nn.Module, rows: Sequence[Encoded], num_targets: int) -> float:
    """These rows' share of the batch's mean loss, padded among themselves."""
    if not rows:
        return 0.0
    ids, targets = _pad(rows)
    logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    (loss / num_targets).backward()
    return loss.item() / num_targets


def _pad(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded on the right, and for every position but the last the next id, or -100 where it
    is given.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[END_ID] * (width - len(row))] for row, _ in rows])
    targets = torch.tensor(
        [
            [-100 if i + 1 < given or i + 1 >= len(row) else row[i + 1] for i in range(width - 1)]
            for row, given in rows
        ]
    )
    return ids, targets


def _below(shares: dict[str, float]) -> str:
    weak = sorted((share, name) for name, share in shares.items() if share < 0.95)
    return ", ".join(f"{name} {share:.2f}" for share, name in weak) or "none"


if __name__ == "__main__":
    main()
