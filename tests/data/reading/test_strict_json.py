"""The decoder refuses what JSON, or a row, cannot be, and changes nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading.strict_json import StrictJson, fault_of
from duiti.errors import RowError

ESCAPES = st.sampled_from(
    [r"\ud83d", r"\ude00", r"\uD83D", r"\u0000", "\\\\", r"\"", r"\n", "u", r"\ud55c", "水", "0000"]
)


@given(parts=st.lists(ESCAPES, max_size=8), key_parts=st.lists(ESCAPES, max_size=3))
def test_the_quick_look_at_the_text_misses_no_bad_character(
    parts: list[str], key_parts: list[str]
) -> None:
    text = f'{{"{"".join(key_parts)}": ["{"".join(parts)}"]}}'
    fields = json.loads(text)  # takes half pairs and NUL
    fault = fault_of(fields)
    said = json.dumps(fields, ensure_ascii=False).replace("\\\\", "")
    is_text = said == said.encode("utf-8", "replace").decode() and "\\u0000" not in said
    assert is_text == (fault == "")
    if is_text:
        assert StrictJson().parse_line(text.encode()) == fields
        return
    with pytest.raises(RowError) as caught:
        StrictJson().parse_line(text.encode())
    assert str(caught.value) == fault


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_hundred_levels_are_read_and_one_more_is_not(opening: str, closing: str) -> None:
    def nested(levels: int) -> bytes:
        inner = levels - 1
        return ('{"a": ' + opening * inner + "1" + closing * inner + "}").encode()

    assert StrictJson().parse_line(nested(100))
    with pytest.raises(RowError, match="nested too deeply"):
        StrictJson().parse_line(nested(101))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    row = {"a": [[{}] for _ in range(500)], "b": "[" * 500}
    assert StrictJson().parse_line(json.dumps(row).encode()) == row


@pytest.mark.parametrize("text", ['{"a": 1e308}', '{"a": -1.5E-400}', '{"a": %s}' % ("9" * 1000)])
def test_numbers_that_python_can_hold_are_read(text: str) -> None:
    assert StrictJson().parse_line(text.encode()) == json.loads(text)


@pytest.mark.parametrize("number", ["1e309", "-1e999", "1" + "0" * 400 + ".0"])
def test_a_number_that_would_become_infinity_is_refused(number: str) -> None:
    with pytest.raises(RowError, match="too large for a float"):
        StrictJson().parse_line(b'{"a": %s}' % number.encode())


def test_a_fault_in_one_line_is_forgotten_in_the_next() -> None:
    decoder = StrictJson()
    for bad in (b'{"a": NaN, "b": }', b'{"a": NaN}', b'{"a": 1, "a": 1}'):
        with pytest.raises(RowError):
            decoder.parse_line(bad)
        assert decoder.parse_line(b'{"a": 1}') == {"a": 1}


def test_a_key_given_twice_among_very_many_is_found_at_once() -> None:
    keys = [f'"{number}": 0' for number in range(200_000)]
    line = "{" + ", ".join([*keys, keys[-1]]) + "}"
    with pytest.raises(RowError, match='the key "199999" is given twice'):
        StrictJson().parse_line(line.encode())


@pytest.mark.parametrize("line", [b"", b" ", b"\r\n"])
def test_nothing_is_no_object(line: bytes) -> None:
    with pytest.raises(RowError, match="not valid JSON"):
        StrictJson().parse_line(line)


def test_reasons_do_not_quote_the_row() -> None:
    secret = "s3cret"
    for text in (
        '{"a": "%s\\x"}',
        '{"a": %s}',
        '{"a": "%s',
        '{"a": "%s"} x',
        '["%s"]',
        '{"a": "%s\\ud800"}',
    ):
        with pytest.raises(RowError) as caught:
            StrictJson().parse_line((text % secret).encode())
        assert secret not in str(caught.value)
