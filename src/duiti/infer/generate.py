"""Tokens from a model: greedy or sampled, one prompt streaming or many in batches.

    answers = generate(model, prompts, stop_ids={2}, max_new_tokens=64)
    for token in stream(model, prompt, stop_ids={2}, max_new_tokens=64): ...

Batches are padded on the left, with mask and positions to match, so an answer does not depend on
its neighbours. A row that is finished leaves its batch. What a batch holds is bounded by tokens.
The stop token ends an answer and is not part of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from duiti.errors import DuitiError

BATCH_SIZE = 64
BATCH_TOKENS = 16384
"""Rows of a batch, times its longest prompt and what may follow it: the most tokens that keys and
values are kept of."""


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
    positions: int | None = None,
    batch_size: int = BATCH_SIZE,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Answer]:
    """Answers to prompts (lists of ids), in their order.

    Args:
        positions: of the model: prompt and answer together are no longer. None: it has no limit.
        batch_size: the most rows that go through the model together.
        batch_tokens: the most tokens that a batch may come to hold; a longer row goes alone.
    """
    room = [
        max_new_tokens if positions is None else min(max_new_tokens, positions - len(prompt))
        for prompt in prompts
    ]
    answers = [Answer((), False)] * len(prompts)
    most_rows = batch_size if _goes_in_batches(model) else 1
    for part in _batches(prompts, room, most_rows, batch_tokens):
        texts: list[list[int]] = [[] for _ in part]
        left = list(range(len(part)))  # rows of the batch that are not finished
        steps = _Steps(model, [prompts[i] for i in part], sampling)
        with _evaluating(model):
            while left:
                going = []
                for row, token in zip(left, steps.next_tokens(), strict=True):
                    stopped = token in stop_ids
                    if not stopped:
                        texts[row].append(token)
                    if stopped or len(texts[row]) >= room[part[row]]:
                        answers[part[row]] = Answer(tuple(texts[row]), stopped)
                    else:
                        going.append(row)
                if len(going) < len(left):
                    steps.keep([place for place, row in enumerate(left) if row in set(going)])
                left = going
    return answers


def stream(
    model: PreTrainedModel,
    prompt: Sequence[int],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """The ids of one answer as they come, up to but without the stop token."""
    steps = _Steps(model, [prompt], sampling)
    with _evaluating(model):
        for _ in range(max_new_tokens):
            (token,) = steps.next_tokens()
            if token in stop_ids:
                return
            yield token


class _Steps:
    """A batch on its way: the next token of every row, again and again; rows may leave it."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> None:
        device = next(model.parameters()).device
        longest = max(len(prompt) for prompt in prompts)
        pad = [longest - len(prompt) for prompt in prompts]
        rows = [[0] * n + list(prompt) for n, prompt in zip(pad, prompts, strict=True)]
        self._model, self._sampling = model, sampling
        self._ids = torch.tensor(rows, device=device)
        """[B, T] what the model has not seen yet; everything, where it keeps no cache."""
        self._mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pad], device=device)
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config) if _takes_a_cache(model) else None
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    @torch.inference_mode()
    def next_tokens(self) -> list[int]:
        if self._cache is None:  # of one row, without padding
            logits = self._model(input_ids=self._ids).logits[:, -1]
        else:
            logits = self._model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        chosen = _choose(logits.float(), self._sampling, self._generator)[:, None]
        if self._cache is None:
            self._ids = torch.cat([self._ids, chosen], dim=1)
        else:
            self._ids = chosen
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=1)
            self._positions = self._positions[:, -1:] + 1
        tokens: list[int] = chosen[:, 0].tolist()
        return tokens

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Go on with these rows of the batch alone."""
        if not places:
            return
        chosen = torch.tensor(places, device=self._ids.device)
        self._ids, self._mask = self._ids[chosen], self._mask[chosen]
        self._positions = self._positions[chosen]
        if self._cache is not None:
            self._cache.batch_select_indices(chosen)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _batches(
    prompts: Sequence[Sequence[int]], room: Sequence[int], most_rows: int, most_tokens: int
) -> Iterator[list[int]]:
    """Prompts of like length share a batch: little padding. The longest go first: what does not
    fit into memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    order = [i for i in order if room[i] > 0]
    part: list[int] = []
    for i in order:
        width = len(prompts[part[0] if part else i]) + max(room[j] for j in [*part, i])
        if part and (len(part) == most_rows or width * (len(part) + 1) > most_tokens):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _takes_a_cache(model: PreTrainedModel) -> bool:
    """Whether keys and values can be handed to it: a state of another kind (Mamba's) has another
    name, and such a model reads the whole text anew for every token."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def _goes_in_batches(model: PreTrainedModel) -> bool:
    """Whether all that it remembers of a text are keys and values: padding can be hidden from
    attention, but runs through a recurrent state."""
    if not _takes_a_cache(model):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in layers
    )


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """[B, V] logits to [B] tokens.

    Raises:
        DuitiError: there are no probabilities to draw by.
    """
    if sampling.temperature <= 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise DuitiError(
            "nothing can be drawn from this model: its logits are not finite",
            why="its weights are too large for its own arithmetic, or damaged",
            fix="another copy of the model; in bfloat16, --dtype float32",
        )
    if sampling.top_p < 1:
        # Nucleus (Holtzman et al. 2020): the fewest tokens whose mass reaches top_p.
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(dim=-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
