"""How far a merged model is from the one that was trained on a base in four bits.

    before = as_trained(run)                     # loads that model, keeps what it says of some text
    from_quantized(merged_model, before)         # the same text, and the difference

The text: the expected answers of the run's own validation samples, each given its prompt; where it
has none, a fixed one in two languages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from duiti.infer.model import Model, load
from duiti.model.lora import adapters_scaled
from duiti.run import SAMPLES_FILE, Run

SAMPLE_TEXTS = (
    "The river rises in the hills north of the town. In spring it carries the water of the snow,"
    " and the children build small dams of stones and branches.",
    "The meeting begins at half past nine. Please bring the figures of the last three months, and"
    " tell us what you would do differently.",
    "这条河发源于小镇北面的山丘。春天，它带来融化的雪水，孩子们用石头和树枝筑起小小的水坝。",
    "会议九点半开始。请带上最近三个月的数字，并告诉我们您会怎样改进。",
)
"""What is measured on where a run has no validation rows of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromQuantized:
    """How the merged files compare with the model as it was trained, its base in four bits; both
    computing in float32, on the tokens of some text, each given those before it."""

    text: str
    """Which text."""
    num_positions: int
    """Tokens of it that are predicted."""
    loss_trained: float
    """Mean of their negative log-probabilities in the trained model, in nats."""
    loss_merged: float
    mean_logprob_difference: float
    """Mean of how far their log-probabilities are apart, in nats, up or down."""
    max_logprob_difference: float
    argmax_changes: int
    """Positions at which another token is the most likely one."""

    def __str__(self) -> str:
        return (
            f"against the model as it was trained, on a base in four bits, on {self.num_positions}"
            f" tokens of {self.text}: loss {self.loss_trained:.4f} → {self.loss_merged:.4f};"
            f" log-probabilities {self.mean_logprob_difference:.1e} nats apart on average,"
            f" {self.max_logprob_difference:.1e} at most; {self.argmax_changes} likeliest tokens"
            f" changed ({self.argmax_changes / self.num_positions:.1%})"
        )


@dataclass(frozen=True, slots=True)
class AsTrained:
    """What a model says about a text: kept while another one takes its place in memory."""

    text: str
    samples: list[tuple[list[int], list[int]]]
    """Ids that are given, and ids that have to follow."""
    logprobs: Tensor
    """[N] of the ids that have to follow."""
    likeliest: Tensor
    """[N] in their places."""


def as_trained(run: Run, *, strength: float = 1.0, trust_remote_code: bool = False) -> AsTrained:
    """The trained model, its base in four bits, on the run's own samples or on a fixed text.

    Args:
        strength: by which its adapter is multiplied.
    """
    model = load(run, device="cpu", dtype=torch.float32, trust_remote_code=trust_remote_code)
    text, samples = answers_of(run, model)
    with adapters_scaled(model.hf, strength):
        return AsTrained(text, samples, *_predictions(model.hf, samples))


def answers_of(run: Run, model: Model) -> tuple[str, list[tuple[list[int], list[int]]]]:
    """What may be compared, in words, and the ids: given, and to follow."""
    samples = _samples_of(run, model)
    if samples:
        return f"{len(samples)} held-out answers of the run", samples
    # With what the tokenizer begins a text with: some models are lost without it.
    encoded = [model.tokenizer.encode(text) for text in SAMPLE_TEXTS]
    samples = [(ids[:1], ids[1:]) for ids in encoded if len(ids) > 1]
    return "a fixed text (the run has no held-out answers)", samples


def from_quantized(model: PreTrainedModel, trained: AsTrained) -> FromQuantized:
    """What another model says of the same text, beside what was kept."""
    logprobs, likeliest = _predictions(model, trained.samples)
    apart = (logprobs - trained.logprobs).abs()
    return FromQuantized(
        text=trained.text,
        num_positions=apart.numel(),
        loss_trained=-float(trained.logprobs.mean()),
        loss_merged=-float(logprobs.mean()),
        mean_logprob_difference=float(apart.mean()),
        max_logprob_difference=float(apart.max()),
        argmax_changes=int((likeliest != trained.likeliest).sum()),
    )


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[rows, length, V] log-probabilities in float32, from the model's own forward pass."""
    logits: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits.float().log_softmax(dim=-1)


def _samples_of(run: Run, model: Model) -> list[tuple[list[int], list[int]]]:
    path = run.path / SAMPLES_FILE
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prefix = model.prompts.answer_prefix()  # trained with the answers, which are written without
    found = [
        (_encode(model, row["prompt"]), _encode(model, prefix + row["expected"])) for row in rows
    ]
    return [(given, expected) for given, expected in found if given and expected]


def _encode(model: Model, text: str) -> list[int]:
    ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False)
    return ids


@torch.no_grad()
def _predictions(
    model: PreTrainedModel, samples: Sequence[tuple[list[int], list[int]]]
) -> tuple[Tensor, Tensor]:
    """[N] log-probabilities of the ids that have to follow, and [N] the likeliest ones."""
    logprobs, likeliest = [], []
    for given, expected in samples:
        ids = torch.tensor([given + expected])
        rows = log_probabilities(model, ids)[0, len(given) - 1 : -1]
        logprobs.append(rows.gather(-1, torch.tensor(expected)[:, None])[:, 0])
        likeliest.append(rows.argmax(dim=-1))
    return torch.cat(logprobs), torch.cat(likeliest)
