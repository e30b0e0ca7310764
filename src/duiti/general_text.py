"""General text in a run: rows that are rehearsed (`replay`), and texts on which a model is held to
its base (`max_drift`). Both are made while the model still is its base.

    rehearsed = rehearsed_rows(…)                   # None: nothing is rehearsed
    hold = hold_to_base(…)                          # None: the drift is not held

A run that goes on reads what it rehearses from its folder, as what a base writes depends on the
machine that it writes on; what it is held to it makes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.data.ledger import with_rehearsal
from duiti.data.replay import num_rehearsed, read_rehearsal, rehearsal, write_rehearsal
from duiti.data.storage.store import ExampleStore
from duiti.eval.anchor import make_anchor, read_anchor
from duiti.material import Material
from duiti.model.load import num_embeddings
from duiti.model.sft_model import SFTModel
from duiti.quantities import Replay
from duiti.training.hold import NUM_TEXTS, TEXT_TOKENS, Hold, make_hold
from duiti.types import Example

REPLAY_TOKENS = 128
"""Of a text that is written to be rehearsed, at most."""
BY_THE_BASE = "text of the base model"
"""What the ledger calls a source that no file is."""
_REPLAYED, _HELD = 1, 2
"""Set the texts apart from each other, and from those on which forgetting is measured."""
_SEEDS = 2**63


def rehearsed_rows(
    config: Config, material: Material, model: PreTrainedModel, folder: Path, *, is_resumed: bool
) -> ExampleStore | None:
    """What is rehearsed, kept in the run's folder and counted in the material's ledger.

    Args:
        model: with the weights of the base.

    Raises:
        UsageError: there is no such file, or nothing to begin a text with.
        DataError: the file has no text, or rows at fault.
        DuitiError: the folder of a run that goes on does not hold what it rehearses.
    """
    if config.replay is None:
        return None
    wanted = Replay.parse(config.replay)
    count = num_rehearsed(len(material.train), share=wanted.share)
    if is_resumed:
        rows = read_rehearsal(folder, count, num_embeddings=num_embeddings(model))
    else:
        texts = _texts(config, material, model, wanted, count)
        rows = rehearsal(texts, count, seed=config.seed)
        write_rehearsal(folder, rows)
    name = BY_THE_BASE if wanted.file is None else Path(wanted.file).name
    ledger = with_rehearsal(material.data.ledger, rows, name=name)
    material.data = replace(material.data, ledger=ledger)
    return rows


def hold_to_base(config: Config, material: Material, sft: SFTModel) -> Hold | None:
    """Texts of the base, and what it says at each place of them.

    Raises:
        UsageError: there is nothing to begin a text with.
    """
    if config.max_drift is None:
        return None
    texts = make_anchor(sft.model, material.tokenizer, seed=_seed(config, _HELD),
                        num_texts=NUM_TEXTS, num_tokens=TEXT_TOKENS,
                        compute_dtype=sft.compute_dtype)  # fmt: skip
    assert config.micro_batch_tokens != "auto"  # it is settled
    return make_hold(sft, texts.examples, max_drift=config.max_drift,
                     micro_batch_tokens=config.micro_batch_tokens)  # fmt: skip


def _texts(
    config: Config, material: Material, model: PreTrainedModel, wanted: Replay, count: int
) -> Sequence[Example]:
    assert config.max_length != "auto"  # it is settled
    length = min(REPLAY_TOKENS, config.max_length)
    if wanted.file is not None:
        return read_anchor(wanted.file, material.tokenizer, max_length=config.max_length,
                           max_tokens=count * length).examples  # fmt: skip
    return make_anchor(model, material.tokenizer, seed=_seed(config, _REPLAYED),
                       num_texts=count, num_tokens=length,
                       compute_dtype=getattr(torch, config.dtype)).examples  # fmt: skip


def _seed(config: Config, part: int) -> int:
    return (config.seed + part * 0x9E3779B97F4A7C15) % _SEEDS
