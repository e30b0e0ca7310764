"""A run that was stopped: from which checkpoint it goes on, and whether what is asked for is still
the same run.

    stopped = find_stopped(locate("runs/my-tiny"))    # or of a checkpoint, or "newest"
    config, changed = stopped.settings(given, allowed=("learning_rate",))
    stopped.hold_same(identity, allowed=())           # data, base, tokenizer, template

Settings that change no number of the run may differ: where things are, how much goes through the
model at once, what is said and kept. Everything else is refused with both values, unless the user
names the key.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from duiti.config import Config, explain, keys, own_settings
from duiti.errors import DuitiError, UsageError, did_you_mean
from duiti.identity import Identity, differences
from duiti.plan import lasting_paths
from duiti.run import CONFIG_FILE, RUNS, Run, is_run, list_runs
from duiti.training.keeper import CHECKPOINTS, Candidate, examine
from duiti.training.state import RunState, read_state

NEWEST = "newest"
"""Stands for the newest run that did not finish."""

FREE = frozenset(
    {
        # Where things are: what they hold is compared instead.
        *("data", "model", "output", "cache"),
        # How much at once, what is said, and what is kept.
        *("micro_batch_tokens", "activation_checkpointing", "max_memory", "workers"),
        *("eval_every", "metrics", "anchor", "track"),
        *("save_every", "keep", "skip_bad_steps", "selfcheck", "proof"),
        # What would have stopped the run before it began.
        *("on_bad_row", "max_lost", "strict", "trust_remote_code"),
    }
)
"""Keys that may differ from the stopped run's: they do not decide what is trained, nor how."""

_ROWS = ("data", "val")
IMPLIED = {
    **dict.fromkeys(("map", "filter", "train_on", "special_tokens", "date", "val", "seed"), _ROWS),
    **dict.fromkeys(("max_length", "over_length", "template"), _ROWS),
}
"""Parts that cannot stay the same where a setting changes."""

PARTS = ("data", "val", "base", "tokenizer", "template")
"""What else may be allowed to differ (`duiti.identity.Difference.key`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to go on."""

    run: Run
    checkpoint: str | None
    """The name of the checkpoint, if one was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A moment of a run from which it can go on."""

    run: Run
    checkpoint: Path
    state: RunState
    config: Config
    """The settings that it was made with."""
    reasons: Mapping[str, str]
    """Of settings that were chosen, by key."""
    identity: Identity
    is_named: bool
    """Whether this checkpoint was asked for: newer ones may be there."""
    skipped: tuple[Candidate, ...]
    """What would have come first and cannot be used, each with its problem."""

    def settings(
        self, given: Mapping[str, Any], *, allowed: Collection[str] = ()
    ) -> tuple[Config, dict[str, str]]:
        """The run's settings with what is given on top, and what is changed by that, by key.

        Raises:
            UsageError: another value of a key that decides what is trained, and is not allowed.
        """
        known = (*keys(), *PARTS)
        for key in allowed:
            if key not in known:
                hint = did_you_mean(key, known)
                raise UsageError(f"--allow-change: no such key: {key}.{hint}")
        then = self.config.model_dump(mode="json")
        try:
            asked = Config.model_validate(_laid_over(own_settings(self.config), given))
        except ValidationError as error:
            raise explain(error) from None
        # The same command given again names the same files, and perhaps by shorter names.
        asked = asked.model_copy(update=lasting_paths(asked))
        before, now = _flat(then), _flat(asked.model_dump(mode="json"))
        changed = {
            key: f"{before[key]} → {now[key]}"
            for key in now
            if before[key] != now[key] and key not in FREE
        }
        _refuse(self.run, {key: text for key, text in changed.items() if key not in allowed})
        return asked, changed

    def hold_same(self, now: Identity, *, allowed: Collection[str] = ()) -> tuple[str, ...]:
        """What differs in content and is allowed to, in words.

        Raises:
            UsageError: data, base, tokenizer or template are not those of the run.
        """
        found = differences(self.identity, now)
        allowed = {*allowed, *(part for key in allowed for part in IMPLIED.get(key, ()))}
        refused: dict[str, str] = {}
        for each in found:
            if each.key not in allowed:
                before = f"{refused[each.key]}; " if each.key in refused else ""
                refused[each.key] = before + each.describe()
        _refuse(self.run, refused)
        return tuple(str(each) for each in found)

    def has_rows_of(self, now: Identity, config: Config) -> bool:
        """Whether the rows are those that it was trained on so far, in the same order."""
        return (
            self.identity.data.sha256 == now.data.sha256
            and self.identity.rehearsed == now.rehearsed
            and self.config.seed == config.seed
        )


