"""Turns to examples: ids and labels, born together.

    encoder = Encoder(tokenizer, template)
    for item in encoder.encode(samples):        # the examples of a sample, or Rejected

Ids of a turn are `ids(prompt) + ids(answer)`: the border is where serving cuts, so prompt ids in
training are those of serving by construction. A later turn of a conversation joins the example of
the turn before where the ids of its prompt begin with that example's ids; where they do not (a
template that rewrites history, a tokenizer that merges across the border) the conversation is
*unrolled*: the turn gets its own example, in exactly the context in which it will be served.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from duiti.data.spans import control_tokens, find_turns
from duiti.data.template import Template
from duiti.errors import RowError
from duiti.types import IGNORE_INDEX, Example, Message, Origin, Rejected, Sample, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1024
"""Rows tokenized at once: enough to keep the tokenizer's threads busy, little to hold."""


class Encoder:
    """A tokenizer and a template, ready to turn samples into examples and chats into prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._control = control_tokens(tokenizer)
        # SentencePiece-like tokenizers put a space before a text. Behind a prompt there is none.
        self._adds_space = _adds_space(tokenizer)

    def encode(
        self, samples: Iterable[Sample | Rejected]
    ) -> Iterator[tuple[Example, ...] | Rejected]:
        """The examples of each sample, in order; what is rejected already passes through."""
        rows = iter(samples)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            yield from self._encode_chunk(chunk)

    def prompt_ids(self, messages: Iterable[Message]) -> list[int]:
        """The ids that serving sends: those on which training conditioned."""
        return self._ids([self.template.prompt(tuple(messages))])[0]

    def _encode_chunk(
        self, chunk: list[Sample | Rejected]
    ) -> Iterator[tuple[Example, ...] | Rejected]:
        found: list[list[Turn] | Rejected] = []
        for sample in chunk:
            try:
                found.append(
                    sample
                    if isinstance(sample, Rejected)
                    else find_turns(self.template, sample, self._control)
                )
            except RowError as error:
                found.append(Rejected(sample.origin, str(error)))
        turns = [turn for item in found if not isinstance(item, Rejected) for turn in item]
        prompts = self._ids([turn.prompt for turn in turns])
        answers = self._answer_ids(turns, prompts)
        pairs = iter(zip(prompts, answers, strict=True))
        for sample, item in zip(chunk, found, strict=True):
            if isinstance(item, Rejected):
                yield item
                continue
            own = []
            for prompt, answer in islice(pairs, len(item)):
                if answer is not None:
                    own.append((prompt, answer))
            if len(own) < len(item):
                reason = "the tokenizer cannot cut an answer from its prompt"
                yield Rejected(sample.origin, reason)
            else:
                yield tuple(_join(own, sample.origin))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return list(ids)

    def _answer_ids(
        self, turns: list[Turn], prompts: list[list[int]]
    ) -> list[list[int]] | list[list[int] | None]:
        """Ids of what follows each prompt; None where the tokenizer cannot tell them apart."""
        if not self._adds_space:
            return self._ids([turn.answer for turn in turns])
        wholes = self._ids([turn.prompt + turn.answer for turn in turns])
        return [
            whole[len(prompt) :]
            if whole[: len(prompt)] == prompt
            else self._behind_break(turn, prompt, whole)
            for turn, prompt, whole in zip(turns, prompts, wholes, strict=True)
        ]

    def _behind_break(self, turn: Turn, prompt: list[int], whole: list[int]) -> list[int] | None:
        """The ids of an answer whose first word the tokenizer would melt into the prompt's end.

        It is encoded behind something that ends a word, so that it starts without the space that
        is put before a text; and taken only if the ids read exactly as the text does.
        """
        text = self.tokenizer.decode(whole)
        for anchor in (str(self.tokenizer.eos_token), "\n", ""):
            start, behind = self._ids([anchor, anchor + turn.answer])
            answer = behind[len(start) :]
            if behind[: len(start)] == start and self.tokenizer.decode(prompt + answer) == text:
                return answer
        return None


def _join(pairs: Iterable[tuple[list[int], list[int]]], origin: Origin) -> Iterator[Example]:
    """Lay the turns of one conversation into as few examples as their prompts allow."""
    ids: list[int] = []
    labels: list[int] = []
    for prompt, answer in pairs:
        if ids and prompt[: len(ids)] != ids:
            yield _example(ids, labels, origin)
            ids, labels = [], []
        labels += [IGNORE_INDEX] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
    yield _example(ids, labels, origin)


def _example(ids: list[int], labels: list[int], origin: Origin) -> Example:
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        origin=origin,
    )


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    tokens = tokenizer.tokenize("a")
    return bool(tokens) and tokens[0].startswith("▁")
