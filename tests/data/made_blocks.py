"""Blocks for tests, drawn by hypothesis or made from a seed, and what they mean in plain Python."""

import numpy as np
from hypothesis import strategies as st

from duiti.data.storage.block import Block
from duiti.types import Example, Origin

COLUMNS = [
    "input_ids",
    "lengths",
    "span_counts",
    "spans",
    "weights",
    "files",
    "lines",
    "parts",
    "digests",
]
FILES = ("a.jsonl", "b.jsonl", "c.jsonl")

Described = tuple[list[int], list[tuple[int, int, float]], int, int, list[int]]
"""(ids, [(start, end, weight)], file, line, digests) of an example."""


@st.composite
def described(draw: st.DrawFn) -> Described:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12))
    cuts = sorted(draw(st.sets(st.integers(1, len(ids)), max_size=6)))
    weight = st.sampled_from([1.0, 1.0, 0.5, 2.25])
    spans = [(a, b, draw(weight)) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    file, line = draw(st.integers(0, 2)), draw(st.integers(1, 2**40))
    digests = draw(st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4))
    return ids, spans, file, line, digests


def blocks() -> st.SearchStrategy[Block]:
    return st.lists(described(), max_size=6).map(block_of)


def block_of(examples: list[Described]) -> Block:
    spans = [span for _, own, *_ in examples for span in own]
    return Block(
        input_ids=np.array([token for ids, *_ in examples for token in ids], np.int32),
        lengths=np.array([len(ids) for ids, *_ in examples], np.int32),
        span_counts=np.array([len(own) for _, own, *_ in examples], np.int32),
        spans=np.array([span[:2] for span in spans], np.int32).reshape(-1, 2),
        weights=np.array([span[2] for span in spans], np.float32),
        files=np.array([file for _, _, file, _, _ in examples], np.int32),
        lines=np.array([line for _, _, _, line, _ in examples], np.int64),
        parts=np.array([len(ids) % 3 for ids, *_ in examples], np.int32),
        digests=np.array([digests for *_, digests in examples], np.uint64).reshape(-1, 4),
    )


def example_of(described: Described) -> Example:
    ids, spans, file, line, _ = described
    labels, weights = [-100] * len(ids), [0.0] * len(ids)
    for start, end, weight in spans:
        for place in range(start, end):
            labels[place], weights[place] = ids[place], weight
    return Example(
        input_ids=np.array(ids, np.int32),
        labels=np.array(labels, np.int32),
        origin=Origin(FILES[file], line),
        weights=None if all(weight == 1 for *_, weight in spans) else np.array(weights, np.float32),
    )


def made_block(seed: int, examples: int = 20) -> Block:
    """The same block for the same seed, in any process."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 40, examples).astype(np.int32)
    starts = (lengths // 2).astype(np.int32)
    return Block(
        input_ids=rng.integers(0, 1000, int(lengths.sum()), dtype=np.int32),
        lengths=lengths,
        span_counts=np.ones(examples, np.int32),
        spans=np.stack([starts, lengths], axis=1),
        weights=np.ones(examples, np.float32),
        files=np.zeros(examples, np.int32),
        lines=np.arange(1, examples + 1, dtype=np.int64) + seed * examples,
        parts=np.zeros(examples, np.int32),
        digests=rng.integers(0, 2**63, (examples, 4), dtype=np.uint64),
    )


def same_block(left: Block, right: Block) -> bool:
    return all(
        getattr(left, name).dtype == getattr(right, name).dtype
        and np.array_equal(getattr(left, name), getattr(right, name))
        for name in COLUMNS
    )


def same_example(left: Example, right: Example) -> bool:
    weights = (left.weights, right.weights)
    return (
        np.array_equal(left.input_ids, right.input_ids)
        and np.array_equal(left.labels, right.labels)
        and left.origin == right.origin
        and (
            weights == (None, None)
            if left.weights is None or right.weights is None
            else np.array_equal(left.weights, right.weights)
        )
        and {part.dtype for part in (left.input_ids, left.labels, right.labels)} == {np.dtype("i4")}
    )
