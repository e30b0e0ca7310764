"""Values of a row, strictly: text, JSON, JSON written as text, and what none of them may hold.

    text(fields["prompt"], "prompt")            # the string itself, untouched
    parse_json(fields["tools"], "tools")        # what a string of JSON says

Nothing is stripped, repaired or converted: a value is returned as it is, or refused by `RowError`
with the name of its field and never with its content. What the fields mean is not decided here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from duiti.data.reading.strict_json import MAX_DEPTH, MAX_DIGITS, fault_of
from duiti.errors import RowError, did_you_mean, shown_name
from duiti.types import Json

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true/false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def text(value: Json, name: str, *, may_be_empty: bool = False) -> str:
    """A field's text, as it is.

    Raises:
        RowError: it is no text, empty or only white space, or holds what is no character.
    """
    if not isinstance(value, str):
        raise RowError(f'"{name}" must be text, not {kind(value)}')
    if not may_be_empty and (not value or value.isspace()):
        raise RowError(f'"{name}" is empty')
    check_characters(value, name)
    return value


def check_characters(value: str, name: str) -> None:
    """Refuse U+0000, which ends a string in many a program, and halves of surrogate pairs, which
    no tokenizer takes."""
    if "\0" in value:
        raise RowError(f'"{name}" holds the character U+0000')
    if not value.isascii():  # known without looking, so that plain English costs nothing
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            reason = f'"{name}" has half of a surrogate pair, which is no character'
            raise RowError(reason) from None


def check_json(value: Json, name: str) -> None:
    """Refuse what JSON cannot write, or not as it is (rows from Python may hold anything)."""
    if fault := fault_of({name: value}):
        raise RowError(fault)


def parse_json(value: str, name: str) -> Json:
    """What a string of JSON says.

    Raises:
        RowError: it is not JSON, has a key twice, NaN or an infinity, or is nested too deeply.
    """
    check_characters(value, name)
    try:
        found: Json = _DECODER.decode(value)
    except json.JSONDecodeError as error:
        reason = f'"{name}" is not valid JSON: {error.msg} at character {error.pos + 1}'
        raise RowError(reason) from None
    except RowError as error:
        raise RowError(f'"{name}" is not valid JSON: {error}') from None
    except RecursionError:
        raise RowError(f'"{name}" is nested too deeply') from None
    # What is left to find hides in escapes or in depth; looking at every value costs as much again.
    if _ESCAPE.search(value) or value.count("{") + value.count("[") > MAX_DEPTH // 2:
        check_json(found, name)
    return found


def is_nothing(value: Json) -> bool:
    """Null, or an empty text, list or object: a field that loses nothing when it is not read."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    return _KINDS.get(type(value)) or f"a Python {type(value).__name__}"


def near(name: object, known: tuple[str, ...]) -> str:
    """`' Did you mean "role"?'`, or nothing; a long name is no slip of the pen."""
    return did_you_mean(name, known) if isinstance(name, str) and len(name) <= 40 else ""


def either(fields: Mapping[str, Json], *names: str) -> Json:
    """The one of several names for the same thing that a row uses; null if it uses none."""
    used, value = "", None
    for name in names:
        held = fields.get(name)
        if held is not None:
            if used:
                raise RowError(f'has both "{used}" and "{name}": which one is meant?')
            used, value = name, held
    return value


def label(fields: Mapping[str, Json], name: str) -> str:
    """A name or an id; null and an empty one are none."""
    value = fields.get(name)
    return "" if value is None else text(value, name, may_be_empty=True)


def check_fields(fields: Mapping[str, Json], known: tuple[str, ...]) -> None:
    """Refuse a field that nothing reads, unless it holds nothing."""
    for name, held in fields.items():
        if name not in known and not is_nothing(held):
            hint = near(name, known)
            raise RowError(f"the field {shown_name(str(name))} is not understood.{hint}")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise RowError("a key is given twice")
    return values


def _refuse_constant(name: str) -> None:
    raise RowError(f"{name} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise RowError(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RowError("a number is too large for a float")
    return value


_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_constant=_refuse_constant,
    parse_int=_int,
    parse_float=_float,
)
