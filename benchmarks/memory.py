"""Memory that is known before the run: what was expected beside what the process has used. Writes
the table of docs/memory.md.

    python -m benchmarks.memory [--only NAME] [--write]

Ten runs, each a process of its own that starts `duiti train` for a few updates: three methods, both
dtypes, small and large vocabularies, widths from 192 to 1024, tied and untied heads, short and long
rows, activation checkpointing. Models are random and made here, rows too. Expected is what the run
wrote into its `env.json` before the first update, from shapes alone and once more after two real
micro-batches; measured is the peak of the process's resident memory, from the operating system,
when it has ended. A JSON with machine and versions goes to `benchmarks/results/memory.json`;
`--write` puts the table into the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

import duiti
from benchmarks.speed.machine import processor

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
PAGES = ("docs/memory.md", "docs/memory.zh-CN.md")
BEGIN, END = "<!-- memory: made by benchmarks/memory.py -->", "<!-- /memory -->"
BAR = 0.10
STOP = "<|im_end|>"


@dataclass(frozen=True)
class Case:
    """A run."""

    name: str
    kind: str
    """transformers' model type, or `tiny`."""
    shape: dict[str, Any] = field(default_factory=dict)
    stored: torch.dtype = torch.float32
    """Of the files."""
    words: tuple[int, int] = (20, 200)
    """The shortest and the longest answer."""
    flags: tuple[str, ...] = ()


def shape(width: int, layers: int, vocabulary: int, *, tied: bool) -> dict[str, Any]:
    """Of a decoder whose MLP is three times as wide."""
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 128),
        "head_dim": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
    }


HALF = torch.bfloat16
CASES = (
    Case("tiny, lora", "tiny"),
    Case("tiny, full", "tiny", flags=("--method", "full")),
    Case("256 wide, 32 k words, lora, fp32", "llama", shape(256, 8, 32_000, tied=False)),
    Case("512 wide, 152 k words tied, lora, bf16", "qwen3", shape(512, 6, 151_936, tied=True),
         stored=HALF, flags=("--dtype", "bfloat16")),
    Case("1024 wide, 152 k words tied, lora, bf16", "qwen3", shape(1024, 4, 151_936, tied=True),
         stored=HALF, flags=("--dtype", "bfloat16")),
    Case("1024 wide, 152 k words tied, lora, fp32 of bf16 files", "qwen3",
         shape(1024, 2, 151_936, tied=True), stored=HALF, flags=("--dtype", "float32")),
    Case("512 wide, 32 k words, full, fp32", "llama", shape(512, 6, 32_000, tied=False),
         flags=("--method", "full", "--dtype", "float32")),
    Case("1024 wide, 32 k words, last layer of 4, bf16", "llama",
         shape(1024, 4, 32_000, tied=False), stored=HALF,
         flags=("--method", "last-n", "--last-n.layers", "1", "--dtype", "bfloat16")),
    Case("768 wide, 12 layers, long rows, lora, bf16, checkpointing", "qwen2",
         shape(768, 12, 32_000, tied=True), stored=HALF, words=(200, 1500),
         flags=("--dtype", "bfloat16", "--activation-checkpointing")),
    Case("512 wide, 64 k words tied, full, bf16 of fp32 files, short rows", "qwen3",
         shape(512, 8, 64_000, tied=True), words=(5, 40),
         flags=("--method", "full", "--dtype", "bfloat16")),
)  # fmt: skip


def main() -> None:
    """Run every case and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if arguments.only not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(case, Path(folder)))
        print(line(rows[-1]), flush=True)
    if arguments.only:
        return
    found = {
        "rows": rows,
        "machine": {"cpu": processor(), "threads": os.environ.get("OMP_NUM_THREADS", "all")},
        "versions": {
            "duiti": duiti.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        for page in PAGES:
            write_table(ROOT / page, rows)
    worst = max(abs(row[key]) for row in rows for key in ("error_shapes", "error_rehearsal"))
    print(f"worst error {worst:.1%}, the bar is {BAR:.0%}")


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Expected and measured peak of one run."""
    model = "tiny" if case.kind == "tiny" else str(make_model(case, folder / "model"))
    data = make_rows(case, folder / "rows.jsonl")
    command = [
        sys.executable, "-m", "duiti", "train", str(data), "-m", model, "-o", str(folder / "run"),
        "--template", "chatml", "--max-steps", "3", "--batch-size", "12", "--plain", *case.flags,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DUITI_CACHE": str(folder / "cache")}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(said)
    memory = json.loads((folder / "run" / "env.json").read_text(encoding="utf-8"))["memory"]
    measured = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    from_shapes = memory["expected"]["peak_bytes"]
    rehearsed = memory["expected_after_rehearsal_bytes"]
    return {
        "name": case.name,
        "from_shapes_bytes": from_shapes,
        "after_rehearsal_bytes": rehearsed,
        "measured_bytes": measured,
        "error_shapes": from_shapes / measured - 1,
        "error_rehearsal": rehearsed / measured - 1,
        "expected": memory["expected"],
    }


def make_model(case: Case, folder: Path) -> Path:
    """A random model with a small tokenizer, in a folder."""
    tokenizer = make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    config = CONFIG_MAPPING[case.kind](**case.shape, **ids)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=case.stored).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a few merges: about two tokens a word."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", STOP],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([text(random.Random(n), 100) for n in range(50)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", STOP],
        clean_up_tokenization_spaces=False,
    )


def make_rows(case: Case, path: Path) -> Path:
    """Questions and answers of random words."""
    draw = random.Random(0)
    rows = [
        {
            "prompt": text(draw, draw.randint(5, 40)),
            "response": text(draw, draw.randint(*case.words)),
        }
        for _ in range(96)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text(draw: random.Random, num_words: int) -> str:
    """Made of syllables."""
    syllables = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve"]
    words = ("".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(num_words))
    return " ".join(words)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cells = [f"{row['measured_bytes'] / 1e6:,.0f} MB"]
    for key, error in (("from_shapes", "error_shapes"), ("after_rehearsal", "error_rehearsal")):
        cells.append(f"{row[f'{key}_bytes'] / 1e6:,.0f} MB ({row[error]:+.1%})")
    return f"| {row['name']} | {' | '.join(cells)} |"


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace what stands between the two marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    head, _, after = rest.partition(END)
    header = "\n".join(head.strip("\n").splitlines()[:2])  # the titles are the page's own language
    table = "\n".join(line(row) for row in rows)
    path.write_text(f"{before}{BEGIN}\n{header}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
