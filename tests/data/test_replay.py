"""Rehearsed texts: how many, kept to the byte, trained whole, and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from duiti.data.batch import epoch_updates, lengths_of
from duiti.data.ledger import Ledger, SourceLedger, with_rehearsal
from duiti.data.replay import (
    REHEARSAL_FILE,
    num_rehearsed,
    read_rehearsal,
    rehearsal,
    rehearsal_digest,
    write_rehearsal,
)
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError, UsageError
from duiti.types import Example, Origin

WORDS = 500


def text(length: int, number: int, *, given_tokens: int = 1) -> Example:
    ids = np.random.default_rng(number).integers(4, WORDS, length).astype(np.int32)
    labels = ids.copy()
    labels[:given_tokens] = -100
    return Example(input_ids=ids, labels=labels, origin=Origin("some.jsonl", number + 1))


def store(*lengths: int, given_tokens: int = 3) -> ExampleStore:
    return ExampleStore.from_examples(
        text(length, number, given_tokens=given_tokens) for number, length in enumerate(lengths)
    )


TEXTS = [text(length, 50 + number) for number, length in enumerate((9, 2, 30, 17, 5))]


def same(one: Example, two: Example) -> bool:
    return (
        np.array_equal(one.input_ids, two.input_ids)
        and np.array_equal(one.labels, two.labels)
        and one.origin == two.origin
        and one.weights is None
        and two.weights is None
    )


@given(st.integers(1, 10**6), st.floats(0.001, 0.9))
def test_rehearsed_rows_are_the_wanted_share_of_all_rows(num_rows: int, share: float) -> None:
    count = num_rehearsed(num_rows, share=share)
    assert count >= 1
    # Rounded to a whole row, which is at most half a row from the share of all.
    assert count == 1 or abs(count - share * (num_rows + count)) <= 0.5 + 1e-6


def test_every_token_of_a_text_is_trained_but_for_its_first() -> None:
    given_half = [text(12, 3, given_tokens=6)]
    (found,) = rehearsal(given_half, 1, seed=0)
    assert np.array_equal(found.input_ids, given_half[0].input_ids)
    assert np.array_equal(found.labels[1:], found.input_ids[1:])
    assert found.labels[0] == -100
    assert found.weights is None


@pytest.mark.parametrize("count", [1, 3, 5, 7, 23])
def test_texts_come_equally_often_and_which_of_them_follows_from_the_seed(count: int) -> None:
    found = rehearsal(TEXTS, count, seed=4)
    assert len(found) == count
    known = {own.input_ids.tobytes() for own in TEXTS}
    times = Counter(example.input_ids.tobytes() for example in found)
    assert set(times) <= known
    assert max(times.values()) - min([*times.values(), *[0] * (len(times) < 5)]) <= 1
    assert rehearsal_digest(rehearsal(TEXTS, count, seed=4)) == rehearsal_digest(found)
    others = {rehearsal_digest(rehearsal(TEXTS, count, seed=seed)) for seed in range(8)}
    assert len(others) > 1


def test_a_text_of_one_token_has_nothing_to_rehearse() -> None:
    found = rehearsal([text(1, 0), text(6, 1)], 3, seed=0)
    assert found.lengths.tolist() == [6, 6, 6]
    with pytest.raises(UsageError, match="no text to rehearse"):
        rehearsal([text(1, 0)], 3, seed=0)


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    texts = rehearsal(TEXTS, 8, seed=1)
    write_rehearsal(tmp_path, texts)
    found = read_rehearsal(tmp_path, 8, num_embeddings=WORDS)
    assert all(same(one, two) for one, two in zip(found, texts, strict=True))
    assert rehearsal_digest(found) == rehearsal_digest(texts)
    first = (tmp_path / REHEARSAL_FILE).read_bytes()
    write_rehearsal(tmp_path, found)
    assert (tmp_path / REHEARSAL_FILE).read_bytes() == first


def test_the_digest_sees_ids_and_borders() -> None:
    ids = np.arange(10, 20, dtype=np.int32)
    cuts = [[ids], [ids[:4], ids[4:]], [ids[:5], ids[5:]], [ids[::-1].copy()]]
    digests = {
        rehearsal_digest(
            ExampleStore.from_examples(
                Example(input_ids=own, labels=np.r_[-100, own[1:]].astype(np.int32),
                        origin=Origin("x", number + 1))
                for number, own in enumerate(cut)
            )
        )
        for cut in cuts
    }  # fmt: skip
    assert len(digests) == len(cuts)


IDS = np.arange(10, 20, dtype=np.int32)
BORDERS = np.array([0, 4, 10], np.int64)
DAMAGED = {
    "other tensors": {"input_ids": IDS, "borders": BORDERS, "more": IDS},
    "of another kind": {"input_ids": IDS.astype(np.int64), "borders": BORDERS},
    "there have to be 2": {"input_ids": IDS, "borders": np.array([0, 10], np.int64)},
    "borders are not": {"input_ids": IDS, "borders": np.array([0, 1, 10], np.int64)},
    "borders are not those": {"input_ids": IDS, "borders": np.array([0, 12, 10], np.int64)},
    "borders are not those of": {"input_ids": IDS, "borders": np.array([1, 4, 10], np.int64)},
    "does not have": {"input_ids": np.full(10, WORDS, np.int32), "borders": BORDERS},
    "tokens that the model does not": {
        "input_ids": np.full(10, -1, np.int32), "borders": BORDERS
    },
}  # fmt: skip


@pytest.mark.parametrize("why", DAMAGED)
def test_anything_else_is_refused(tmp_path: Path, why: str) -> None:
    (tmp_path / "data").mkdir()
    save_file({"input_ids": IDS, "borders": BORDERS}, tmp_path / REHEARSAL_FILE)
    assert len(read_rehearsal(tmp_path, 2, num_embeddings=WORDS)) == 2
    save_file(DAMAGED[why], tmp_path / REHEARSAL_FILE)
    with pytest.raises(DuitiError, match="not those of this run") as caught:
        read_rehearsal(tmp_path, 2, num_embeddings=WORDS)
    assert why in caught.value.why


def test_a_file_that_is_cut_or_gone_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DuitiError, match=r"replay\.safetensors"):
        read_rehearsal(tmp_path, 2, num_embeddings=WORDS)
    write_rehearsal(tmp_path, rehearsal(TEXTS, 2, seed=0))
    path = tmp_path / REHEARSAL_FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DuitiError, match=r"replay\.safetensors"):
        read_rehearsal(tmp_path, 2, num_embeddings=WORDS)


@pytest.mark.parametrize("chosen", [None, [4, 0, 2], [1, 1]])
def test_a_store_that_is_joined_is_both_one_behind_the_other(chosen: list[int] | None) -> None:
    one = store(20, 6, 11, 7, 9)
    one = one if chosen is None else one.select(chosen)
    two = rehearsal(TEXTS, 4, seed=0)
    both = one.joined(two)
    assert len(both) == len(one) + 4
    expected = [*one, *two]
    assert all(same(mine, theirs) for mine, theirs in zip(both, expected, strict=True))
    assert lengths_of(both).tolist() == [len(example) for example in expected]
    assert both.num_supervised.tolist() == [example.num_supervised for example in expected]
    assert np.array_equal(both.digests(), np.concatenate([one.digests(), two.digests()]))
    files, lines = both.origins()
    found = [Origin(both.files[n], int(line)) for n, line in zip(files, lines, strict=True)]
    assert found == [example.origin for example in expected]
    assert both.max_id == max(one.max_id, two.max_id)
    again = ExampleStore(both.blocks(), both.files)
    assert all(same(mine, theirs) for mine, theirs in zip(again, expected, strict=True))


def test_an_empty_store_joins_too() -> None:
    two = rehearsal(TEXTS, 2, seed=0)
    for both in (ExampleStore().joined(two), two.joined(ExampleStore())):
        assert all(same(mine, theirs) for mine, theirs in zip(both, two, strict=True))


def test_in_every_epoch_each_text_is_rehearsed_once_and_somewhere_else() -> None:
    both = store(*range(10, 60)).joined(rehearsal(TEXTS, 5, seed=0))
    places = []
    for epoch in range(3):
        order = [i for rows in epoch_updates(len(both), 8, seed=2, epoch=epoch) for i in rows]
        own = [n for n, i in enumerate(order) if both[i].origin.file == "<replay>"]
        assert len(own) == 5
        places.append(own)
    assert places[0] != places[1] != places[2]
    assert max(places[0]) - min(places[0]) > 10  # among the rows, not behind them


def test_the_ledger_counts_them_as_a_source_of_their_own() -> None:
    before = Ledger(
        (
            SourceLedger(file="a.jsonl", rows=3, kept=2, rejected=1, examples=2, total=10,
                         supervised=4, context=6, answers=4),
        )
    )  # fmt: skip
    texts = rehearsal(TEXTS, 5, seed=0)
    after = with_rehearsal(before, texts, name="written by the base model")
    own = after.sources[-1]
    assert (own.file, own.rows, own.kept, own.examples) == ("written by the base model", 5, 5, 5)
    assert own.total == sum(len(example) for example in TEXTS) == own.supervised + own.context
    assert own.supervised == sum(len(example) - 1 for example in TEXTS)
    assert after.sources[:-1] == before.sources
    after.total.check()
    assert after.total.rows == 8
    assert after.as_dict()["sources"][-1]["file"] == "written by the base model"  # type: ignore[index]
