"""The checkpoints of a run: written whole, verified, and never all lost.

    path = save(run / "checkpoints", 200, write, facts, keep=2, protected={150})
    for found in examine(run / "checkpoints"):       # newest step first, verified one by one
        if found.problem is None: …                  # every byte is what was written

A checkpoint is a folder `step-000200` with a manifest (`manifest.py`). The number in the name tells
which is newest; times of files tell nothing. Where a step is saved again and the name is taken (by
one that is damaged, or of an earlier attempt), it gets `step-000200-2`, which is the newer one.

Removed are, once the new one is verified: valid ones beyond the newest `keep`, and damaged ones
that are older than a valid one, if their manifest is whole (so they were made here). What cannot be
told to be ours is named by `examine` and left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from duiti.disk_errors import explain, explained, gone, shown_path
from duiti.durable import (
    make_folder,
    new_folder,
    remove_folder,
    remove_leftovers,
    require_space,
    sync_folder,
    temporary_of,
)
from duiti.errors import DuitiError
from duiti.manifest import Damaged, check_manifest, read_manifest, write_manifest
from duiti.types import Json

CHECKPOINTS = "checkpoints"
"""Of a run: the folder that this module keeps."""

STEP_FACT = "step"
"""The manifest says it too, so that a folder that was renamed is not taken for another step."""

_NAME = re.compile(r"step-([0-9]{6,})(?:-([1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that lies where checkpoints do."""

    path: Path
    """Where it is."""
    step: int | None
    """By its name; None: it is not named like a checkpoint."""
    problem: str | None
    """Why it cannot be resumed from; None: every byte is what was written."""
    facts: Mapping[str, Json] = field(default_factory=dict)
    """Of its manifest, where there is no problem."""


