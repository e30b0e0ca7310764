"""The child process that renders and encodes rows: `python -m duiti.data.worker`.

It reads requests from stdin and answers on stdout (`duiti.data.frames`), in order, until stdin
ends. What it holds is a template that may have come from anywhere, so it bounds its own memory,
computing time before it looks at one; what is left of a misbehaving template is one dead child,
whose stderr says at which row that was (`duiti.data.pool` reads it).
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from duiti.data.chunk import Chunk, FastPathFault, FaultAt, NumberedRow, RowEncoder
from duiti.data.frames import read_frame, write_frame
from duiti.data.storage.block import Block
from duiti.data.templates.render import TemplateFault, TemplateSpec, limit_time
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.errors import RowError
from duiti.types import Message, Origin, Row, ToolCall

MEMORY_BYTES = 2 * 2**30
"""Of address space beyond what the process begins with: a tokenizer, its caches and long rows fit
many times over, a template that writes without end does not."""
REQUEST_CPU_S = 300
"""Of computing, for the rows of one request: hundreds of megabytes of text take less, a pattern of
a tokenizer that tries everything does not come to an end."""
COLUMNS = tuple(Block.__dataclass_fields__)


def main() -> None:
    """Serve requests until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not disturb the answers
    try:
        start, payload = read_frame(requests)
        _limit()
        try:
            encoder = Encoder(
                TemplateSpec(**start["spec"]),
                Tokenizer.from_str(payload.decode("utf-8")),
                EncodeOptions(**start["options"]),
            )
        except TemplateFault as fault:
            write_frame(answers, {"fault": str(fault)})
            return
        rows = RowEncoder(encoder, start["mapping"], start["markers"])
        write_frame(answers, {"ready": True})
        while True:
            _note_place(-1)
            request, _ = read_frame(requests)
            _limit_cpu(REQUEST_CPU_S)
            write_frame(answers, *_serve(request, encoder, rows))
    except (EOFError, BrokenPipeError):
        return  # the owner is done, or gone


def _serve(
    request: dict[str, Any], encoder: Encoder, rows: RowEncoder
) -> tuple[dict[str, Any], bytes]:
    try:
        if "rows" in request:
            numbered = [
                NumberedRow(Row(fields, Origin("", line)), source)
                for source, line, fields in request["rows"]
            ]
            return pack(rows.encode(numbered, at=_note_place))
        messages = [message_from_dict(values) for values in request["messages"]]
        if request["op"] == "ids":
            return {"ids": encoder.prompt_ids(messages, request["tools"])}, b""
        render = (
            encoder.renderer.prompt if request["op"] == "prompt" else encoder.renderer.transcript
        )
        return {"text": render(messages, request["tools"])}, b""
    except RowError as error:
        return {"error": str(error)}, b""
    except FastPathFault:
        return {"fast_path": False}, b""
    except FaultAt as fault:
        return {"fault": fault.fault, "place": fault.place}, b""
    except TemplateFault as fault:
        return {"fault": str(fault)}, b""


def pack(chunk: Chunk) -> tuple[dict[str, Any], bytes]:
    """A chunk as a frame."""
    arrays = [getattr(chunk.block, name) for name in COLUMNS]
    shapes = [[str(array.dtype), list(array.shape)] for array in arrays]
    payload = b"".join(array.tobytes() for array in arrays)
    return {"account": chunk.account.as_dict(), "columns": shapes}, payload


def unpack(values: dict[str, Any], payload: bytes) -> Block:
    """The block of a frame, its arrays over the payload's memory."""
    arrays: dict[str, Any] = {}
    offset = 0
    for name, (kind, shape) in zip(COLUMNS, values["columns"], strict=True):
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(payload, dtype=dtype, count=count, offset=offset)
        arrays[name] = flat.reshape(shape)
        offset += count * dtype.itemsize
    return Block(**arrays)


def message_from_dict(values: dict[str, Any]) -> Message:
    """The message that `dataclasses.asdict` made a dict of."""
    calls = tuple(ToolCall(**call) for call in values.pop("tool_calls"))
    return Message(**values, tool_calls=calls)


def _note_place(place: int) -> None:
    """Where this process stands, for whoever finds it dead."""
    os.pwrite(2, b"%-12d" % place, 0)


def _limit() -> None:
    limit_time()
    resource.setrlimit(resource.RLIMIT_AS, (_held_bytes() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: int) -> None:
    """From now: the kernel ends this process (SIGXCPU) when it has computed for longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _held_bytes() -> int:
    """Address space that is taken already. macOS neither tells nor enforces the limit."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
