"""Run folders as `duiti train` leaves them, made up in a moment: only the files a report reads."""

import json
import math
import random
from pathlib import Path
from typing import Any

ZH = "水在标准大气压下的沸点是一百摄氏度。"
Json = Any


def write_json(path: Path, value: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, values: list[Json]) -> None:
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
    path.write_text("".join(lines), encoding="utf-8")


def metrics(num_steps: int = 600, *, eval_every: int = 60, seed: int = 0) -> list[Json]:
    chance = random.Random(seed)
    found = []
    for step in range(1, num_steps + 1):
        share = step / num_steps
        loss = 0.18 + 2.9 * math.exp(-9 * share)
        line = {
            "step": step,
            "epoch": 2 * share,
            "loss": loss * chance.uniform(0.75, 1.3),
            "num_tokens": 2048,
            "supervised_tokens": 700,
            "lr": 2e-4 * min(1, step / 18) * (0.5 + 0.5 * math.cos(math.pi * share)),
            "grad_norm": (0.4 + 3 * math.exp(-6 * share)) * chance.lognormvariate(0, 0.35),
            "tokens_per_s": 5400 + chance.gauss(0, 160) - (900 if step % 97 == 0 else 0),
            "peak_memory_bytes": 812_000_000,
        }
        if step % eval_every == 0:
            line |= {
                "val_loss": loss * 1.1 + 0.04,
                "val_exact_match": 1 - math.exp(-4.4 * share),
                "anchor_kl": 0.034 * (1 - math.exp(-3 * share)),
                "anchor_nll_change": 0.03 * (1 - math.exp(-3 * share)) + chance.gauss(0, 0.0015),
            }
        found.append(line)
    return found


def sample(number: int, *, prompt: str = "", text: str | None = None) -> Json:
    chance = random.Random(number)
    expected = text or (ZH if number % 3 == 1 else f"The Orla river is {40 + number} km long.")
    tuned = expected if number % 4 else expected.replace("1", "9").replace("一百", "九十")
    pieces = list(expected) if number % 3 == 1 else [f"{word} " for word in expected.split()]
    before = [chance.lognormvariate(0.9, 0.8) for _ in pieces]
    after = [value * chance.uniform(0.002, 0.15) for value in before]
    return {
        "prompt": prompt
        or ("水的沸点是多少?" if number % 3 == 1 else f"How long is river {number}?"),
        "expected": expected,
        "base": "The river is a river and the river is a river and" if number % 3 else "水是水",
        "tuned": tuned,
        "base_loss": sum(before) / len(before),
        "tuned_loss": sum(after) / len(after),
        "tokens": [
            {"text": piece, "before": b, "after": a}
            for piece, b, a in zip(pieces, before, after, strict=True)
        ],
    }


def answers(step: int, *, prompt: str = "", text: str = "") -> Json:
    """The answers to two questions behind an update."""
    asked = [prompt or f"Human: {question}\nAssistant:" for question in ("水?", "A river?")]
    return {"step": step, "answers": [
        {"prompt": each, "answer": text or f"at update {step} it says this"} for each in asked
    ]}  # fmt: skip


CONFIG = """\
# written by duiti; `duiti train -c config.yaml -o NEW` repeats the run
data:
- /data/rivers.jsonl
model: tiny
output: null
val: 5%
# the model has no chat template of its own
template: human-assistant
# what the model's positions allow
max_length: 512
method: lora
lora:
  rank: 16
  alpha: 32.0
epochs: 2
batch_size: 16
# usual for adapters on a model of this width
learning_rate: 0.0002
# 3 % of 600 updates
warmup_steps: 18
anchor: auto
proof: true
seed: 0
"""
SOURCE = {
    **{"rows": 5000, "kept": 4720, "filtered": 0, "dropped": 12, "val": 250, "leaked": 8},
    **{"cut": 0, "examples": 4720, "rejected": 10},
    "tokens": {
        **{"total": 410_000, "supervised": 131_000, "context": 251_500, "cut": 0},
        **{"dropped": 7_000, "val": 19_900, "leaked": 600, "answers_cut": 2_000},
    },
}


def interval(mean: float, half: float) -> Json:
    return {"mean": mean, "low": mean - half, "high": mean + half}


