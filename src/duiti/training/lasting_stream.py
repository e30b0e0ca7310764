"""Text for a person who may have left: a pipe without a reader, a terminal that was closed.

    console = Console(file=LastingStream(sys.stderr))

Nothing that happens to the stream ever reaches the one who writes, for a run must not end because
nobody reads what it says. (rich itself ends the process where a pipe is broken.)
"""

from __future__ import annotations

import errno
import os
from typing import TextIO

_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF})
"""What says that a reader will not come back: the pipe is broken, the terminal hung up."""


class LastingStream:
    """As much of a text file as rich needs. What cannot be written is dropped."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None, as Python has it where a process was started without one."""
        self._stream = stream

    @property
    def encoding(self) -> str:
        return "utf-8" if self._stream is None else self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is None:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                coded = text.encode(self.encoding, "backslashreplace")
                self._stream.write(coded.decode(self.encoding))
        except (OSError, ValueError) as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def _failed(self, error: OSError | ValueError) -> None:
        """Be silent from now on, if the reader is gone; a full disk may have room again."""
        if isinstance(error, OSError) and error.errno not in _GONE:
            return
        stream, self._stream = self._stream, None
        if stream is None or stream.closed:
            return
        # Others write to the same stream (warnings, the last words of an error), and Python empties
        # it at the end: all of that goes nowhere, too ("Note on SIGPIPE" in Python's `signal`).
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass  # it has no descriptor, so nothing of it outlives this object
