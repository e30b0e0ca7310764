"""Who and what exists: entities with their facts, drawn from a seed; and the control entities
beside them.

`build_world()` is the world of the running text. `build_control()` makes people, companies and
books from the same pools of names and values that the running text never mentions: whoever
answers questions about them is guessing.
"""

import functools
import random
from dataclasses import dataclass

from .names import VALUES, NamePool
from .words import COUNTRIES, WORDS

WORLD_SEED = 7
LANGUAGES = ("en", "zh")
NUM_PEOPLE, NUM_COMPANIES, NUM_BOOKS, NUM_EMPLOYERS = 150, 40, 50, 60
NUM_CONTROL = {"person": 36, "company": 16, "book": 20}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """Something with a name and facts, in one language."""

    language: str
    """`en` or `zh`."""
    kind: str
    """`person`, `company`, `book`, `country` or `word`."""
    name: str
    facts: tuple[tuple[str, str], ...]
    """Attribute and value, in a fixed order."""
    group: str
    """What must not be torn apart by a split: both languages' entries of a country or a word
    share it.
    """

    def value(self, attribute: str) -> str:
        """The value of one attribute."""
        return dict(self.facts)[attribute]


@functools.cache
def build_world() -> tuple[Entity, ...]:
    """All entities of the running text, English before Chinese, always the same."""
    return tuple(e for language in LANGUAGES for e in _language_world(language))


@functools.cache
def build_control() -> tuple[Entity, ...]:
    """People, companies and books that no running text and no training pair mentions."""
    return tuple(e for language in LANGUAGES for e in _language_control(language))


def _language_world(language: str) -> list[Entity]:
    pool, employers = _open_pool(language)
    entities = _invent(pool, employers, NUM_PEOPLE, NUM_COMPANIES, NUM_BOOKS)
    return entities + _countries(language) + _words(language)


def _language_control(language: str) -> list[Entity]:
    pool, employers = _open_pool(language)
    _invent(
        pool, employers, NUM_PEOPLE, NUM_COMPANIES, NUM_BOOKS
    )  # the world's names are dealt first
    return _invent(pool, employers, *NUM_CONTROL.values())


def _open_pool(language: str) -> tuple[NamePool, list[str]]:
    pool = NamePool(language=language, rng=random.Random(f"{WORLD_SEED}-{language}"))
    return pool, [pool.company() for _ in range(NUM_EMPLOYERS)]


def _invent(
    pool: NamePool, employers: list[str], num_people: int, num_companies: int, num_books: int
) -> list[Entity]:
    """Employers, founders and authors are no entities themselves: no answer may name another's
    question.
    """
    rng, values = pool.rng, VALUES[pool.language]
    people = [
        _entity(
            pool.language,
            "person",
            pool.person(),
            city=rng.choice(values.cities),
            year=str(rng.randint(1900, 1999)),
            job=rng.choice(values.jobs),
            company=rng.choice(employers),
            hobby=rng.choice(values.hobbies),
        )
        for _ in range(num_people)
    ]
    companies = [
        _entity(
            pool.language,
            "company",
            pool.company(),
            year=str(rng.randint(1850, 1999)),
            city=rng.choice(values.cities),
            product=rng.choice(values.products),
            founder=pool.person(),
        )
        for _ in range(num_companies)
    ]
    books = [
        _entity(
            pool.language,
            "book",
            pool.book(),
            author=pool.person(),
            year=str(rng.randint(1900, 1999)),
            genre=rng.choice(values.genres),
        )
        for _ in range(num_books)
    ]
    return people + companies + books


def _countries(language: str) -> list[Entity]:
    i = LANGUAGES.index(language)
    return [
        Entity(
            language=language,
            kind="country",
            name=c.name[i],
            facts=(
                ("capital", c.capital[i]),
                ("continent", c.continent[i]),
                ("language", c.language[i]),
            ),
            group=c.name[0],
        )
        for c in COUNTRIES
    ]


def _words(language: str) -> list[Entity]:
    """English entries are asked for their Chinese word, Chinese entries for their English word."""
    i = LANGUAGES.index(language)
    return [
        Entity(
            language=language,
            kind="word",
            name=pair[i],
            facts=(("translation", pair[1 - i]),),
            group=pair[0],
        )
        for pair in WORDS
    ]


def _entity(language: str, kind: str, name: str, **facts: str) -> Entity:
    return Entity(language=language, kind=kind, name=name, facts=tuple(facts.items()), group=name)
