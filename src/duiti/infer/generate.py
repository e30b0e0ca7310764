"""Tokens from a model: greedy or sampled, one prompt streaming or many in batches.

    answers = generate(model, prompts, stop_ids={2}, max_new_tokens=64)
    for token in stream(model, prompt, stop_ids={2}, max_new_tokens=64): ...

Batches are padded on the left, with mask and positions to match, so an answer does not depend on
its neighbours. The stop token ends an answer and is not part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt."""

    ids: tuple[int, ...]
    """Without the stop token."""
    stopped: bool
    """Whether it ended by a stop token, rather than at the limit."""


GREEDY = Sampling()


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    batch_size: int = 64,
) -> list[Answer]:
    """Answers to prompts (lists of ids), in their order."""
    answers: dict[int, Answer] = {}
    # Prompts of like length share a batch: little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        texts: list[list[int]] = [[] for _ in part]
        stopped = [False] * len(part)
        steps = _steps(model, [prompts[i] for i in part], max_new_tokens, sampling)
        for tokens in steps:
            for row, token in enumerate(tokens):
                if not stopped[row]:
                    stopped[row] = token in stop_ids
                    if not stopped[row]:
                        texts[row].append(token)
            if all(stopped):
                break
        for i, text, done in zip(part, texts, stopped, strict=True):
            answers[i] = Answer(tuple(text), done)
    return [answers[i] for i in range(len(prompts))]


def stream(
    model: PreTrainedModel,
    prompt: Sequence[int],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """The ids of one answer as they come, up to but without the stop token."""
    for (token,) in _steps(model, [prompt], max_new_tokens, sampling):
        if token in stop_ids:
            return
        yield token


def _steps(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
) -> Iterator[list[int]]:
    """The next token of every prompt, again and again, until the limit."""
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    pad = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * n + list(prompt) for n, prompt in zip(pad, prompts, strict=True)]
    ids = torch.tensor(rows, device=device)
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pad], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    generator = torch.Generator(device).manual_seed(sampling.seed)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                logits = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                ids = _choose(logits.float(), sampling, generator)[:, None]
                mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
                positions = positions[:, -1:] + 1
            yield ids[:, 0].tolist()
    finally:
        model.train(was_training)


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """[B, V] logits to [B] tokens."""
    if sampling.temperature <= 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        # Nucleus (Holtzman et al. 2020): the fewest tokens whose mass reaches top_p.
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(dim=-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