def save(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    facts: Mapping[str, Json],
    *,
    keep: int,
    protected: Collection[int] = (),
    num_bytes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write a checkpoint, verify it, and remove those that are no longer needed; its folder.

    Args:
        folder: of the checkpoints; made if need be, in that of the run, which must be there.
        write: fills a folder with the files of the checkpoint.
        facts: what the manifest says beside the step.
        keep: how many valid ones stay, this one included.
        protected: steps that stay besides, such as the best one.
        num_bytes: that `write` will write, where it is known: asked for before anything is written.
        say: takes a line where old ones cannot be removed; None: that is an error, once this one is
            safe.

    Raises:
        DuitiError: it cannot be written, or the disk gives back other bytes; every older one is as
            it was, and nothing of this one is left.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint is kept")
    if facts.get(STEP_FACT, step) != step:
        raise ValueError(f"facts of another step than {step}")
    troubles: list[DuitiError] = []
    filled = partial(_fill, write=write, facts={**facts, STEP_FACT: step})
    try:
        path = _made(folder, step, filled, num_bytes, troubles)
    except DuitiError:
        if folder.is_dir():
            raise
        # Somebody removed all checkpoints while this one was written: the more it is needed.
        path = _made(folder, step, filled, num_bytes, troubles)
    _verify(path)
    with _collected(troubles):
        # Newer ones of an attempt that was given up may lie there; this one stays beside them.
        prune(folder, keep=keep, protected={*protected, step})
    for trouble in troubles:
        if say is None:
            raise trouble
        say(str(trouble))
    return path


def _made(
    folder: Path,
    step: int,
    fill: Callable[[Path], None],
    num_bytes: int | None,
    troubles: list[DuitiError],
) -> Path:
    if not folder.absolute().parent.is_dir():
        raise gone(folder.absolute().parent)
    make_folder(folder)
    with _collected(troubles):  # first, for the space that they take
        remove_leftovers(folder)
    if num_bytes is not None:
        require_space(folder, num_bytes)
    path = _free_path(folder, step)
    with new_folder(path, num_bytes=num_bytes) as temporary:
        fill(temporary)
    return path


def _fill(folder: Path, *, write: Callable[[Path], None], facts: Mapping[str, Json]) -> None:
    write(folder)
    write_manifest(folder, facts)


def candidates(folder: Path) -> list[Candidate]:
    """All that lies there: checkpoints, newest step first, each verified; then what is none."""
    return list(examine(folder))


def examine(folder: Path) -> Iterator[Candidate]:
    """The same one by one: who stops at the first valid one has read no other."""
    checkpoints, others = _listed(folder)
    for found in checkpoints:
        yield _verified(found)
    for path in others:
        pid = temporary_of(path.name)
        unfinished = f"it was left unfinished by process {pid}"
        yield Candidate(path, None, unfinished if pid else "it is not named like a checkpoint")


def prune(folder: Path, *, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """Remove checkpoints that are no longer needed; returns which. Only ever with `keep` (at least
    one) newer valid ones there, or one of the same step, or, where damaged, one.

    Raises:
        DuitiError: some cannot be removed (the others are).
    """
    valid_steps: list[int] = []
    removed: list[Path] = []
    troubles: list[DuitiError] = []
    for found in _listed(folder)[0]:
        with _collected(troubles):
            is_superseded = found.step in valid_steps
            if not is_superseded and len(valid_steps) < keep and _verified(found).problem is None:
                valid_steps.append(found.step)
            elif found.step in protected and not is_superseded:
                continue
            elif valid_steps and _is_ours(found):
                remove_folder(found.path)
                removed.append(found.path)
    if troubles:
        raise troubles[0]
    return removed


def prune_surplus(folder: Path, *, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """The same for a run that goes on: its process may have been killed between a checkpoint and
    the removal of older ones, and it may have none left to make. Nothing is read where there are
    no more than `keep`."""
    if len(_listed(folder)[0]) <= keep:
        return []
    return prune(folder, keep=keep, protected=protected)


def set_aside(folder: Path, *, after: int) -> list[Path]:
    """Rename the checkpoints of later steps, for a run that goes on from this one: they belong to a
    future that was given up, and would be resumed from as the newest. Returns their new names.

    Raises:
        DuitiError: one cannot be renamed.
    """
    renamed = []
    for found in _listed(folder)[0]:
        if found.step > after and _is_ours(found):
            free = (
                found.path.with_name(f"{found.path.name}.given-up{suffix}")
                for suffix in ("", *(f"-{number}" for number in range(2, 10_000)))
            )
            target = next(path for path in free if not os.path.lexists(path))
            with explained(found.path.absolute(), done="renamed"):
                os.rename(found.path, target)
                sync_folder(folder)
            renamed.append(target)
    return renamed


@dataclass(frozen=True, slots=True)
class _Named:
    """Something named like a checkpoint."""

    path: Path
    step: int
    attempt: int
    """1 for the first one of its step."""


def _listed(folder: Path) -> tuple[list[_Named], list[Path]]:
    """What is named like a checkpoint, newest first, and the rest."""
    try:
        names = sorted(os.listdir(folder)) if folder.exists() else []
    except OSError as error:
        raise explain(error, folder.absolute(), done="read") from error
    found, others = [], []
    for name in names:
        match = _NAME.fullmatch(name)
        step, attempt = (int(match[1]), int(match[2] or 1)) if match else (0, 1)
        # One spelling for one step, or two names could be the newest.
        if match and name == _name(step, attempt):
            found.append(_Named(folder / name, step, attempt))
        else:
            others.append(folder / name)
    found.sort(key=lambda one: (one.step, one.attempt), reverse=True)
    return found, others


def _name(step: int, attempt: int = 1) -> str:
    return f"step-{step:06}" if attempt == 1 else f"step-{step:06}-{attempt}"


def _free_path(folder: Path, step: int) -> Path:
    taken = [found.attempt for found in _listed(folder)[0] if found.step == step]
    return folder / _name(step, max(taken, default=0) + 1)


def _verified(found: _Named) -> Candidate:
    if kind := _odd_kind(found.path):
        return Candidate(found.path, found.step, kind)
    try:
        facts = check_manifest(found.path)
    except Damaged as error:
        return Candidate(found.path, found.step, error.reason)
    if (step := facts.get(STEP_FACT)) != found.step:
        what = f"of step {step}" if isinstance(step, int) else "no checkpoint"
        return Candidate(found.path, found.step, f"it is {what} by its manifest")
    return Candidate(found.path, found.step, None, facts)


def _odd_kind(path: Path) -> str:
    """What it is, if it is no folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        raise explain(error, path.absolute(), done="read") from error
    if stat.S_ISDIR(mode):
        return ""
    return "it is a symbolic link" if stat.S_ISLNK(mode) else "it is a file, not a folder"


def _is_ours(found: _Named) -> bool:
    """Whether it was made here, under this name: only then it may be removed."""
    if _odd_kind(found.path):
        return False
    try:
        return read_manifest(found.path).facts.get(STEP_FACT) == found.step
    except Damaged:
        return False


def _verify(path: Path) -> None:
    """Read back what was just written; what is not as it was written does not stay."""
    try:
        check_manifest(path, from_disk=True)
    except Damaged as error:
        remove_folder(path)
        raise DuitiError(
            f"{shown_path(path)} could not be written: read back, {error.reason}",
            why="the disk does not give back what was written to it; older checkpoints are kept",
            fix="look at the disk (dmesg, smartctl), and keep runs on another one",
        ) from None


@contextmanager
def _collected(troubles: list[DuitiError]) -> Iterator[None]:
    try:
        yield
    except DuitiError as error:
        troubles.append(error)
