"""JSON without Python's leniencies: one object, or the reason why a text is no row.

    StrictJson().parse_line(b'{"prompt": "q"}\\n')       # the object, or RowError
    fault_of(fields)                                    # "" or why values from Python are no row

Refused: bytes that are not UTF-8, anything that is not an object, duplicate keys, NaN and Infinity
(and numbers that only become so, such as 1e999), integers of more than 1000 digits, half of a
surrogate pair, U+0000, and nesting of more than 100 levels. Nothing is converted. Reasons never
quote what is in a row, except for a short key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from duiti.errors import RowError, shown_name
from duiti.types import Json

MAX_DIGITS = 1000
"""Of an integer: Python's own limit (4300) is an exception, and parsing costs the square."""

MAX_DEPTH = 100
"""Levels of nesting, the row's own included; what comes later (templates, JSON) recurses."""

_SPACE = re.compile(r"[ \t\r\n]*")
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_TOO_LARGE = 10**MAX_DIGITS
_NUL_BYTES = "NUL bytes (was the file not written to its end?)"
_TOO_DEEP = f"nested too deeply (more than {MAX_DEPTH} levels)"


def fault_of(fields: Mapping[str, object]) -> str:
    """Why these values are no row, or an empty string: what JSON cannot say, half surrogate pairs,
    U+0000, and too much nesting, with the name of the field."""
    for key, value in fields.items():
        if fault := _key_fault(key):
            return fault
        if fault := _value_fault(value, depth=1):
            return f"the field {shown_name(key)}: {fault}"
    return ""


def skip_space(text: str, position: int) -> int:
    """The next position that holds none of JSON's four kinds of white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


class NoRow(RowError):
    """Valid JSON that means no row; `end` is where it ends, so that reading can go on behind it."""

    def __init__(self, reason: str, end: int) -> None:
        self.end = end
        super().__init__(reason)


class StrictJson:
    """A JSON decoder that takes objects only and none of Python's leniencies."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._unique,
            parse_constant=self._constant,
            parse_int=self._int,
            parse_float=self._float,
        )

    def parse_line(self, line: bytes) -> dict[str, Json]:
        """The object that is all there is in a line.

        Raises:
            RowError: the reason why it is none.
        """
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError(f"not UTF-8: byte {error.start + 1} of the line") from None
        start = 0 if text.startswith("{") else skip_space(text, 0)
        try:
            value, end = self.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise RowError(f"{syntax_fault(error)} at character {error.pos + 1}") from None
        if (rest := skip_space(text, end)) != len(text):
            if text.startswith("\0", rest):
                raise RowError(f"{_NUL_BYTES} at character {rest + 1}")
            raise RowError(f"not valid JSON: something follows the object at character {end + 1}")
        return value

    def raw_decode(self, text: str, position: int) -> tuple[dict[str, Json], int]:
        """The object that begins at `position`, and the position behind it.

        Raises:
            json.JSONDecodeError: not JSON.
            NoRow: JSON, but no row.
            RowError: nested so deeply that where it ends is not known.
        """
        problems = self._problems
        problems.clear()
        try:
            value, end = self._decoder.raw_decode(text, position)
        except RecursionError:
            raise RowError(_TOO_DEEP) from None
        if not isinstance(value, dict):
            raise NoRow("not a JSON object ({…})", end)
        if problems:
            raise NoRow(problems[0], end)
        # Looking at every value costs as much as parsing: only where the text gives a reason to.
        is_deep = text.count("{", position, end) + text.count("[", position, end) > MAX_DEPTH
        if (is_deep or _SUSPECT.search(text, position, end)) and (fault := fault_of(value)):
            raise NoRow(fault, end)
        return value, end

    # Raising inside a hook would lose where the value ends, so the hooks only take note.

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self._problems.append(f"the key {shown_name(key)} is given twice")
                    break
                seen.add(key)
        return values

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name} is not JSON")

    def _int(self, digits: str) -> int:
        if len(digits) <= MAX_DIGITS:
            return int(digits)
        self._problems.append(f"a number has more than {MAX_DIGITS} digits")
        return 0

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            self._problems.append("a number is too large for a float")
        return value


def syntax_fault(error: json.JSONDecodeError) -> str:
    """The decoder's finding in our words, without the place."""
    if error.doc.startswith("\0", error.pos):
        return _NUL_BYTES
    return f"not valid JSON: {error.msg.removesuffix(' at')}"


def _key_fault(key: object) -> str:
    if not isinstance(key, str):
        return f"a key is no string but {kind_name(key)}"
    return f"a key has {fault}" if (fault := _text_fault(key)) else ""


def _text_fault(text: str) -> str:
    if "\0" in text:
        return "a NUL character (U+0000)"
    if text.isascii():
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    return ""


def _value_fault(value: object, depth: int) -> str:
    match value:
        case str():
            return f"has {fault}" if (fault := _text_fault(value)) else ""
        case None | bool():
            return ""
        case int():
            is_fine = -_TOO_LARGE < value < _TOO_LARGE
            return "" if is_fine else f"a number has more than {MAX_DIGITS} digits"
        case float():
            return "" if math.isfinite(value) else "NaN or Infinity is not JSON"
        case list() | dict():
            return _inner_fault(value, depth + 1) if depth < MAX_DEPTH else _TOO_DEEP
        case _:
            return f"{kind_name(value)} is not JSON"


def _inner_fault(values: list[object] | dict[object, object], depth: int) -> str:
    if isinstance(values, dict):
        for key in values:
            if fault := _key_fault(key):
                return fault
        values = list(values.values())
    for value in values:
        if fault := _value_fault(value, depth):
            return fault
    return ""


def kind_name(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"
