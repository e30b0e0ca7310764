"""`--replay 5%`: general text among the rows, so that what the base could is rehearsed.

    count = num_rehearsed(len(train), share=0.05)
    texts = rehearsal(make_anchor(…, num_texts=count).examples, count, seed=0)
    write_rehearsal(folder, texts)                      # data/replay.safetensors: ids and borders
    texts = read_rehearsal(folder, count, num_embeddings=…)      # on resuming
    rows = train.joined(texts)                          # a store like any other
    ledger = with_rehearsal(ledger, texts, name="rehearsal")     # `duiti.data.ledger`

Every text is trained as a whole, but for its first token, which follows nothing. Rehearsed rows
stand behind the others and are rows like them: the order of an epoch, and so where they come,
follows from (seed, epoch). Which texts they are is decided once; they are kept in the run's folder,
as what the base writes depends on the machine that it writes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from duiti.data.storage.store import ExampleStore
from duiti.disk_errors import explained
from duiti.durable import make_folder, write_file
from duiti.errors import DuitiError, UsageError
from duiti.types import IGNORE_INDEX, Example, Origin, TokenIds

REHEARSAL_FILE = "data/replay.safetensors"
REHEARSED = "<replay>"
"""The file that rehearsed rows are said to come from, each in a line of its own."""
_STREAM = 0x5EA9
"""Sets the choice of texts apart from other numbers that follow from the seed."""
_IDS, _BORDERS = "input_ids", "borders"


def num_rehearsed(num_rows: int, *, share: float) -> int:
    """How many rows to add, so that these make up that share of all; at least one."""
    return max(1, round(num_rows * share / (1 - share)))


def rehearsal(texts: Sequence[Example], count: int, *, seed: int) -> ExampleStore:
    """That many of the texts, drawn with the seed; where there are fewer, each as often as the
    others but for one time.

    Args:
        texts: of at least two tokens each; what of them is supervised does not matter.

    Raises:
        UsageError: there is no text.
    """
    long_enough = [text.input_ids for text in texts if len(text) > 1]
    if not long_enough:
        raise UsageError(
            "replay: there is no text to rehearse",
            fix="name a file with text: --replay 5%:general.txt",
        )
    chance = np.random.default_rng([seed, _STREAM])
    rounds = [chance.permutation(len(long_enough)) for _ in range(-(-count // len(long_enough)))]
    return _store([long_enough[place] for place in np.concatenate(rounds)[:count]])


def rehearsal_digest(texts: ExampleStore) -> str:
    """sha256 over ids and borders: what is rehearsed, whatever file it lies in."""
    hashed = hashlib.sha256()
    for array in _flat(texts):
        hashed.update(hashlib.sha256(array.tobytes()).digest())
    return hashed.hexdigest()


def write_rehearsal(folder: Path, texts: ExampleStore) -> None:
    """`data/replay.safetensors` of a run's folder.

    Raises:
        DuitiError: it cannot be written.
    """
    ids, borders = _flat(texts)
    make_folder((folder / REHEARSAL_FILE).parent)
    write_file(folder / REHEARSAL_FILE, save({_IDS: ids, _BORDERS: borders}))


def read_rehearsal(folder: Path, count: int, *, num_embeddings: int) -> ExampleStore:
    """What `write_rehearsal` has written, and nothing else.

    Args:
        count: texts that there have to be.
        num_embeddings: ids lie below it.

    Raises:
        DuitiError: it is missing, or anything about it is not as it was written.
    """
    path = folder / REHEARSAL_FILE
    try:
        with explained(path, done="read"), safe_open(path, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, f"it is no file of tensors ({error})") from None
    if found.keys() != {_IDS, _BORDERS}:
        raise _damaged(path, "it holds other tensors")
    ids, borders = found[_IDS], found[_BORDERS]
    if (ids.dtype, ids.ndim) != (np.int32, 1) or (borders.dtype, borders.ndim) != (np.int64, 1):
        raise _damaged(path, "its tensors are of another kind")
    if len(borders) != count + 1:
        raise _damaged(path, f"it holds {len(borders) - 1} texts, and there have to be {count}")
    if borders[0] != 0 or borders[-1] != len(ids) or (np.diff(borders) < 2).any():
        raise _damaged(path, "its borders are not those of texts")
    if not 0 <= ids.min() <= ids.max() < num_embeddings:
        raise _damaged(path, "it holds tokens that the model does not have")
    return _store(np.split(ids, borders[1:-1]))


def _store(texts: Sequence[TokenIds]) -> ExampleStore:
    return ExampleStore.from_examples(
        Example(input_ids=ids, labels=_labels(ids), origin=Origin(REHEARSED, number))
        for number, ids in enumerate(texts, start=1)
    )


def _labels(ids: TokenIds) -> TokenIds:
    labels = ids.copy()
    labels[0] = IGNORE_INDEX
    return labels


def _flat(texts: ExampleStore) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Ids end to end, and the first of each text, and the end."""
    ids = np.concatenate([text.input_ids for text in texts]).astype("<i4")
    return ids, np.concatenate([[0], np.cumsum(texts.lengths)]).astype("<i8")


def _damaged(path: Path, why: str) -> DuitiError:
    return DuitiError(
        f"{path}: the rehearsed texts are not those of this run",
        why=why,
        fix="a copy of the file, or a new run: with other texts it would not be the same one",
    )
