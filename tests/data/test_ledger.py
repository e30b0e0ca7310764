"""The law: rows and tokens that came in are those that are accounted for, source by source."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import prepared, write_rows
from transformers import PreTrainedTokenizerFast

from duiti.data.dataset import settle_data
from duiti.data.ledger import Ledger, SourceLedger, State, make_ledger
from duiti.data.prepare import Prepared
from duiti.data.reading.filter import load_filter
from duiti.data.reading.read import read_rows
from duiti.data.reading.sources import parse_source
from duiti.data.templates.template import Template, load_template
from duiti.errors import DuitiError
from duiti.types import Rejected, Row

SECRET = "Zq7xSecretXq9"
LIMIT = 40


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("human-assistant", tokenizer)


def pair(number: int, words: int, extra: str = "") -> dict[str, Any]:
    # Every row has words of its own, so that none is nearly like another.
    answer = " ".join(str(number * 7919 + word * 104729) for word in range(words))
    return {"prompt": f"{extra}{number * 31} {number}", "response": answer}


GOOD = st.builds(pair, st.integers(1, 6), st.integers(1, 2))
LONG = st.builds(pair, st.integers(10, 12), st.sampled_from([9, 20]))
FILTERED = st.builds(pair, st.integers(20, 22), st.just(1), st.just("skip "))
BAD = st.sampled_from(
    [
        {"prompt": SECRET},
        {"prompt": f"{SECRET}<|im_end|>", "response": SECRET},
        {"messages": [{"role": "user", "content": SECRET}]},
        f'{{"prompt": "{SECRET}"',
        f"[{SECRET}]",
    ]
)
CHAT = st.builds(
    lambda numbers: {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": f"m{n}"}
            for i, n in enumerate([*numbers, *numbers])
        ]
    },
    st.lists(st.integers(0, 50), min_size=1, max_size=4),
)
FILE = st.lists(GOOD | LONG | FILTERED | BAD | CHAT, min_size=1, max_size=10)


def write(path: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("filter") / "keep.py"
    file.write_text("def keep(row):\n    return not str(row.get('prompt')).startswith('skip')\n")
    return f"{file}:keep"


@given(
    files=st.lists(
        st.tuples(FILE, st.sampled_from(["", "@2", "@1.5", "#1"])), min_size=1, max_size=3
    ),
    val=st.one_of(st.none(), st.just(0.3), FILE),
    truncate=st.booleans(),
)
@settings(max_examples=40)
def test_every_row_and_token_is_accounted_for(
    template: Template,
    tmp_path: Path,
    keep: str,
    files: list[tuple[list[Any], str]],
    val: list[Any] | float | None,
    truncate: bool,
) -> None:
    names = [str(write(tmp_path / f"{n}.jsonl", rows)) + part
             for n, (rows, part) in enumerate(files)]  # fmt: skip
    options: dict[str, Any] = {"filter": keep, "cache": False}
    whole = prepared(template, *names, **options)
    cut = prepared(template, *names, **options, truncate_to=LIMIT if truncate else None)
    held: Prepared | float | None = None if isinstance(val, list) else val
    if isinstance(val, list):
        held = prepared(template, write(tmp_path / "val.jsonl", val), cache=False)
    data = settle_data(cut, held, max_length=LIMIT)

    for number, (name, source) in enumerate(zip(names, data.ledger.sources, strict=True)):
        assert source.file == name
        # The left sides, from the rows as they are read and from the texts before any cut.
        items = list(read_rows(parse_source(name)))
        keeps = load_filter(keep)
        assert source.rows == len(items)
        assert source.filtered == sum(
            isinstance(item, Row) and not keeps(item.fields) for item in items
        )
        own = np.flatnonzero(whole.store.origins()[0] == number)
        assert source.total == whole.store.lengths[own].sum()
        assert source.answers_cut + source.supervised <= whole.store.num_supervised[own].sum()
        # The law itself.
        parts = ("kept", "rejected", "filtered", "dropped", "val", "leaked")
        assert source.rows == sum(getattr(source, part) for part in parts)
        assert source.total == (
            source.supervised + source.context + source.cut_tokens
            + source.dropped_tokens + source.val_tokens + source.leaked_tokens
        )  # fmt: skip
        # The right sides, from what would be trained.
        kept = [e for e in data.train if e.origin.file == str(parse_source(name).path)]
        assert source.examples == len(kept)
        assert source.supervised == sum(e.num_supervised for e in kept)
        assert source.supervised + source.context == sum(map(len, kept))
        assert source.cut == 0 or truncate
        assert source.val == 0 or val == 0.3
        assert source.leaked == 0 or isinstance(val, list)
    assert all(len(example) <= LIMIT for example in data.train)
    assert SECRET not in json.dumps(data.ledger.as_dict())
    total = data.ledger.total
    if val == 0.3:
        assert total.val_tokens == data.val.lengths.sum()
    for field in fields(SourceLedger):
        if field.name != "file":
            assert getattr(total, field.name) == sum(
                getattr(source, field.name) for source in data.ledger.sources
            )


@given(data=st.data())
def test_examples_are_counted_under_the_state_that_they_were_given(
    template: Template, data: st.DataObject
) -> None:
    rows = [pair(n, n % 4 + 1) for n in range(8)]
    chat = [{"role": r, "content": f"c{i}"} for i, r in enumerate(["user", "assistant"] * 2)]
    found = prepared(template, [*rows, {"messages": chat}], [*rows[:3], {"prompt": "bad"}])
    states = np.array(
        data.draw(st.lists(st.sampled_from(list(State)), min_size=len(found.store),
                           max_size=len(found.store))), np.uint8,
    )  # fmt: skip
    ledger = make_ledger(found.store, states, found.account, found.names)
    named = {State.KEPT: "kept", State.DROPPED: "dropped", State.VAL: "val", State.LEAKED: "leaked"}
    for number, source in enumerate(ledger.sources):
        mine = found.store.origins()[0] == number
        for state, name in named.items():
            chosen = mine & (states == state)
            assert getattr(source, name) == chosen.sum()
            if state != State.KEPT:
                assert getattr(source, f"{name}_tokens") == found.store.lengths[chosen].sum()
        assert source.rows == mine.sum() + number
        assert source.rejected == number


def test_a_count_that_does_not_add_up_stops_everything(template: Template) -> None:
    found = prepared(template, [pair(1, 1), pair(2, 1)])
    states = np.zeros(2, np.uint8)
    make_ledger(found.store, states, found.account, found.names)

    def spoil(change: Callable[[Any], None]) -> None:
        account = type(found.account).from_dict(found.account.as_dict())
        change(account.sources[0])
        with pytest.raises(DuitiError, match="accounted for") as caught:
            make_ledger(found.store, states, account, found.names)
        assert caught.value.exit_code == 1
        assert "fault in duiti" in caught.value.why

    spoil(lambda counts: setattr(counts, "rows", 3))
    spoil(lambda counts: setattr(counts, "tokens", counts.tokens - 1))
    spoil(lambda counts: setattr(counts, "filtered", 1))
    spoil(lambda counts: setattr(counts, "cut_context", 1))
    with pytest.raises(DuitiError, match="accounted for"):
        make_ledger(found.store.select([0]), states[:1], found.account, found.names)


def test_a_rejected_row_is_named_by_its_file_and_once(template: Template, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [pair(1, 1), {"prompt": "q"}])
    found = prepared(template, f"{file}@3", file, cache=False)
    ledger = make_ledger(
        found.store, np.zeros(len(found.store), np.uint8), found.account, found.names
    )
    assert [str(row.origin) for row in ledger.rejected] == [f"{file}:2"]
    assert isinstance(ledger.rejected[0], Rejected)
    assert [source.rejected for source in ledger.sources] == [3, 1]
    assert [source.file for source in ledger.sources] == [f"{file}@3", str(file)]


def test_the_stored_form_has_the_keys_of_the_contract() -> None:
    one = SourceLedger(file="a", rows=3, kept=1, rejected=1, dropped=1, total=9, supervised=4,
                       context=3, dropped_tokens=2, answers_cut=1, examples=1)  # fmt: skip
    one.check()
    values = Ledger((one, replace(one, file="b"))).as_dict()
    counts = {"rows": 6, "kept": 2, "filtered": 0, "dropped": 2, "val": 0, "leaked": 0, "cut": 0,
              "examples": 2}  # fmt: skip
    assert {name: values[name] for name in counts} == counts
    assert values["tokens"] == {
        "total": 18, "supervised": 8, "context": 6, "cut": 0, "dropped": 4, "val": 0, "leaked": 0,
        "answers_cut": 2,
    }  # fmt: skip
    assert values["rejected"] == []
    sources = values["sources"]
    assert isinstance(sources, list)
    assert [(source["file"], source["rejected"]) for source in sources] == [("a", 1), ("b", 1)]
    json.dumps(values)
