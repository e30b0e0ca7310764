"""The owner of the child processes that render and encode rows, and of the encoder for chats.

    with Pool(job, count=2) as pool:
        for chunk in pool.encode(chunks):       # in order, a few chunks ahead of the reader
            …
    service = PromptService(job); service.prompt_ids(messages)

Templates of our own making render in this process where one is enough; a model's own never does.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import IO, Any

from tokenizers import Tokenizer

from duiti.data.chunk import Account, Chunk, FastPathFault, FaultAt, NumberedRow, RowEncoder
from duiti.data.frames import read_frame, write_frame
from duiti.data.storage.block import check_block
from duiti.data.templates.render import TemplateFault, TemplateSpec
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.data.worker import unpack
from duiti.errors import DuitiError, RowError, UsageError
from duiti.types import Json, Message, Origin, Row

CHUNK_ROWS = 256
AHEAD = 3
"""Chunks in flight for each child: enough that none waits, little to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a process needs to know before the first row."""

    spec: TemplateSpec
    tokenizer_json: str
    options: EncodeOptions
    mapping: Mapping[str, str] = field(default_factory=dict)
    markers: tuple[str, ...] = ()


class Pool:
    """Child processes that encode chunks of rows."""

    def __init__(self, job: Job, *, count: int) -> None:
        self._job = job
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="duiti-rows")
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = [_Child(job) for _ in range(count)]
        for child in self._children:
            self._free.put(child)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=error is None, cancel_futures=True)
        for child in self._children:
            child.close()

    def encode(self, chunks: Iterable[Sequence[NumberedRow]]) -> Iterator[Chunk]:
        """The chunks' examples, in order.

        Raises:
            UsageError: the template must not be used.
            DuitiError: a child died of something else.
        """
        waiting: deque[Future[Chunk]] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._encode, chunk))
            if len(waiting) > AHEAD * len(self._children):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, rows: Sequence[NumberedRow]) -> Chunk:
        child = self._free.get()
        try:
            return child.encode(rows)
        finally:
            self._free.put(child)


class PromptService:
    """Prompts as serving sends them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._encoder: Encoder | None = None
        self._child: _Child | None = None

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> list[int]:
        """The ids that a model is given.

        Raises:
            RowError: the template refuses the conversation.
            UsageError: the template must not be used.
        """
        if self._job.spec.is_ours:
            return self._own().prompt_ids(messages, tools)
        ids: list[int] = self._ask("ids", messages, tools)["ids"]
        return ids

    def prompt(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The text that a model is given."""
        if self._job.spec.is_ours:
            return self._own().renderer.prompt(messages, tools)
        return str(self._ask("prompt", messages, tools)["text"])

    def transcript(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The text of finished turns."""
        if self._job.spec.is_ours:
            return self._own().renderer.transcript(messages, tools)
        return str(self._ask("transcript", messages, tools)["text"])

    def answer_prefix(self) -> str:
        """What the template writes between the cue and an answer's own text (often a space)."""
        probe = "zqxtext"  # a text that no template contains
        question = Message(role="user", content="zqxwhat")
        try:
            prompt = self.prompt([question])
            finished = self.transcript([question, Message(role="assistant", content=probe)])
        except RowError:
            return ""  # a template for which this is no conversation
        if not finished.startswith(prompt):
            return ""
        before, found, _ = finished[len(prompt) :].partition(probe)
        return before if found else ""

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _own(self) -> Encoder:
        if self._encoder is None:
            job = self._job
            tokenizer = Tokenizer.from_str(job.tokenizer_json)
            self._encoder = Encoder(job.spec, tokenizer, job.options)
        return self._encoder

    def _ask(self, op: str, messages: Sequence[Message], tools: Sequence[Json]) -> dict[str, Any]:
        if self._child is None:
            self._child = _Child(self._job)
        request = {"op": op, "messages": [asdict(m) for m in messages], "tools": list(tools)}
        answer, _ = self._child.ask(request, rows=())
        return answer


def encode_here(job: Job, chunks: Iterable[Sequence[NumberedRow]]) -> Iterator[Chunk]:
    """The chunks' examples, made in this process. For templates of our own making only.

    Raises:
        UsageError: the template is not valid.
    """
    assert job.spec.is_ours
    try:
        encoder = Encoder(job.spec, Tokenizer.from_str(job.tokenizer_json), job.options)
        rows = RowEncoder(encoder, job.mapping, job.markers)
        for chunk in chunks:
            yield rows.encode(chunk)
    except TemplateFault as fault:
        raise _refused(job.spec, str(fault)) from None
    except FaultAt as fault:
        raise _refused(job.spec, fault.fault) from None


class _Child:
    """One child process; started at the first request, ended when nobody needs it any more."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._notes: IO[bytes] | None = None

    def encode(self, rows: Sequence[NumberedRow]) -> Chunk:
        account = Account()
        good = [item for item in rows if account.pass_by(item)]
        found = [(item.source, item.row) for item in good if isinstance(item.row, Row)]
        request = [[source, row.origin.line, dict(row.fields)] for source, row in found]
        answer, payload = self.ask({"rows": request}, rows=[row.origin for _, row in found])
        try:
            own, block = Account.from_dict(answer["account"]), unpack(answer, payload)
            check_block(block)
        except (KeyError, TypeError, ValueError):
            raise self._died([row.origin for _, row in found]) from None
        for counts in own.sources.values():
            counts.rows = 0  # counted above
        account.add(own)
        account.rejected.sort(key=lambda rejected: rejected[:2])
        return Chunk(block, account)

    def ask(
        self, request: dict[str, Any], *, rows: Sequence[Origin]
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer."""
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            write_frame(process.stdin, request)
            answer, payload = read_frame(process.stdout)
        except (EOFError, OSError):
            raise self._died(rows) from None
        if "fault" in answer:
            place = answer.get("place")
            raise _refused(
                self._job.spec, answer["fault"], rows[place] if place is not None else None
            )
        if "fast_path" in answer:
            raise FastPathFault
        if "error" in answer:
            raise RowError(answer["error"])
        return answer, payload

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process = None
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        job = self._job
        self._notes = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        self._notes.seek(64)  # the place of a row stands before whatever else the child writes
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "duiti.data.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._notes,
                env=_environment(),
            )
        except OSError as error:
            self._notes.close()
            raise DuitiError(
                f"no process to prepare rows can be started ({error.strerror or error})"
            ) from error
        self._end = weakref.finalize(self, _end, self._process, self._notes)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        start = {
            "spec": job.spec.as_dict(),
            "options": asdict(job.options),
            "mapping": dict(job.mapping),
            "markers": list(job.markers),
        }
        write_frame(self._process.stdin, start, job.tokenizer_json.encode("utf-8"))
        answer, _ = read_frame(self._process.stdout)
        if "fault" in answer:
            raise _refused(job.spec, answer["fault"])
        return self._process

    def _died(self, rows: Sequence[Origin]) -> DuitiError:
        assert self._process is not None
        assert self._notes is not None
        with suppress(subprocess.TimeoutExpired):  # it is dying, or has said something wrong
            self._process.wait(timeout=5)
        self._process.kill()
        code = self._process.wait()
        self._notes.seek(0)
        noted = self._notes.read(12).strip()
        # "-1" stands there between requests.
        origin = rows[int(noted)] if noted.isdigit() and int(noted) < len(rows) else None
        self.close()
        if code == -signal.SIGPROF:
            return _refused(self._job.spec, "does not come to an end", origin)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        where = f" at {origin}" if origin is not None else ""
        return DuitiError(
            f"the process that prepares rows died{where} ({how})",
            why=_WHY_DIED.get(-code, ""),
            fix="the same command goes on from there; look at that row if it dies again",
        )


_WHY_DIED: dict[int, str] = {
    signal.SIGKILL: "it may have run out of memory",
    signal.SIGXCPU: "it computed for minutes: a pattern in tokenizer.json, or a row, has no end",
}


def _end(process: subprocess.Popen[bytes], notes: IO[bytes]) -> None:
    """End a child, whatever it is doing: killed first, as closing a pipe waits for its reader."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent yet has nowhere to go
                pipe.close()
    notes.close()


def _environment() -> dict[str, str]:
    """Many children, one thread each; and nothing of this environment that they have no use for."""
    names = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "OPENBLAS_CORETYPE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, **single, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def _refused(spec: TemplateSpec, fault: str, origin: Origin | None = None) -> UsageError:
    where = f" ({origin})" if origin is not None else ""
    return UsageError(
        f"the template {spec.name} {fault}{where}",
        why="a chat template is a program that came with the model; it is stopped, not trusted",
        fix="choose another, such as --template chatml, or mend chat_template.jinja",
    )
