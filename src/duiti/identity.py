"""What a run was made of, as hashes: data, base model, tokenizer, template.

    identity = identity_of(material)            # after the weights were loaded, so they are here
    for difference in differences(then, identity):
        print(difference.key, difference.describe())

Where things lie does not matter, and what they hold does: a data file may be moved, a base model be
named by another path. Settings are not part of it: `config.yaml` tells them, one by one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duiti.data.prepare import Prepared
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.infer.digests import base_digest, template_digest, tokenizer_digest
from duiti.infer.stored import verified
from duiti.material import Material
from duiti.model.artefact import SHA256, TrainedOn
from duiti.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsIdentity:
    """Some rows: the files that they come from, and what became of them."""

    files: tuple[tuple[str, str], ...]
    """(name without its folder, sha256) of each; none for rows that were given from Python."""
    examples: int
    sha256: str
    """Over all examples in their order: ids, and which of them are trained with which weight."""

    def as_dict(self) -> dict[str, Json]:
        files: list[Json] = [{"file": name, "sha256": digest} for name, digest in self.files]
        return {"files": files, "examples": self.examples, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: object) -> RowsIdentity:
        """Strictly what `as_dict` gives.

        Raises:
            DuitiError: it is anything else.
        """
        match values:
            case {"files": list(files), "examples": int(examples), "sha256": str(sha256), **rest}:
                named = tuple(_file(each) for each in files)
                if not rest and SHA256.fullmatch(sha256) and not isinstance(examples, bool):
                    return cls(files=named, examples=examples, sha256=sha256)
        raise _foreign("rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that decides what a run becomes, settings aside."""

    data: RowsIdentity
    val: RowsIdentity
    """No files where validation rows are a share of the data, or there are none."""
    trained_on: TrainedOn
    rehearsed: str = ""
    """sha256 of the texts that are rehearsed; empty: there are none."""

    def as_dict(self) -> dict[str, Json]:
        return {
            "data": self.data.as_dict(),
            "val": self.val.as_dict(),
            "rehearsed": self.rehearsed,
            "trained_on": self.trained_on.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: object) -> Identity:
        """Strictly what `as_dict` gives.

        Raises:
            DuitiError: it is anything else.
        """
        match values:
            case {
                "data": data,
                "val": val,
                "rehearsed": str(rehearsed),
                "trained_on": trained_on,
                **rest,
            } if not rest:
                return cls(
                    data=RowsIdentity.from_dict(data),
                    val=RowsIdentity.from_dict(val),
                    rehearsed=rehearsed,
                    trained_on=TrainedOn.from_dict(trained_on),
                )
        raise _foreign("a run's parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not what it was."""

    key: str
    """What a user names to allow it: data, val, replay, base, tokenizer, template."""
    what: str
    """`my.jsonl was changed`"""
    then: str = ""
    now: str = ""

    def describe(self) -> str:
        """The difference in a line, without its key."""
        return f"{self.what} ({self.then} → {self.now})" if self.then or self.now else self.what

    def __str__(self) -> str:
        return f"{self.key}: {self.describe()}"


def identity_of(material: Material) -> Identity:
    """The hashes of what a run is made of. The base's weights must be here already.

    Raises:
        UsageError: a file of the base is not here, or cannot be read.
        Damaged: the base was made by duiti, and is not what was written.
    """
    if material.source.is_local:
        verified(Path(material.source.location))
    base = base_digest(material.source)
    prepared, *val = material.prepared
    return Identity(
        data=_rows(prepared, material.train),
        val=_rows(val[0] if val else None, material.val),
        trained_on=TrainedOn(
            base=material.source.name,
            weights=base.weights,
            config=base.config,
            tokenizer=tokenizer_digest(material.tokenizer),
            template=template_digest(material.template),
        ),
    )


def differences(then: Identity, now: Identity) -> list[Difference]:
    """Everything that is not what it was, in words; none where the run would be the same."""
    found = _row_differences("data", then.data, now.data)
    if not found or then.val.files or now.val.files:  # a share of other data is another share
        found += _row_differences("val", then.val, now.val)
    if then.rehearsed != now.rehearsed:
        what = "the texts that are rehearsed are others"
        then_now = _short(then.rehearsed), _short(now.rehearsed)
        found.append(Difference(key="replay", what=what, then=then_now[0], now=then_now[1]))
    one, other = then.trained_on, now.trained_on
    for key, what, before, after in (
        ("base", f"the weights of {_both(one.base, other.base)} are others",
         one.weights, other.weights),
        ("base", f"the config.json of {_both(one.base, other.base)} says something else",
         one.config, other.config),
        ("tokenizer", "the tokenizer is another", one.tokenizer, other.tokenizer),
        ("template", "the template is another", one.template, other.template),
    ):  # fmt: skip
        if before != after:
            found.append(Difference(key=key, what=what, then=_short(before), now=_short(after)))
    return found


def examples_digest(store: ExampleStore) -> str:
    """sha256 over what is trained of these examples, in their order.

    Column by column, so that it does not matter in which blocks they lie."""
    columns = ("input_ids", "lengths", "span_counts", "spans", "weights")
    hashes = {name: hashlib.sha256() for name in columns}
    for block in store.blocks():
        for name, column in zip(
            columns,
            (block.input_ids, block.lengths, block.span_counts, block.spans, block.weights),
            strict=True,
        ):
            hashes[name].update(np.ascontiguousarray(column).data)
    whole = "".join(f"{name} {each.hexdigest()}\n" for name, each in hashes.items())
    return hashlib.sha256(whole.encode()).hexdigest()


def _rows(prepared: Prepared | None, store: ExampleStore) -> RowsIdentity:
    files = () if prepared is None else prepared.files
    return RowsIdentity(
        files=tuple((Path(file.name).name, file.sha256) for file in files),
        examples=len(store),
        sha256=examples_digest(store),
    )


def _row_differences(key: str, then: RowsIdentity, now: RowsIdentity) -> list[Difference]:
    gone, new = _unmatched(then, now), _unmatched(now, then)
    found = [
        Difference(key=key, what=f"{name} was changed", then=_short(gone[name]),
                   now=_short(new[name]))
        for name in gone if name in new
    ]  # fmt: skip
    found += [Difference(key=key, what=f"{name} is gone") for name in gone if name not in new]
    found += [Difference(key=key, what=f"{name} is new") for name in new if name not in gone]
    if not found and then.sha256 != now.sha256:
        as_before = "the files are the same, and what is made of them is not"
        what = as_before if now.files else "the rows are others"
        found.append(Difference(key=key, what=what, then=_counted(then), now=_counted(now)))
    return found


def _unmatched(these: RowsIdentity, those: RowsIdentity) -> dict[str, str]:
    """Files of these whose content is not among those, by name."""
    left = Counter(digest for _, digest in those.files)
    found = {}
    for name, digest in these.files:
        if left[digest]:
            left[digest] -= 1
        else:
            found[name] = digest
    return found


def _counted(rows: RowsIdentity) -> str:
    return f"{rows.examples:,} examples {_short(rows.sha256)}"


def _both(then: str, now: str) -> str:
    return then if then == now else f"{now} (it was {then})"


def _short(digest: str) -> str:
    return f"{digest[:8]}…"


def _file(values: object) -> tuple[str, str]:
    match values:
        case {"file": str(name), "sha256": str(digest), **rest}:
            if not rest and SHA256.fullmatch(digest):
                return name, digest
    raise _foreign("files")


def _foreign(what: str) -> DuitiError:
    return DuitiError(f"this does not tell {what} as duiti tells them")
