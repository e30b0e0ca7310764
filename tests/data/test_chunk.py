"""Every row and token of a chunk is counted as what became of it, and faults are collected."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import DATE
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from duiti.data.chunk import Account, FaultAt, NumberedRow, RowEncoder, SourceCounts
from duiti.data.jobs import PrepareOptions, make_job
from duiti.data.templates.template import load_template
from duiti.data.tokens.encode import Encoder
from duiti.types import Origin, Rejected, Row

COUNTS = st.builds(SourceCounts, **{name: st.integers(0, 9) for name in SourceCounts.__slots__})
ACCOUNTS = st.builds(
    Account,
    sources=st.dictionaries(st.integers(0, 3), COUNTS, max_size=3),
    rejected=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 99), st.text(max_size=5))),
    notes=st.dictionaries(st.text(max_size=5), st.integers(1, 9), max_size=3).map(Counter),
    stops=st.sets(st.integers(0, 50), max_size=3),
)


def encoder_of(tokenizer: PreTrainedTokenizerFast, **options: Any) -> RowEncoder:
    job = make_job(
        load_template("human-assistant", tokenizer), PrepareOptions(date=DATE, **options)
    )
    encoder = Encoder(job.spec, Tokenizer.from_str(job.tokenizer_json), job.options)
    return RowEncoder(encoder, job.mapping, job.markers)


def numbered(*rows: dict[str, Any] | str | None, source: int = 0) -> list[NumberedRow]:
    found = []
    for line, row in enumerate(rows, start=1):
        origin = Origin("f", line)
        item = Rejected(origin, row) if isinstance(row, str) else row and Row(row, origin)
        found.append(NumberedRow(item or None, source))
    return found


def pair(prompt: str, response: str) -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


def test_every_row_is_counted_as_what_became_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = numbered(pair("q", "a"), None, "not JSON", {"prompt": "q"}, pair("q", "b"), None)
    chunk = encoder_of(tokenizer).encode(rows)
    counts = chunk.account.sources[0]
    assert (counts.rows, counts.filtered, counts.rejected) == (6, 2, 2)
    assert [reason[:2] for reason in chunk.account.rejected] == [(0, 3), (0, 4)]
    assert chunk.account.rejected[0][2] == "not JSON"
    assert chunk.block.lines.tolist() == [1, 5]
    whole = [tokenizer.encode(f"Human: q\nAssistant: {a}<|endoftext|>") for a in "ab"]
    assert counts.tokens == sum(map(len, whole)) == chunk.block.lengths.sum()
    assert chunk.account.stops == {tokenizer.eos_token_id}


def test_sources_are_counted_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = numbered(pair("q", "a"), "bad") + numbered(pair("q", "a"), None, source=3)
    account = encoder_of(tokenizer).encode(rows).account
    assert {s: (c.rows, c.rejected, c.filtered) for s, c in account.sources.items()} == {
        0: (2, 1, 0),
        3: (2, 0, 1),
    }


def test_what_is_cut_is_counted_by_what_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = tokenizer.encode("Human: q\nAssistant:")
    answer = tokenizer.encode(" one two three<|endoftext|>")
    limit = len(prompt) + 2
    rows = numbered(pair("q", "one two three"), pair("q " * 30, "gone"), pair("q", "a"))
    chunk = encoder_of(tokenizer, truncate_to=limit).encode(rows)
    counts = chunk.account.sources[0]
    lost = tokenizer.encode("Human: " + "q " * 30 + "\nAssistant:"), [*tokenizer.encode(" gone"), 0]
    assert (counts.cut, counts.emptied) == (1, 1)
    assert counts.cut_answer == len(answer) - 2 + len(lost[1])
    assert counts.cut_context == len(lost[0])
    assert counts.tokens == chunk.block.lengths.sum() + counts.cut_answer + counts.cut_context
    assert chunk.block.lengths.tolist() == [limit, len(prompt) + 2]


def test_the_place_of_each_row_is_told_before_it_is_looked_at(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    places: list[int] = []
    encoder_of(tokenizer).encode(numbered(pair("q", "a"), None, "bad"), at=places.append)
    assert places == [0, 1, 2]


def test_a_template_that_must_not_be_used_says_at_which_row(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = "{% if 'boo' in messages[0]['content'] %}{{ strftime_now('%S') }}{% endif %}"
    spec = load_template("human-assistant", tokenizer).spec(DATE)
    job = make_job(load_template("human-assistant", tokenizer), PrepareOptions(date=DATE))
    evil = replace(spec, source=source + spec.source)
    encoder = Encoder(evil, Tokenizer.from_str(job.tokenizer_json), job.options)
    with pytest.raises(FaultAt) as caught:
        RowEncoder(encoder, {}, ()).encode(numbered(pair("q", "a"), None, pair("boo", "a")))
    assert caught.value.place == 2


@given(one=ACCOUNTS, two=ACCOUNTS)
def test_accounts_add_up_and_travel_as_json(one: Account, two: Account) -> None:
    copied = Account.from_dict(json.loads(json.dumps(one.as_dict())))
    assert copied == one
    copied.add(two)
    assert copied.num_rows == one.num_rows + two.num_rows
    assert copied.rejected == one.rejected + two.rejected
    assert copied.stops == one.stops | two.stops
    assert copied.notes.total() == one.notes.total() + two.notes.total()
    for source in one.sources.keys() | two.sources.keys():
        for name in SourceCounts.__slots__:
            parts = [getattr(a.sources.get(source, SourceCounts()), name) for a in (one, two)]
            assert getattr(copied.sources[source], name) == sum(parts)
