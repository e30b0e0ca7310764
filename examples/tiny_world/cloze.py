"""Does a model know the facts, questions aside? Each fact's sentence, cut before its value, must
be completed greedily.

The sentences are those that also answer the questions; their beginnings leave one right value.
"""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import questions_en, questions_zh
from .stories import capitalise
from .text import with_article
from .world import Entity

_QUESTIONS = {"en": questions_en.QUESTIONS, "zh": questions_zh.QUESTIONS}


def answer_sentence(entity: Entity, attribute: str) -> str:
    """The one sentence that states this fact and answers any question about it."""
    value = entity.value(attribute)
    template = _QUESTIONS[entity.language][entity.kind, attribute].answer
    return capitalise(template.format(n=entity.name, v=value, a=with_article(value)))


def cloze_accuracy(
    model: torch.nn.Module, tokenizer: Tokenizer, entities: Iterable[Entity]
) -> dict[str, float]:
    """The share of facts completed exactly, under `all` and under every language, kind and
    attribute.
    """
    facts = [(e, attribute) for e in entities for attribute, _ in e.facts]
    cases = [_cut(tokenizer, answer_sentence(e, a), e.value(a)) for e, a in facts]
    hits = _hits(model, cases)
    groups: dict[str, list[bool]] = {"all": hits}
    for (entity, attribute), hit in zip(facts, hits, strict=True):
        groups.setdefault(f"{entity.language} {entity.kind} {attribute}", []).append(hit)
    return {name: sum(members) / len(members) for name, members in groups.items()}


def _cut(tokenizer: Tokenizer, sentence: str, value: str) -> tuple[list[int], int]:
    """The ids up to the end of the value, and how many of them are given."""
    start = sentence.index(value, sentence.rindex(value))
    encoding = tokenizer.encode(sentence[: start + len(value)])
    return encoding.ids, sum(end <= start for _, end in encoding.offsets)


@torch.no_grad()
def _hits(model: torch.nn.Module, cases: Sequence[tuple[list[int], int]]) -> list[bool]:
    hits = [False] * len(cases)
    order = sorted(range(len(cases)), key=lambda i: len(cases[i][0]))
    for begin in range(0, len(order), 64):
        chunk = order[begin : begin + 64]
        predicted = model(input_ids=_pad([cases[i][0] for i in chunk])).logits.argmax(-1)
        for row, i in enumerate(chunk):
            ids, num_given = cases[i]
            hits[i] = predicted[row, num_given - 1 : len(ids) - 1].tolist() == ids[num_given:]
    return hits


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
