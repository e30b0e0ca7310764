"""The examples of a page: as JSON for its script, and as runs for those who have scripts off.

    data, num_shown = island(examples)      # as many as fit
    beginning(example)                      # what of one can be read without scripts
    parts(text)                             # a token's text in segments, not long

Sizes are bounded here, and what is left out is counted. The JSON can stand in a `<script>` element:
`<`, `>`, `&` and the two line separators of JavaScript are escaped in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from duiti.data.showing.one_file import MAX_TEXT, json_in_html, shown
from duiti.data.showing.views import MAX_TOKENS, ShownExample, TokenView, segments

MAX_EXAMPLES = 200
MAX_BYTES = 1_200_000
"""Of the JSON; with all else a page stays below 2 MB."""
STATIC_CHARACTERS = 3_000
"""Of an example that is shown without scripts."""

_BYTES = re.compile("(⟨[0-9A-F]{2}(?: [0-9A-F]{2})*⟩)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring tokens that are all trained with one weight, or all given."""

    start: int
    is_trained: bool
    weight: float
    tokens: Sequence[TokenView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The first tokens of an example."""

    example: ShownExample
    runs: Sequence[Run]
    num_left: int
    """Tokens behind them that are not shown."""


def island(examples: Sequence[ShownExample]) -> tuple[str, int]:
    """The first examples as JSON, and how many of them fit.

    `words` has each token that occurs, once, as [id, special, segment, …]; `rows` has the examples,
    their tokens as indices into `words` and their trained runs as [start, length, weight].
    """
    words: dict[tuple[int, str, bool], int] = {}
    entries: list[str] = []
    rows: list[str] = []
    size = 0
    for example in examples[:MAX_EXAMPLES]:
        limit = MAX_TOKENS
        while True:
            row, new = _row(example, limit, words)
            added = [_word(*word) for word in new]
            grown = size + sum(len(text.encode()) + 1 for text in (row, *added))
            if grown <= MAX_BYTES or rows:
                break
            limit //= 2  # the first example is always there, as much of it as fits
        if grown > MAX_BYTES:
            break
        size = grown
        rows.append(row)
        entries += added
        words |= new
    return f'{{"words":[{",".join(entries)}],"rows":[{",".join(rows)}]}}', len(rows)


def beginning(example: ShownExample) -> Beginning:
    """As many first tokens as can be read without scripts."""
    room = STATIC_CHARACTERS
    tokens = []
    for token in example.tokens[: _gap(example.tokens, example)]:
        room -= sum(map(len, parts(token.text)))
        if room < 0:
            break
        tokens.append(token)
    left = example.num_tokens - len(tokens)
    return Beginning(example=example, runs=list(_runs(tokens, len(tokens))), num_left=left)


def parts(text: str) -> list[str]:
    """The segments of a token's text (see `segments`), the beginning only of a long one."""
    if not text:
        return ["", "⟨⟩"]  # adds nothing to the text, and yet can be pointed at
    found: list[str] = []
    for index, part in enumerate(segments(text[:MAX_TEXT])):
        # Bytes are no text either. Split so, a part begins and ends with text: the turns remain.
        found += [part] if index % 2 else _BYTES.split(part)
    if len(text) > MAX_TEXT:
        left = f"… {len(text) - MAX_TEXT:,} more"
        found += [left] if len(found) % 2 else ["", left]
    return found


def _row(
    example: ShownExample, limit: int, words: Mapping[tuple[int, str, bool], int]
) -> tuple[str, dict[tuple[int, str, bool], int]]:
    """An example of at most `limit` tokens as JSON, and the words that are new in it."""
    tokens = list(example.tokens)
    if len(tokens) > limit:
        tokens = tokens[: _middle(limit)] + tokens[len(tokens) - limit // 2 :]
    new: dict[tuple[int, str, bool], int] = {}
    indices = []
    for token in tokens:
        word = (token.id, token.text, token.is_special)
        index = words.get(word)
        indices.append(new.setdefault(word, len(words) + len(new)) if index is None else index)
    row = {
        "origin": shown(example.origin),
        "tokens": example.num_tokens,
        "trained": example.num_supervised,
        "words": indices,
        "runs": [
            [run.start, len(run.tokens), round(run.weight, 4)]
            for run in _runs(tokens, _gap(tokens, example))
            if run.is_trained
        ],
    }
    return json_in_html(row), new


def _runs(tokens: Sequence[TokenView], gap: int) -> Iterator[Run]:
    """The runs of the tokens, none of them over the gap in the middle of a long example."""
    start = 0
    for (is_trained, weight, _), run in groupby(
        enumerate(tokens), key=lambda item: (item[1].is_trained, item[1].weight, item[0] >= gap)
    ):
        alike = [token for _, token in run]
        yield Run(start=start, is_trained=is_trained, weight=weight, tokens=alike)
        start += len(alike)


def _gap(tokens: Sequence[TokenView], example: ShownExample) -> int:
    """Behind how many of the tokens those are that are not shown; all where none are missing."""
    return len(tokens) if len(tokens) == example.num_tokens else _middle(len(tokens))


def _middle(length: int) -> int:
    """Where a long example is cut: as many tokens before it as behind it, or one more."""
    return length - length // 2


def _word(id_: int, text: str, is_special: bool) -> str:
    return json_in_html([id_, int(is_special), *parts(text)])