def locate(name: str | Path) -> Place:
    """The run of that path, or of that name under `runs/`; or of one of its checkpoints.

    Raises:
        UsageError: there is none, or none that did not finish.
    """
    if name == NEWEST:
        for run in list_runs():
            if not run.is_finished:
                return Place(run=run, checkpoint=None)
        raise UsageError("every run here is finished", fix="name one: --resume runs/my-tiny")
    for path in (Path(name).expanduser(), RUNS / name):
        if is_run(path):
            return Place(run=Run(path), checkpoint=None)
        if path.parent.name == CHECKPOINTS and is_run(path.parent.parent):
            return Place(run=Run(path.parent.parent), checkpoint=path.name)
    known = ", ".join(run.name for run in list_runs() if not run.is_finished) or "none"
    raise UsageError(f"no run {name}", fix=f"runs here that did not finish: {known}")


def find_stopped(place: Place) -> Stopped:
    """The newest checkpoint that is whole, or the one that was asked for.

    Raises:
        DuitiError: there is none; all that lies there is listed with its problem.
    """
    skipped = []
    for each in _asked_for(place):
        try:
            if each.problem is not None:
                raise DuitiError(each.problem)
            state = read_state(each.path)
            config, reasons, identity = _read_facts(each, place.run.id)
        except DuitiError as error:
            skipped.append(Candidate(each.path, each.step, error.what))
            continue
        return Stopped(
            run=place.run,
            checkpoint=each.path,
            state=state,
            config=config,
            reasons=reasons,
            identity=identity,
            is_named=place.checkpoint is not None,
            skipped=tuple(skipped),
        )
    file = place.run.path / CONFIG_FILE
    listed = [f"{each.path.name}: {each.problem}" for each in skipped]
    raise DuitiError(
        f"{place.run.path}: there is no checkpoint to go on from",
        why="; ".join(listed) or "the run was stopped before the first one",
        fix=f"begin again: {shlex.join(['duiti', 'train', '-c', str(file), '-o', 'ANOTHER'])}",
    )


def _asked_for(place: Place) -> Iterator[Candidate]:
    for each in examine(place.run.path / CHECKPOINTS):
        if place.checkpoint is None or each.path.name == place.checkpoint:
            yield each


def _read_facts(found: Candidate, run_id: str) -> tuple[Config, dict[str, str], Identity]:
    if found.facts.get("run") != run_id:
        raise DuitiError("it belongs to another run")
    match found.facts:
        case {"config": dict(config), "reasons": dict(reasons), "identity": identity}:
            told = {key: str(reason) for key, reason in reasons.items()}
            try:
                return Config.model_validate(config), told, Identity.from_dict(identity)
            except ValidationError:
                raise DuitiError("its settings are not those of this version of duiti") from None
    raise DuitiError("it does not say what it was made of")


def _laid_over(then: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top; what is left to be chosen stays as it was chosen."""
    values = dict(then)
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            values[key] = {**values[key], **value}
        elif value != "auto":
            values[key] = value
    if values["method"] != then["method"]:
        values.pop({"lora": "lora", "last-n": "last_n"}.get(then["method"], ""), None)
    return values


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("lora", "last_n"):
            found |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            found[key] = value
    return found


def _refuse(run: Run, changed: Mapping[str, str]) -> None:
    if not changed:
        return
    flags = " ".join(f"--allow-change {key}" for key in changed)
    raise UsageError(
        "\n".join([f"{run.path} was begun with something else:",
                   *(f"  {key}: {text}" for key, text in changed.items())]),
        why="going on like this would be neither the run that was begun nor a new one",
        fix=f"leave it as it was; or, if you mean it, {flags}",
    )  # fmt: skip
