"""Hidden states on disk, found by the ids of the document that they belong to.

    documents = Documents([store], group_tokens=2048)
    kept = KeptStates(documents, folder, width=1024, dtype=torch.bfloat16)
    places = documents.find(batch.documents)         # None: one of them is not among these
    for group in kept.missing(places):
        kept.write(group, states_of(documents.ids(group)))
    states = kept.read(places, device)               # [T, D]

Which documents are computed together is a function of the rows and their order alone. So the bytes
of a document do not depend on how updates are cut into micro-batches, nor on where a run was taken
up again.

The file has no name: it is gone when this object is, or the process, however that ends. It is
written by `pwrite`, so that a full disk is an error and no signal, and read through a memory map.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from duiti.errors import DuitiError
from duiti.types import Example, TokenIds


class Documents:
    """All different documents of some rows, laid end to end, in groups that are computed together.

    Args:
        rows: in the order in which they will first be asked for.
        group_tokens: tokens of a group (a longer document is one alone).
    """

    def __init__(self, rows: Iterable[Sequence[Example]], *, group_tokens: int) -> None:
        self._places: dict[bytes, int] = {}
        self._sources: list[tuple[Sequence[Example], int]] = []
        starts, borders, group_of = [0], [0], []
        for store in rows:
            first = len(self._sources)  # rows to measure on change no group of those to train on
            for index in range(len(store)):
                ids = store[index].input_ids
                place = len(self._sources)
                if self._places.setdefault(_digest(ids), place) != place:
                    continue  # the same text as before
                end = starts[-1] + len(ids)
                is_full = end - starts[borders[-1]] > group_tokens
                if place > borders[-1] and (is_full or place == first):
                    borders.append(place)
                self._sources.append((store, index))
                starts.append(end)
                group_of.append(len(borders) - 1)
        self.starts = np.array(starts, np.int64)
        """[N+1] the first token of each document, and the end."""
        self.borders = [*borders, len(self._sources)]
        """[G+1] the first document of each group, and the end."""
        self._group_of = np.array(group_of, np.int32)

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def num_groups(self) -> int:
        return len(self.borders) - 1

    def find(self, documents: Sequence[TokenIds]) -> list[int] | None:
        """The place of each document by its content, or None where one of them has none."""
        found = [self._places.get(_digest(ids)) for ids in documents]
        places = [place for place in found if place is not None]
        return places if len(places) == len(found) else None

    def groups_of(self, places: Sequence[int]) -> list[int]:
        """The groups that these places lie in, each once."""
        return list(dict.fromkeys(self._group_of[places].tolist()))

    def ids(self, group: int) -> list[TokenIds]:
        """Of a group's documents, in order."""
        begin, end = self.borders[group : group + 2]
        return [store[index].input_ids for store, index in self._sources[begin:end]]


class KeptStates:
    """Room for a [L, D] state of every document, and a note of which are there.

    Args:
        folder: where the file lies.
        width: D.
        dtype: of the states, kept to the bit.

    Raises:
        OSError: the disk does not hold them.
    """

    def __init__(
        self, documents: Documents, folder: Path, *, width: int, dtype: torch.dtype
    ) -> None:
        self.documents = documents
        self._width, self._dtype = width, dtype
        self._row_bytes = width * dtype.itemsize
        self._is_there = [False] * documents.num_groups
        self._file, self._map = _open(folder, self.num_bytes)
        weakref.finalize(self, os.close, self._file)

    @property
    def num_bytes(self) -> int:
        return self.documents.num_tokens * self._row_bytes

    def missing(self, places: Sequence[int]) -> list[int]:
        """Groups that have to be written before these places can be read."""
        return [group for group in self.documents.groups_of(places) if not self._is_there[group]]

    def write(self, group: int, states: Tensor) -> None:
        """Keep the [T, D] states of a group's documents, end to end.

        Raises:
            DuitiError: the disk does not take them.
        """
        begin, end = (self.documents.starts[p] for p in self.documents.borders[group : group + 2])
        assert (states.shape, states.dtype) == ((end - begin, self._width), self._dtype)
        left = _bytes_of(states.cpu().contiguous()).reshape(-1).data
        offset = int(begin) * self._row_bytes
        try:
            while left:
                written = os.pwrite(self._file, left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise DuitiError(
                f"the output of frozen layers cannot be kept on disk: {error.strerror}",
                fix="--no-cache does without",
            ) from None
        self._is_there[group] = True

    def read(self, places: Sequence[int], device: torch.device) -> Tensor:
        """[T, D] states of documents that are there, end to end."""
        starts = self.documents.starts
        spans = [(int(starts[place]), int(starts[place + 1])) for place in places]
        total = sum(end - start for start, end in spans)
        # Page-locked, a copy to a GPU does not wait for what the GPU is doing.
        is_pinned = device.type == "cuda"
        states = torch.empty(total, self._width, dtype=self._dtype, pin_memory=is_pinned)
        into, done = _bytes_of(states), 0
        stored = np.frombuffer(self._map, np.uint8).reshape(-1, self._row_bytes)
        for start, end in spans:
            into[done : done + end - start] = stored[start:end]
            done += end - start
        # Pages of a map count as memory of the process; the system keeps what it has of the file.
        self._map.madvise(mmap.MADV_DONTNEED)
        return states.to(device, non_blocking=True)


def _open(folder: Path, num_bytes: int) -> tuple[int, mmap.mmap]:
    """A file without a name that has its room on the disk already, and its map."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
            os.truncate(file.fileno(), num_bytes)
        return os.dup(file.fileno()), mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_READ)


def _bytes_of(states: Tensor) -> npt.NDArray[np.uint8]:
    """[T, D * itemsize], the same memory: numpy knows no bfloat16."""
    found: npt.NDArray[np.uint8] = states.view(torch.uint8).numpy()
    return found


def _digest(ids: TokenIds) -> bytes:
    return blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16).digest()
