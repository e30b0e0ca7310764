"""Files that show whether they are what was written, and locks that end with their process.

    seal = write_part(folder, 0, block, account, key=key, previous="")
    block, account, seal = read_part(folder, 0, key=key, previous="")      # or Damaged
    with locked(path, say=print): …

A part is `00000.safetensors` and `00000.json`; the second is written last. It holds the account,
the size and sha256 of the first, the key of the entry and the hash of the part before; and its own
hash. So a file that was changed, cut off, lost or taken from elsewhere is found, and no file says
where another one is. What a part means, and what becomes of a damaged one, is the cache's to say.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from duiti.data.storage.block import (
    BadBlock,
    Block,
    check_block,
    map_block,
    release,
    sync,
    write_block,
)
from duiti.errors import DuitiError
from duiti.types import Json

LAYOUT = 1
"""Of the files; another number is another cache."""

MAX_JSON_BYTES = 2**28
"""Of a part's account: a list of every row of a part, rejected with its reason, has some 2**22."""

SAY_AFTER_S = 0.5
"""Waiting for a lock is not worth a line before: another run may just be checking the entry."""

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO}
_DAMAGE |= {errno.EISDIR, errno.ENXIO}


class Damaged(Exception):
    """A file of an entry that cannot be trusted; says what is wrong with it."""


def canonical(value: Mapping[str, Json]) -> bytes:
    """The one way to write a value as JSON, so that equal values have equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def write_sealed(path: Path, body: Mapping[str, Json], *, durable: bool = True) -> str:
    """Write JSON together with its hash, whole or not at all; returns the hash.

    Raises:
        OSError: no space, no permission; nothing is left behind then.
    """
    seal = hashlib.sha256(canonical(body)).hexdigest()
    content = canonical({"body": dict(body), "sha256": seal})
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: more than {MAX_JSON_BYTES} bytes of JSON")
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)
    return seal


def read_sealed(path: Path) -> tuple[dict[str, Json], str]:
    """The body of a sealed file and its hash.

    Raises:
        Damaged: it is not what was written.
    """
    with _regular(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} is cut off or changed") from None
    match found:
        case {"body": dict(body), "sha256": str(seal)}:
            intact = hashlib.sha256(canonical(body)).hexdigest() == seal
            if intact and content == canonical({"body": body, "sha256": seal}):
                return body, seal
    raise Damaged(f"{path.name} has changed since it was written")


def part_names(index: int) -> tuple[str, str]:
    """Names of the block and of the account of a part."""
    return f"{index:05}.safetensors", f"{index:05}.json"


def write_part(
    folder: Path,
    index: int,
    block: Block,
    account: Mapping[str, Json],
    *,
    key: str,
    previous: str,
    durable: bool = True,
) -> str:
    """Write a part behind the one whose hash is `previous` (`""` before the first); its own hash.

    Raises:
        OSError: no space, no permission; nothing is left behind then.
    """
    block_path, account_path = (folder / name for name in part_names(index))
    write_block(block_path, block, durable=durable)
    try:
        with block_path.open("rb") as file:
            body: dict[str, Json] = {
                "block": {"bytes": file.seek(0, os.SEEK_END), "sha256": _hash(file)},
                "account": dict(account),
                **_place(key, previous),
            }
        return write_sealed(account_path, body, durable=durable)
    except BaseException:
        block_path.unlink(missing_ok=True)
        raise


def read_part(
    folder: Path, index: int, *, key: str, previous: str
) -> tuple[Block, dict[str, Json], str]:
    """Block (mapped), account and hash of a part, after checking every byte of it.

    Raises:
        Damaged: it is not what was written here.
    """
    block_name, account_name = part_names(index)
    body, seal = read_sealed(folder / account_name)
    expected = _place(key, previous)
    if any(body.get(name) != value for name, value in expected.items()):
        raise Damaged(f"{account_name} belongs to another place or entry")
    account = body.get("account")
    if not isinstance(account, dict):
        raise Damaged(f"{account_name} holds no account")
    with _regular(folder / block_name) as file:
        found: Json = {"bytes": file.seek(0, os.SEEK_END), "sha256": _hash(file)}
        if found != body.get("block"):
            raise Damaged(f"{block_name} has changed since it was written")
        block = _checked(file, block_name)
    return block, account, seal


def _checked(file: io.BufferedReader, name: str) -> Block:
    try:
        block = map_block(file.fileno())
        check_block(block)
    except BadBlock as error:
        raise Damaged(f"{name}: {error}") from None
    release(block)
    return block


def _place(key: str, previous: str) -> dict[str, Json]:
    return {"layout": LAYOUT, "key": key, "previous": previous}


def _hash(file: io.BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of an entry: a regular one, never what a symbolic link leads to.

    Raises:
        Damaged: there is none, or it cannot be read.
        OSError: the machine is short of something; the file may well be sound.
    """
    try:
        with open(path, "rb", opener=_without_links) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damaged(f"{path.name} is not a regular file")
            yield file
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        if error.errno in _DAMAGE:
            raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
        raise


def _without_links(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


@contextmanager
def locked(path: Path, *, say: Callable[[str], None], wait_s: float = math.inf) -> Iterator[None]:
    """Hold a lock that ends with the block, or with the process however that ends.

    Raises:
        DuitiError: another process held it for longer than `wait_s`.
        OSError: the file cannot be made, or its file system knows no locks.
    """
    descriptor = _acquire(path, lambda held: _wait(held, path, say=say, wait_s=wait_s))
    assert descriptor is not None
    try:
        # Who it is that others wait for; no more than a courtesy.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        _let_go(descriptor)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """The same without waiting: whether the lock is held here."""
    descriptor = _acquire(path, _try)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _let_go(descriptor)


def _acquire(path: Path, take: Callable[[int], bool]) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            if not take(descriptor):
                os.close(descriptor)
                return None
            # Pruning removes lock files: a lock on one that is gone keeps nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int, path: Path, *, say: Callable[[str], None], wait_s: float) -> bool:
    begin, said = time.monotonic(), False
    while not _try(descriptor):
        waited = time.monotonic() - begin
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        what = f"process {holder or '(unknown)'} is preparing the same data"
        if waited >= wait_s:
            raise DuitiError(
                f"{what}, for more than {wait_s:g} s",
                why=f"it holds the lock {path}",
                fix="wait for it or stop it; --no-cache prepares the data beside it",
            )
        if waited >= SAY_AFTER_S and not said:
            say(f"{what}; waiting for it to finish")
            said = True
        time.sleep(0.05)
    return True


def _let_go(descriptor: int) -> None:
    # Closing alone would leave it to a child that was forked meanwhile.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
