"""`--max-drift X`: the model stays within X nats per token of its base, on text of the base's own.

    hold = make_hold(sft, texts, max_drift=0.1)          # before the first update
    for metrics, progress in train_steps(sft, optimizer, examples, plan, hold=hold):
        metrics.drift_kl, metrics.drift_weight

To the loss of every update is added weight · KL(base ‖ tuned), the mean over the tokens of a few
texts, which follow from (seed, step). With k a moving average of the divergence and A what is aimed
at, a little below X:

    weight = multiplier · k / A
    multiplier ← multiplier · exp(GAIN · (k / A - 1))          the exponent bounded

The multiplier is that of a constraint, found by ascent on the dual problem, in its logarithm as it
spans orders of magnitude: Ziegler et al. 2019 hold a divergence to a target this way (section 2.2),
Schulman et al. 2017 by doubling and halving. It is slow; the factor k / A answers at once and keeps
it from swinging, the proportional part of the controllers in Stooke et al. 2020. The multiplier
falls more slowly than it grows, as a limit that is broken is worse than one that is not used up.
Both numbers are a part of `Progress`: a run that goes on after a stop goes on with them.

The base is the model before its first update: its likeliest words at every position of the texts
are kept once, and no second model is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from duiti.data.batch import collate, lengths_of, micro_batches
from duiti.model.drift_loss import drift_loss
from duiti.model.lora import adapters_off
from duiti.model.sft_model import SFTModel
from duiti.model.top_words import BaseWords, base_words, joined
from duiti.types import Example, Held

NUM_TEXTS = 256
"""Texts to hold a model on: with many fewer it is held on these texts, and less on others."""
TEXT_TOKENS = 64
"""Tokens of such a text, at most."""
TEXTS_PER_UPDATE = 4
START = 1.0
"""The multiplier before the first update."""
LEAST, MOST = 1e-3, 1e4
"""Between which it stays."""
SMOOTHING = 0.8
"""What the average of the divergence keeps of itself in an update: it is the mean of some five."""
GAIN = 0.05
"""By how much the multiplier's logarithm grows in an update whose average is twice what is aimed
at, and at most."""
FALL = 0.5
"""How much of that it falls by at most."""
AIM = 0.8
"""What is aimed at, relative to the limit: the divergence swings around it, and on texts that were
never trained on it is a little larger."""
_STREAM = 0x401D
"""Sets the texts of an update apart from other numbers that follow from (seed, step)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Texts on which a model is held to its base, and how far it may be from it."""

    examples: Sequence[Example]
    words: BaseWords
    """What the base says at every supervised position of these, text after text."""
    starts: npt.NDArray[np.int64]
    """[E+1] the first of these positions of each text, and the end."""
    max_drift: float
    """Of KL(base ‖ tuned), in nats per token."""

    def texts_of(self, *, seed: int, step: int) -> list[int]:
        """The texts of an update, by index."""
        chance = np.random.default_rng([seed, step, _STREAM])
        count = min(TEXTS_PER_UPDATE, len(self.examples))
        places: list[int] = chance.choice(len(self.examples), count, replace=False).tolist()
        return places

    def lengths_of(self, *, seed: int, step: int) -> list[int]:
        """Tokens of each of them."""
        return [len(self.examples[place]) for place in self.texts_of(seed=seed, step=step)]

    def words_of(self, places: Sequence[int]) -> BaseWords:
        """What the base says at the supervised positions of these texts."""
        runs = [np.arange(*self.starts[place : place + 2]) for place in places]
        return self.words.at(torch.from_numpy(np.concatenate(runs)).to(self.words.ids.device))


@torch.no_grad()
def make_hold(
    sft: SFTModel,
    examples: Sequence[Example],
    *,
    max_drift: float,
    micro_batch_tokens: int = 4096,
) -> Hold:
    """What the base says of these texts. Leaves no trace in the model.

    Args:
        sft: before its first update; adapters are off meanwhile. A run that goes on makes it before
            its weights are loaded.
        examples: texts, supervised as a whole, some `NUM_TEXTS` of them.
        max_drift: above 0.
    """
    device = next(sft.parameters()).device
    modes = {module: module.training for module in sft.modules()}
    parts = []
    sft.eval()
    try:
        with adapters_off(sft.model):
            for part in _in_order(lengths_of(examples), micro_batch_tokens):
                batch = collate([examples[place] for place in part], device)
                head, bias = sft.output_layer()
                parts.append(base_words(sft.supervised_states(batch), head, bias=bias,
                                        shape=sft.logit_shape))  # fmt: skip
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    counts = [example.num_supervised for example in examples]
    return Hold(
        examples=examples,
        words=joined(parts),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        max_drift=max_drift,
    )


def add_drift(
    sft: SFTModel, hold: Hold, *, seed: int, step: int, weight: float, micro_batch_tokens: int
) -> Tensor:
    """Add the gradient of weight · KL(base ‖ tuned) to what is there; returns the KL, a float32
    scalar in nats per token. No GPU is waited for.

    Args:
        step: of the update, from 1.
        micro_batch_tokens: that go through the model at once, at most.
    """
    places = hold.texts_of(seed=seed, step=step)
    device = hold.words.ids.device
    num_tokens = sum(hold.examples[place].num_supervised for place in places)
    total = torch.zeros((), dtype=torch.float32, device=device)
    lengths = lengths_of(hold.examples)
    for part in micro_batches(places, lengths, budget=micro_batch_tokens):
        batch = collate([hold.examples[place] for place in part], device)
        head, bias = sft.output_layer()
        kl = drift_loss(sft.supervised_states(batch), head, hold.words_of(part), bias=bias,
                        shape=sft.logit_shape)  # fmt: skip
        (kl * (weight / num_tokens)).backward()
        total += kl.detach()
    return total / num_tokens


def beginning() -> Held:
    """Before the first update, where nothing has moved yet."""
    return Held(multiplier=START, kl=0.0)


def weight_of(held: Held, *, max_drift: float) -> float:
    """Of the divergence in the loss of the next update."""
    return held.multiplier * held.kl / (AIM * max_drift)


def held_after(held: Held, kl: float, *, max_drift: float) -> Held:
    """Behind an update in which the divergence was `kl`."""
    average = SMOOTHING * held.kl + (1 - SMOOTHING) * kl
    error = min(1.0, max(-FALL, average / (AIM * max_drift) - 1))
    multiplier = held.multiplier * math.exp(GAIN * error)
    return Held(multiplier=min(MOST, max(LEAST, multiplier)), kl=average)


def _in_order(lengths: npt.NDArray[np.int32], budget: int) -> list[list[int]]:
    """Parts of at most so many tokens (a longer text goes alone), each index behind the other."""
    parts: list[list[int]] = []
    room = 0
    for place, length in enumerate(lengths.tolist()):
        if not parts or length > room:
            parts.append([])
            room = budget
        parts[-1].append(place)
        room -= length
    return parts
