"""Prompt/response pairs: questions about facts, sentences to translate, paragraphs to sum up.

Kinds with many entities are asked in fewer of the trained phrasings per fact, so every attribute
has about as many pairs as any other; within an attribute every phrasing is used equally often.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import questions_en, questions_zh
from .question import Question
from .stories import PARALLEL, capitalise, parallel_sentence
from .text import with_article, write_paragraph, write_summary
from .world import LANGUAGES, Entity

_ASKED = {"en": questions_en, "zh": questions_zh}
SUMMARISED = ("person", "company", "book")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One line of a data file, and what it is about."""

    prompt: str
    response: str
    topic: str
    """Language, kind and attribute; not written to the file, used to count."""


def ask_facts(
    entities: Sequence[Entity], per_fact: dict[str, int], *, unseen: bool = False
) -> Iterator[Pair]:
    """Every fact, in as many phrasings as its kind gets."""
    num_asked: dict[str, int] = {}
    for entity in entities:
        for attribute, value in entity.facts:
            topic = f"{entity.language} {entity.kind} {attribute}"
            question = _ASKED[entity.language].QUESTIONS[entity.kind, attribute]
            fields = {"n": entity.name, "v": value, "a": with_article(value)}
            for _ in range(per_fact[entity.kind]):
                number = num_asked[topic] = num_asked.get(topic, -1) + 1
                yield Pair(
                    prompt=_phrase(question, number, unseen).format(**fields),
                    response=capitalise(question.answer.format(**fields)),
                    topic=topic,
                )


def ask_translations(
    words: Sequence[tuple[str, str]], count: int, seed: str, *, unseen: bool = False
) -> Iterator[Pair]:
    """`count` different sentences around these words alone, half of them in each direction."""
    rng, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        pair = parallel_sentence(rng.choice(PARALLEL), rng.sample(words, 2))
        if pair[0] in seen:
            continue
        i = len(seen) % 2
        question = _ASKED[LANGUAGES[i]].TRANSLATE
        prompt = _phrase(question, len(seen) // 2, unseen).format(n=pair[i])
        yield Pair(prompt=prompt, response=pair[1 - i], topic=f"{LANGUAGES[i]} translate")
        seen.add(pair[0])


def ask_summaries(
    entities: Sequence[Entity], count: int, seed: str, *, unseen: bool = False
) -> Iterator[Pair]:
    """`count` paragraphs, each about another entity, with the one sentence that sums them up."""
    rng = random.Random(seed)
    candidates = [e for e in entities if e.kind in SUMMARISED]
    for number, entity in enumerate(rng.sample(candidates, count)):
        question = _ASKED[entity.language].SUMMARISE
        paragraph = write_paragraph(entity, rng, whole=True)
        prompt = _phrase(question, number, unseen).format(n=paragraph)
        yield Pair(
            prompt=prompt, response=write_summary(entity), topic=f"{entity.language} summarise"
        )


def _phrase(question: Question, number: int, unseen: bool) -> str:
    phrasings = question.unseen if unseen else question.trained
    return phrasings[number % len(phrasings)]
