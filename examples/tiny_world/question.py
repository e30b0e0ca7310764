"""The shape of a question: how it may be put, and the one sentence that answers it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """`{n}` is the name (or the given text), `{v}` the value, `{a}` the value with its article."""

    answer: str
    """The whole response, always the same sentence."""
    trained: tuple[str, ...]
    """Phrasings of the training pairs, used equally often."""
    unseen: tuple[str, ...]
    """Phrasings that no training pair has."""
