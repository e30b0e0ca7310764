"""Rows for the benchmark: a sample of a real file, or made-up ones of the same lengths.

    write_sample(Path("gsm8k_train.jsonl"), out, num_rows=32)
    write_made(out, "gsm8k", num_rows=32)

Both are the same in every run.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal lengths in tokens, of prompts and of responses."""

    prompt: tuple[float, float]
    """Mean and deviation of the logarithm."""
    response: tuple[float, float]
    prompt_range: tuple[int, int]
    response_range: tuple[int, int]
    correlation: float
    """Of the two logarithms."""


LENGTHS = {
    # Fitted to the 7,473 rows of GSM8K's training set in tokens of Qwen's tokenizer.
    "gsm8k": Lengths(
        prompt=(4.03, 0.345),
        response=(4.71, 0.424),
        prompt_range=(12, 212),
        response_range=(29, 453),
        correlation=0.55,
    ),
    # Fitted to 1,000 rows of alpaca-gpt4-zh: short questions, answers of all lengths.
    "alpaca-zh": Lengths(
        prompt=(2.39, 0.57),
        response=(4.31, 1.03),
        prompt_range=(1, 93),
        response_range=(2, 529),
        correlation=-0.16,
    ),
}
SURPLUS_TOKENS = 11
"""What ChatML's own text costs more when each byte is a token ("assistant" is nine, not one)."""


def write_sample(source: Path, out: Path, *, num_rows: int) -> None:
    """Draw rows from a JSONL file or a JSON array."""
    text = source.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        rows: list[Any] = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if len(rows) < num_rows:
        raise SystemExit(f"{source} has {len(rows)} rows, and {num_rows} are needed")
    _write(out, random.Random(SEED).sample(rows, num_rows))


def write_made(out: Path, kind: str, *, num_rows: int) -> None:
    """Rows of letters: one token each with the tokenizer that is made for them."""
    chance = random.Random(SEED)
    rows = []
    for prompt, response in made_lengths(LENGTHS[kind], num_rows):
        prompt = max(1, prompt - SURPLUS_TOKENS)
        rows.append({"prompt": _text(chance, prompt), "response": _text(chance, response)})
    _write(out, rows)


def made_lengths(lengths: Lengths, num_rows: int) -> list[tuple[int, int]]:
    """Tokens of prompt and response of each row."""
    chance = random.Random(SEED)
    rest = math.sqrt(1 - lengths.correlation**2)
    found = []
    for _ in range(num_rows):
        first = chance.gauss(0, 1)
        second = lengths.correlation * first + rest * chance.gauss(0, 1)
        prompt = _length(lengths.prompt, lengths.prompt_range, first)
        found.append((prompt, _length(lengths.response, lengths.response_range, second)))
    return found


def _length(law: tuple[float, float], limits: tuple[int, int], deviate: float) -> int:
    mean, deviation = law
    return min(max(round(math.exp(mean + deviation * deviate)), limits[0]), limits[1])


def _text(chance: random.Random, num_letters: int) -> str:
    return "".join(chance.choice(_LETTERS) for _ in range(num_letters))


def _write(out: Path, rows: list[Any]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    out.write_text("".join(lines), encoding="utf-8")