EVALUATION = {
    "n": 250,
    "supervised_tokens": 7012,
    "base": {
        **{"loss": 3.21, "perplexity": 24.8, "token_accuracy": 0.41, "exact_match": 0.0},
        **{"stop_rate": 0.02, "length_ratio": 3.9, "empty": 0.0, "other_language": 0.01},
    },
    "tuned": {
        **{"loss": 0.24, "perplexity": 1.27, "token_accuracy": 0.955, "exact_match": 0.988},
        **{"stop_rate": 1.0, "length_ratio": 1.0, "empty": 0.0, "other_language": 0.0},
    },
    "change": {
        "loss": interval(-2.97, 0.12),
        "token_accuracy": interval(0.545, 0.02),
        "exact_match": interval(0.988, 0.012),
        "stop_rate": interval(0.98, 0.016),
    },
}
ANCHOR = {
    **{"source": "generated", "num_texts": 16, "num_tokens": 1024},
    **{"kl": 0.033, "nll_base": 2.81, "nll_tuned": 2.84, "nll_change": 0.0296},
}
PROOF = {
    **{"passed": True, "problems": [], "opened_by": "PEFT 0.21.2", "is_adapter": True},
    **{"num_rows": 8, "num_tokens": 214, "num_chats": 12, "other_base": "", "seconds": 9.1},
    "saved": {"mean": 1e-7, "largest": 9.5e-07, "usual": 1e-7, "is_exact": True},
}


def strength() -> Json:
    points = [
        {
            "strength": round(0.1 * n, 1),
            "val_loss": 0.24 + 2.97 * (1 - 0.1 * n) ** 2 * (1 if n < 10 else 4),
            "anchor_kl": 0.033 * (0.1 * n) ** 2,
            "anchor_nll_change": 0.03 * (0.1 * n) ** 2,
        }
        for n in range(13)
    ]
    why = "the least drift within a standard error of the best held-out loss"
    return {"points": points, "recommended": 0.9, "why": why}


def rows(count: int = 24) -> Json:
    kinds = ["never_learned", "contradictory", "unlearned", "memorised", "learned"]
    found = [
        {
            "origin": f"rivers.jsonl:{31 + 57 * n}",
            "kind": kinds[n % 5],
            "losses": [3.4 - 0.05 * n, 2.2, 1.9][: 2 + n % 2],
            "why": "still at 1.9 nats after two epochs, when the others are at 0.2",
        }
        for n in range(count)
    ]
    counts = {"never_learned": 7, "contradictory": 4, "unlearned": 2, "memorised": 61}
    return {"epochs": 2, "counts": {**counts, "learned": 4646}, "rows": found}


FIND_LR = {
    "points": [
        {"learning_rate": rate, "val_loss": loss, "train_loss": loss * 0.9, "curve": [3, loss]}
        for rate, loss in (
            (3e-5, 2.4),
            (1e-4, 1.6),
            (2e-4, 1.1),
            (5e-4, 1.0),
            (1e-3, 1.4),
            (3e-3, 3.1),
        )
    ],
    "chosen": 2e-4,
    "why": "within the interval of the best, and lower",
}
MORE_DATA = {
    "points": [
        {"share": share, "rows": n, "val_loss": loss, "low": loss - 0.06, "high": loss + 0.06}
        for share, n, loss in ((0.25, 1180, 0.71), (0.5, 2360, 0.41), (1.0, 4720, 0.24))
    ],
    "says": "twice the rows took a third off the loss: more rows would help",
}


def make_run(folder: Path, **changes: Json) -> Path:
    """A whole run; a change of None leaves the file out."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Json] = {
        "config": CONFIG,
        "metrics": metrics(),
        "samples": [sample(number) for number in range(24)],
        "answers": [answers(step) for step in range(60, 601, 60)],
        "evaluation": EVALUATION,
        "anchor": ANCHOR,
        "proof": PROOF,
        "strength": strength(),
        "rows": rows(),
        "find_lr": FIND_LR,
        "more_data": MORE_DATA,
        "ledger": {
            "data": {"sources": [{"file": "/data/rivers.jsonl", **SOURCE}]},
            "warnings": ["12 rows are longer than 512 tokens and were dropped"],
        },
        "env": {
            **{"id": "0011", "duiti": "0.6.0", "torch": "2.13.0", "python": "3.11.2", "gpu": None},
            **{"started": "2026-11-24T17:00:00+00:00", "threads": 2, "system": "Linux x86_64"},
            "command": ["duiti", "train", "rivers.jsonl", "-m", "tiny", "--val", "5%"],
            "data": [{"file": "rivers.jsonl", "sha256": "ab" * 32}],
        },
    } | changes
    (folder / "adapter_model.safetensors").touch()
    for name, value in files.items():
        if value is None:
            continue
        if name == "config":
            (folder / "config.yaml").write_text(value, encoding="utf-8")
        elif name in ("metrics", "samples", "answers"):
            write_lines(folder / f"{name}.jsonl", value)
        else:
            write_json(folder / ("data/ledger.json" if name == "ledger" else f"{name}.json"), value)
    return folder
