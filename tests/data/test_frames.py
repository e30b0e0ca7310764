"""Messages come back as they were sent, and anything else on the pipe is an end, not a message."""

import io
import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.frames import MAX_BYTES, read_frame, write_frame

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    messages=st.lists(st.tuples(st.dictionaries(TEXT, JSON, max_size=3), st.binary()), max_size=4)
)
def test_what_is_written_is_read_in_order(messages: list[tuple[dict[str, Any], bytes]]) -> None:
    pipe = io.BytesIO()
    for values, payload in messages:
        write_frame(pipe, values, payload)
    pipe.seek(0)
    assert [read_frame(pipe) for _ in messages] == messages
    with pytest.raises(EOFError):
        read_frame(pipe)


@given(payload=st.binary(min_size=1, max_size=20), cut=st.integers(0, 60))
def test_a_message_that_breaks_off_is_an_end(payload: bytes, cut: int) -> None:
    pipe = io.BytesIO()
    write_frame(pipe, {"a": 1}, payload)
    whole = pipe.getvalue()
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(whole[: min(cut, len(whole) - 1)]))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">QQ", MAX_BYTES + 1, 0),
        struct.pack(">QQ", 0, 2**63),
        b"Traceback (most recent call last): and so on",
        struct.pack(">QQ", 2, 0) + b"[]",
        struct.pack(">QQ", 4, 0) + b"null",
        struct.pack(">QQ", 3, 0) + b"{x}",
        struct.pack(">QQ", 3, 0) + b"\xff\xfe\xfd",
        struct.pack(">QQ", 200_000, 0) + b"[" * 200_000,
    ],
)
def test_what_was_not_written_by_write_frame_is_an_end(data: bytes) -> None:
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(data))


def test_writing_to_nobody_is_a_broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "wb", buffering=0)
    with pytest.raises(BrokenPipeError), pipe:
        write_frame(pipe, json.loads("{}"), b"x" * 2**20)
