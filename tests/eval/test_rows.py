"""What is said of a row, on losses that were made up so that one can say it oneself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made import examples_of, write_rows
from transformers import PreTrainedTokenizerFast

from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import Template, load_template
from duiti.eval.rows import KINDS, HeldOut, SortedRows, described, sort_rows

NAMES = ("epoch 1", "epoch 2", "epoch 3")
# Most rows fall from 2.0 to 0.2: the level is 1.1, and much is 0.9.
USUAL = (2.0, 0.8, 0.2)


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("auto", tokenizer)


def made(template: Template, path: Path, responses: dict[int, tuple[str, str]]) -> ExampleStore:
    """Twenty rows of one file; some of them say something of their own."""
    rows = [
        dict(zip(("prompt", "response"), responses.get(n, (f"Who is {n}?", f"It is {n * 7}")),
                 strict=True))
        for n in range(20)
    ]  # fmt: skip
    return examples_of(template, write_rows(path / "train.jsonl", rows))


def losses(**special: tuple[float, float, float]) -> np.ndarray:
    found = np.tile(np.array(USUAL)[:, None], (1, 20))
    for name, own in special.items():
        found[:, int(name.removeprefix("row"))] = own
    return found


def kinds(found: SortedRows) -> dict[int, str]:
    """By row from 0, without those that were learned."""
    return {
        row.origin.line - 1: kind
        for kind in KINDS
        for row in found.of_kind(kind)
        if kind != "learned"
    }


def test_each_kind_is_what_one_would_call_it(template: Template, tmp_path: Path) -> None:
    store = made(template, tmp_path, {4: ("Who?", "She"), 9: ("Who?", "He"), 12: ("Me?", "Yes"),
                                      13: ("Me?", "No")})  # fmt: skip
    own = losses(
        row1=(2.1, 2.0, 1.9),  # high all along
        row2=(1.9, 0.4, 1.6),  # was low, rose again
        row3=(6.0, 3.0, 1.5),  # high, but fell by much
        row4=(2.0, 0.9, 0.7),  # one prompt, two answers
        row9=(2.0, 0.9, 0.6),
        row12=(2.0, 0.9, 0.1),  # one prompt, two answers, of which one is learned
        row6=(0.01, 0.01, 0.01),  # known from the beginning
        row7=(1.2, 0.9, 1.3),  # rose, but not by much
    )
    found = sort_rows(store, own, names=NAMES)
    assert kinds(found) == {
        1: "never_learned", 2: "unlearned", 4: "contradictory", 9: "contradictory",
        7: "never_learned",
    }  # fmt: skip
    assert found.counts == {"contradictory": 2, "never_learned": 2, "unlearned": 1, "learned": 15}
    assert found.note == "without held-out rows nobody can tell what was memorised"
    assert found.usual is not None
    assert (found.usual.first, found.usual.last) == (2.0, 0.2)


def test_memorised_is_far_below_held_out_rows_of_that_length(
    template: Template, tmp_path: Path
) -> None:
    store = made(template, tmp_path, {8: ("Tell me!", " ".join(["and"] * 40))})
    own = losses(row5=(2.0, 0.5, 0.05), row8=(2.0, 0.5, 0.05), row6=(0.05, 0.05, 0.05))
    length = int(np.median(store.num_supervised))
    assert store.num_supervised[8] > 3 * length
    lengths = np.repeat([length, 100 * length], 30)
    for short, long, expected in (
        (1.8, 0.2, {5: "memorised"}),
        (0.2, 1.8, {8: "memorised"}),
        (0.2, 0.2, {}),  # it is as low where nothing was seen: it is understood
        (0.8, 0.8, {}),  # higher, but not by half of what rows usually gained
    ):
        held_out = HeldOut(lengths=lengths, losses=np.repeat([short, long], 30))
        found = sort_rows(store, own, names=NAMES, held_out=held_out)
        assert kinds(found) == expected
        assert found.counts["memorised"] == len(expected)
        assert found.note == ""


def test_thresholds_are_those_of_the_run(template: Template, tmp_path: Path) -> None:
    """In a run of losses ten times as small, the same rows are the same."""
    store = made(template, tmp_path, {})
    own = losses(row1=(2.1, 2.0, 1.9), row2=(1.9, 0.4, 1.6))
    assert kinds(sort_rows(store, own / 10, names=NAMES)) == kinds(
        sort_rows(store, own, names=NAMES)
    )


def test_what_is_not_known_is_not_held_against_a_row(template: Template, tmp_path: Path) -> None:
    store = made(template, tmp_path, {})
    own = losses(row1=(2.1, 2.0, np.nan), row2=(np.nan, 2.0, np.nan), row3=(np.nan,) * 3)
    found = sort_rows(store, own, names=NAMES)
    assert kinds(found) == {1: "never_learned"}
    assert sum(found.counts.values()) == 18
    (row,) = found.of_kind("never_learned")
    assert row.losses == (2.1, 2.0, None)


@pytest.mark.parametrize(
    ("own", "note"),
    [
        (losses()[:1], "measured once only"),
        (losses()[::-1], "did not fall"),
        (np.full((2, 20), np.nan), "no loss of any row is known"),
        (losses()[:0], "no loss of any row is known"),
    ],
)
def test_where_nothing_stands_out_that_is_said(
    template: Template, tmp_path: Path, own: np.ndarray, note: str
) -> None:
    found = sort_rows(made(template, tmp_path, {}), own, names=NAMES[: len(own)])
    assert note in found.note
    assert found.counts == {"contradictory": 0}
    assert found.as_dict()["rows"] == []
    assert note in "\n".join(described(found.as_dict()))


def test_examples_of_a_row_are_one_row(template: Template, tmp_path: Path) -> None:
    """A row that its weight repeats is one, and so is a conversation in several examples; the mean
    is over their tokens."""
    rows = [{"prompt": f"Who is {n}?", "response": "Nobody " * (n + 1)} for n in range(6)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    store = examples_of(template, f"{path}@2")
    assert len(store) == 12
    own = np.stack([np.linspace(2, 3, 12), np.linspace(0.1, 1.2, 12)])
    found = sort_rows(store, own, names=NAMES[:2])
    assert sum(found.counts.values()) == 6
    told = {row.origin.line: row.losses for kind in found.counts for row in found.of_kind(kind)}
    lines = store.origins()[1]
    for line, means in told.items():
        assert means == pytest.approx(own[:, lines == line].mean(axis=1))


def test_what_is_written_names_rows_and_never_quotes_them(
    template: Template, tmp_path: Path
) -> None:
    store = made(template, tmp_path, {4: ("Who?", "Zanzibar"), 9: ("Who?", "Timbuktu")})
    own = losses(row1=(2.1, 2.0, 1.9), row4=(2.0, 1.9, 1.2), row9=(2.0, 1.9, 1.0))
    found = sort_rows(store, own, names=NAMES)
    text = json.dumps(found.as_dict(), allow_nan=False) + "\n".join(described(found.as_dict()))
    assert "Zanzibar" not in text
    assert "Timbuktu" not in text
    told = found.as_dict()["rows"]
    assert isinstance(told, list)
    assert told[0]["origin"].endswith("train.jsonl:5")
    assert told[0]["losses"] == [2.0, 1.9, 1.2]
    assert "train.jsonl:10 has the same prompt and another answer" in told[0]["why"]
    assert [row["kind"] for row in told[:3]] == ["contradictory", "contradictory", "never_learned"]
    assert found.origins(("contradictory",)) == [row.origin for row in found.of_kind(
        "contradictory")]  # fmt: skip


def test_the_most_telling_rows_come_first_and_are_bounded(
    template: Template, tmp_path: Path
) -> None:
    store = made(template, tmp_path, {})
    own = losses(row3=(2, 2, 1.5), row11=(2, 2, 1.9), row17=(2, 2, 1.7))
    found = sort_rows(store, own, names=NAMES)
    assert [row.origin.line for row in found.of_kind("never_learned")] == [12, 18, 4]
    assert [row.origin.line for row in found.of_kind("never_learned", most=1)] == [12]
    lines = list(described(found.as_dict(), most=2))
    assert "  … and 1 more" in lines
    assert len([r for r in found.as_dict(most=1)["rows"] if r["kind"] == "never_learned"]) == 1  # type: ignore[attr-defined]
