"""Text is taken as it is or refused; a string of JSON means what the standard says, or nothing."""

import json
from datetime import date
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.rows.values import (
    check_fields,
    check_json,
    either,
    is_nothing,
    label,
    parse_json,
    text,
)
from duiti.errors import RowError
from duiti.types import Json

CHARACTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | CHARACTERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(CHARACTERS, inner, max_size=4),
    max_leaves=12,
)


@given(value=CHARACTERS)
def test_a_text_is_returned_to_the_character_or_is_only_white_space(value: str) -> None:
    assert text(value, "x", may_be_empty=True) is value
    if value.strip():
        assert text(value, "x") is value
    else:
        with pytest.raises(RowError, match='"x" is empty'):
            text(value, "x")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, '"x" must be text, not null'),
        (True, '"x" must be text, not true/false'),
        (1, '"x" must be text, not a number'),
        (1.5, '"x" must be text, not a number'),
        ([], '"x" must be text, not a list'),
        ({}, '"x" must be text, not an object'),
        (date(2026, 1, 1), '"x" must be text, not a Python date'),
        (b"x", '"x" must be text, not a Python bytes'),
        ("a\0b", '"x" holds the character U+0000'),
        ("a\ud800", '"x" has half of a surrogate pair'),
        ("\udc00é", '"x" has half of a surrogate pair'),
    ],
)
def test_what_is_no_text_is_refused(value: object, reason: str) -> None:
    for may_be_empty in (False, True):
        with pytest.raises(RowError) as caught:
            text(cast(Json, value), "x", may_be_empty=may_be_empty)
        assert reason in str(caught.value)


@given(value=JSON)
def test_json_as_text_says_what_was_written(value: Json) -> None:
    found = parse_json(json.dumps(value), "x")
    assert json.dumps(found) == json.dumps(value)
    check_json(value, "x")


DEEP = "[" * 150 + "]" * 150


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", '"x" is not valid JSON'),
        ("{", "at character 2"),
        ("{} {}", "at character 4"),
        ("[1,]", '"x" is not valid JSON'),
        ("{'a': 1}", '"x" is not valid JSON'),
        ('{"a": 1, "b": {"a": 1, "a": 2}}', "a key is given twice"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "too large"),
        ("9" * 1002, "more than 1000 digits"),
        ('"a\\u0000"', "U+0000"),
        ('{"\\u0000": 1}', "U+0000"),
        ('"\\ud83d"', "half of a surrogate pair"),
        ('"\ud83d"', "half of a surrogate pair"),
        ('"\0"', "U+0000"),
        (DEEP, "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_text_that_is_no_json_is_refused(value: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_json(value, "x")
    assert reason in str(caught.value)


def test_a_surrogate_pair_written_as_two_escapes_is_one_character() -> None:
    assert parse_json('"\\ud83d\\ude00"', "x") == "\N{GRINNING FACE}"


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},
        {"a": (1, 2)},
        [{1, 2}],
        {"a": date(2026, 1, 1)},
        [float("nan")],
        {"a": {"b": float("-inf")}},
        [10**1001],
        ["a\0"],
        {"a\ud800": 1},
        json.loads(DEEP),
        CIRCLE,
    ],
)
def test_values_from_python_that_json_cannot_write_are_refused(value: object) -> None:
    with pytest.raises(RowError):
        check_json(cast(Json, value), "x")


def test_one_of_two_names_is_read_and_two_are_refused() -> None:
    assert either({"a": 1}, "a", "b") == 1
    assert either({"a": None, "b": ""}, "a", "b") == ""
    assert either({}, "a", "b") is None
    with pytest.raises(RowError, match='has both "a" and "b"'):
        either({"b": 0, "a": False}, "a", "b")


def test_a_label_that_is_null_or_missing_is_none() -> None:
    assert label({"id": None}, "id") == label({}, "id") == label({"id": ""}, "id") == ""
    assert label({"id": "x"}, "id") == "x"
    with pytest.raises(RowError, match='"id" must be text, not a number'):
        label({"id": 3}, "id")


def test_only_a_field_that_holds_something_can_be_unknown() -> None:
    nothing: list[Json] = [None, "", [], {}]
    assert all(is_nothing(value) for value in nothing)
    check_fields({"a": 1, **{str(n): value for n, value in enumerate(nothing)}}, ("a",))
    something: list[Json] = [0, False, " ", [None]]
    for value in something:
        assert not is_nothing(value)
        with pytest.raises(RowError, match=r'the field "contnt" .*Did you mean "content"'):
            check_fields({"contnt": value}, ("role", "content"))
