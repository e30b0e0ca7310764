"""The running text: what the base model reads, and all it knows.

A document is one to five paragraphs about entities (each names some of an entity's facts, in any
order and in one of many wordings), or a little story, or sentences with their translations, or talk
about other things. No fact is ever asked for. `write_documents` is endless and depends on its seed
alone.
"""

import random
from collections.abc import Iterator

from . import phrases_en, phrases_zh
from .stories import capitalise, write_parallel, write_story
from .talk import write_talk
from .world import Entity, build_world

PRETRAIN_SEED = "running text"
HELDOUT_SEED = "held-out running text"
SHARE_STORIES, SHARE_PARALLEL, SHARE_TALK = 0.08, 0.06, 0.10
_WEIGHT = {"person": 1.0, "company": 1.0, "book": 1.15, "country": 1.15, "word": 0.9}
"""Mentions of a fact relative to one about a person: the kinds with few entities are read a
little more often, and a word, which has one fact, is said one to three times over.
"""
_SENTENCES = {"en": phrases_en.SENTENCES, "zh": phrases_zh.SENTENCES}
_SUMMARIES = {"en": phrases_en.SUMMARIES, "zh": phrases_zh.SUMMARIES}
_STAND_INS = {"en": phrases_en.STAND_INS, "zh": phrases_zh.STAND_INS}


def write_documents(seed: str) -> Iterator[str]:
    """Documents without end; the same seed writes the same ones."""
    rng = random.Random(seed)
    world = build_world()
    weights = [_WEIGHT[e.kind] * len(e.facts) / _mean_mentions(len(e.facts)) for e in world]
    while True:
        draw = rng.random()
        if draw < SHARE_STORIES:
            yield write_story(rng)
        elif draw < SHARE_STORIES + SHARE_PARALLEL:
            yield write_parallel(rng)
        elif draw < SHARE_STORIES + SHARE_PARALLEL + SHARE_TALK:
            yield write_talk(rng)
        else:
            num_paragraphs = rng.choices((1, 2, 3, 5), (5, 3, 1, 1))[0]
            entities = rng.choices(world, weights, k=num_paragraphs)
            yield "\n".join(write_paragraph(e, rng) for e in entities)


def write_paragraph(entity: Entity, rng: random.Random, *, whole: bool = False) -> str:
    """Some facts (all when `whole`, then without a last summary) of one entity, shuffled, in
    sampled wordings.
    """
    sentences_of = _SENTENCES[entity.language]
    num_facts = len(entity.facts)
    chosen = rng.sample(
        entity.facts, num_facts if whole else rng.randint(min(2, num_facts), num_facts)
    )
    templates = [rng.choice(sentences_of[entity.kind, attribute]) for attribute, _ in chosen]
    if entity.kind == "word":
        templates = rng.sample(sentences_of["word", "translation"], rng.randint(1, 3))
        chosen = chosen * len(templates)
    sentences = []
    for i, (template, (_, value)) in enumerate(zip(templates, chosen, strict=True)):
        name = _stand_in(entity, rng) if i and rng.random() < 0.15 else entity.name
        sentences.append(capitalise(template.format(n=name, v=value, a=with_article(value))))
    if not whole and entity.kind in _SUMMARIES[entity.language] and rng.random() < 0.12:
        sentences.append(write_summary(entity))
    return (" " if entity.language == "en" else "").join(sentences)


def write_summary(entity: Entity) -> str:
    """The one sentence that sums an entity up, in a fixed style."""
    facts = dict(entity.facts)
    facts["a_job"] = with_article(facts.get("job", ""))
    return _SUMMARIES[entity.language][entity.kind].format(n=entity.name, **facts)


def with_article(noun: str) -> str:
    """`a baker`, `an actor`."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _stand_in(entity: Entity, rng: random.Random) -> str:
    if entity.kind == "person" and entity.language == "en":
        return entity.name.split()[0]
    return _STAND_INS[entity.language].get(entity.kind, entity.name)


def _mean_mentions(num_facts: int) -> float:
    """How many facts a paragraph names on average."""
    return (min(2, num_facts) + num_facts) / 2
