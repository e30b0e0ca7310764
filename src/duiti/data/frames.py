"""Messages between a process and its child: a JSON object and raw bytes behind it, length first.

    write_frame(pipe, {"rows": […]}, payload)
    values, payload = read_frame(pipe)          # EOFError when the other side is gone

JSON and arrays of numbers only: whatever a child has become, it can send nothing that runs here.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

_LENGTHS = struct.Struct(">QQ")
MAX_BYTES = 2**33
"""Of one part; anything longer was not written by `write_frame`."""


def write_frame(pipe: IO[bytes], values: dict[str, Any], payload: bytes = b"") -> None:
    """Send an object and bytes.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    pipe.write(_LENGTHS.pack(len(text), len(payload)))
    pipe.write(text)
    pipe.write(payload)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """The next object and its bytes.

    Raises:
        EOFError: the other side is gone, or sent something else.
    """
    text_bytes, payload_bytes = _LENGTHS.unpack(_read(pipe, _LENGTHS.size))
    if max(text_bytes, payload_bytes) > MAX_BYTES:
        raise EOFError("not a frame")
    try:
        values = json.loads(_read(pipe, text_bytes))
    except (ValueError, RecursionError):
        raise EOFError("not a frame") from None
    if not isinstance(values, dict):
        raise EOFError("not a frame")
    return values, _read(pipe, payload_bytes)


def _read(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError("the other side is gone")
    return data
