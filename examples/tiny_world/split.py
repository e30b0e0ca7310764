"""Which entities may be asked about in training: 60 %, of every kind and language.

A country or a word is on one side with both its languages, so no answer is trained that only
swaps a held-out question around.
"""

import random

from .world import Entity

SPLIT_SEED = "split"
TRAIN_SHARE = 0.6


def split_entities(world: tuple[Entity, ...]) -> tuple[list[Entity], list[Entity]]:
    """Training and held-out entities, each in the world's order."""
    rng = random.Random(SPLIT_SEED)
    strata: dict[tuple[str, str], list[str]] = {}
    for entity in world:
        shared = entity.kind in ("country", "word")
        if not shared or entity.language == "en":
            strata.setdefault((entity.kind, entity.language), []).append(entity.group)
    chosen = {
        g
        for groups in strata.values()
        for g in rng.sample(groups, round(TRAIN_SHARE * len(groups)))
    }
    train = [e for e in world if e.group in chosen]
    return train, [e for e in world if e.group not in chosen]
