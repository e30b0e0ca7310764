"""The examples of a page: nothing is lost on the way, what is left out is counted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.showing.island import MAX_BYTES, beginning, island, parts
from duiti.data.showing.one_file import MAX_TEXT, shown
from duiti.data.showing.views import ShownExample, TokenView, segments, visible

TOKENS = st.lists(
    st.builds(
        TokenView,
        id=st.integers(0, 9),
        text=st.text(max_size=5),
        is_trained=st.booleans(),
        is_special=st.booleans(),
        weight=st.just(1.0),
    ),
    max_size=20,
)


def _example(tokens: list[TokenView], *, num_hidden: int = 0, origin: str = "f:1") -> ShownExample:
    return ShownExample(
        origin=origin,
        tokens=tokens,
        num_tokens=len(tokens) + num_hidden,
        num_supervised=sum(token.is_trained for token in tokens),
    )


def _words(count: int, *, trained_from: int = 0) -> list[TokenView]:
    return [TokenView(n, f"t{n}", n >= trained_from, False) for n in range(count)]


def _read(data: str) -> Any:
    return json.loads(data)


@given(rows=st.lists(TOKENS, max_size=4))
def test_every_token_comes_back(rows: list[list[TokenView]]) -> None:
    data, num_shown = island([_example(tokens) for tokens in rows])
    assert num_shown == len(rows)
    found = _read(data)
    for row, tokens in zip(found["rows"], rows, strict=True):
        trained = [False] * len(tokens)
        for start, length, weight in row["runs"]:
            assert weight == 1
            trained[start : start + length] = [True] * length
        for index, token, is_trained in zip(row["words"], tokens, trained, strict=True):
            id_, is_special, *found_parts = found["words"][index]
            assert (id_, bool(is_special), is_trained) == (
                token.id,
                token.is_special,
                token.is_trained,
            )
            assert "".join(found_parts) == (visible(token.text) or "⟨⟩")


@given(text=st.text(), origin=st.text())
def test_the_json_cannot_end_its_element(text: str, origin: str) -> None:
    for hostile in (text, "</script><!--", "\u2028&lt;"):
        token = TokenView(1, hostile, True, False)
        data, _ = island([_example([token], origin=origin)])
        assert not {"<", ">", "&", "\u2028", "\u2029"} & set(data)
        assert data.isprintable()


def test_runs_end_where_the_weight_changes() -> None:
    tokens = [TokenView(1, "a", True, False, weight) for weight in (1.0, 1.0, 0.5)]
    (row,) = _read(island([_example(tokens)])[0])["rows"]
    assert row["runs"] == [[0, 2, 1.0], [2, 1, 0.5]]


def test_a_long_example_is_cut_in_its_middle() -> None:
    found = _read(island([_example(_words(5001, trained_from=500))])[0])
    (row,) = found["rows"]
    assert row["tokens"] == 5001
    ids = [found["words"][index][0] for index in row["words"]]
    assert ids == [*range(1000), *range(4001, 5001)]
    # The trained run does not go over what is missing.
    assert row["runs"] == [[500, 500, 1.0], [1000, 1000, 1.0]]


def test_examples_are_shown_as_long_as_they_fit() -> None:
    examples = [
        _example([TokenView(9 * n + m, "x" * 150, True, False) for m in range(2000)])
        for n in range(0, 10**6, 10**5)
    ]
    data, num_shown = island(examples)
    assert 0 < num_shown < len(examples)
    assert len(data.encode()) <= MAX_BYTES + 100
    assert len(_read(data)["rows"]) == num_shown


def test_the_first_example_is_shown_however_large() -> None:
    tokens = [TokenView(n, "\U000e0001" * 200, n % 2 == 0, False) for n in range(2000)]
    data, num_shown = island([_example(tokens)])
    (row,) = _read(data)["rows"]
    assert num_shown == 1
    assert len(data.encode()) <= MAX_BYTES + 100
    assert row["tokens"] == 2000
    assert 100 < len(row["words"]) < 2000


def test_a_page_has_two_hundred_examples() -> None:
    assert island([_example(_words(2))] * 300)[1] == 200


def test_the_beginning_of_an_example_says_how_much_is_left() -> None:
    short = beginning(_example(_words(5, trained_from=3)))
    assert [(run.is_trained, len(run.tokens)) for run in short.runs] == [(False, 3), (True, 2)]
    assert short.num_left == 0
    long = beginning(_example([TokenView(1, "x" * 100, True, False)] * 100, num_hidden=7))
    assert sum(len(run.tokens) for run in long.runs) == 30
    assert long.num_left == 77
    cut = beginning(_example(_words(10), num_hidden=7))
    assert sum(len(run.tokens) for run in cut.runs) == 5  # the other five are behind the gap


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("word", ["word"]),
        ("", ["", "⟨⟩"]),
        ("a\nb", ["a", "⏎", "b"]),
        ("a⟨E6 B0⟩b", ["a", "⟨E6 B0⟩", "b"]),
        ("⟨E6⟩水\n", ["", "⟨E6⟩", "水", "⏎"]),
        ("⟨e6⟩ ⟨E6,B0⟩", ["⟨e6⟩ ⟨E6,B0⟩"]),
        ("y" * 1000, ["y" * MAX_TEXT, "… 800 more"]),
        ("y" * (MAX_TEXT - 1) + "\nz", ["y" * (MAX_TEXT - 1), "⏎", "", "… 1 more"]),
    ],
)
def test_a_token_is_text_and_what_stands_for_no_text(text: str, found: list[str]) -> None:
    assert parts(text) == found


@given(text=st.text(max_size=MAX_TEXT))
def test_parts_are_the_visible_text(text: str) -> None:
    found = parts(text)
    assert "".join(found) == (visible(text) or "⟨⟩")
    assert all(segments(part) == [part] for part in found)


@given(text=st.text(max_size=300))
def test_other_texts_are_short_and_visible(text: str) -> None:
    seen = shown(text)
    assert len(seen) <= MAX_TEXT
    assert segments(seen) == [seen]
    assert seen == visible(text) or seen.endswith("…")
