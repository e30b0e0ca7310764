"""Makes, once per scenario, what both sides start from. A child of `benchmarks/train_speed.py`.

    python -m benchmarks.speed.setup < job.json > facts.json

- a model folder with random weights in bfloat16 and a tokenizer (or the embedded model as it is);
- the token ids and labels that duiti trains on for the rows, update by update, in duiti's order.
  They are those of `read_material`, which `duiti train` itself calls, so TRL, which gets them as
  `input_ids` and `labels`, supervises the very same tokens;
- with LoRA, the adapter that duiti starts from, as a PEFT folder: TRL starts from that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.speed.flops import Shape
from benchmarks.speed.scenarios import ALPHA, RANK, ROWS_PER_UPDATE, SEED
from duiti import tiny
from duiti.config import Config, LoraConfig
from duiti.data.batch import epoch_updates
from duiti.material import Material, raise_refusals, read_material
from duiti.model.adapter import save_adapter
from duiti.model.freeze import choose_trained
from duiti.model.load import load_model
from duiti.types import IGNORE_INDEX

EOS, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def main() -> None:
    """Read the job, make things, say what they are."""
    job: dict[str, Any] = json.load(sys.stdin)
    folder = Path(job["model"])
    if job["shape"] is None:
        folder = tiny.model_path()
    elif not folder.exists():
        make_model(Shape(**job["shape"]), folder, job["tokenizer"])
    config = Config(
        data=(job["rows"],),
        model=str(folder),
        method=job["method"],
        map=job["map"],
        template=job["template"],
        seed=SEED,
    )
    if job["method"] == "lora":  # given with another method, it would be refused
        config = config.model_copy(update={"lora": LoraConfig(rank=RANK, alpha=ALPHA)})
    material = read_material(config)
    raise_refusals(material, config)
    updates = updates_of(material)
    Path(job["updates"]).write_text(json.dumps(updates), encoding="utf-8")
    if job["method"] == "lora":
        write_adapter(material, config, Path(job["adapter"]))
    facts = {
        "model": str(folder),
        "lengths": [[len(row["input_ids"]) for row in update] for update in updates],
        "supervised": [
            sum(label != IGNORE_INDEX for row in update for label in row["labels"])
            for update in updates
        ],
    }
    json.dump(facts, sys.stdout)


def make_model(shape: Shape, folder: Path, tokenizer_file: str | None) -> None:
    """Qwen3's architecture with random weights, kept in bfloat16 as the published one is."""
    tokenizer = _byte_tokenizer() if tokenizer_file is None else _read_tokenizer(tokenizer_file)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def updates_of(material: Material) -> list[list[dict[str, list[int]]]]:
    """Ids and labels of every row of every update of the first epoch."""
    examples = material.train
    order = epoch_updates(len(examples), ROWS_PER_UPDATE, seed=SEED, epoch=0)
    return [
        [
            {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}
            for row in (examples[index] for index in update)
        ]
        for update in order
    ]


def write_adapter(material: Material, config: Config, folder: Path) -> None:
    """The adapter before its first update, in PEFT's format."""
    model = load_model(material.source, dtype=torch.bfloat16, device="cpu")
    choose_trained(model, config)
    folder.mkdir(parents=True)
    save_adapter(model, folder, config.lora, base=str(material.source.location))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, so that made-up rows have exactly the length that is wanted."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(text, special=True) for text in (EOS, TURN_START, TURN_END)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=TURN_END, pad_token=EOS)


def _read_tokenizer(file: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=file, eos_token=TURN_END, pad_token=EOS)


if __name__ == "__main__":
    main()
