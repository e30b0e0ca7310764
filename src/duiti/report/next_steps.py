"""What to do next, by what came of a run: commands that can be pasted, each with its reason.

for step in next_steps(data, verdict):
    step.why, step.command
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from duiti.data.reading.sources import parse_source
from duiti.report.read import ReportData
from duiti.report.verdict import Verdict
from duiti.run import CONFIG_FILE

MAX_STEPS = 6
FALLING = 0.05
"""Share by which held-out loss falls between two measurements where training was too short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """One command, and what it is for."""

    why: str
    command: str


def next_steps(data: ReportData, verdict: Verdict) -> list[NextStep]:
    """The most useful first."""
    if not data.has_weights:
        return [NextStep(why="Go on where it was stopped",
                         command=_command("train", "--resume", str(data.folder)))]  # fmt: skip
    found = [*_mend(data, verdict), *_measure(data, verdict), *_improve(data)]
    if verdict.lights["same"].colour != "red":
        found.append(NextStep(why="Ask it something", command=_command("chat", str(data.folder))))
        if verdict.lights["learned"].colour != "red":
            found.append(_export(data))
    unique = {step.command: step for step in reversed(found)}
    return [step for step in found if unique.get(step.command) is step][:MAX_STEPS]


def reproduce(data: ReportData) -> list[NextStep]:
    """How to make the same run again."""
    again = _again(data, "")
    steps = [NextStep(why="With the settings of this run, all of them resolved", command=again)]
    if data.environment.command:
        typed = shlex.join(data.environment.command)
        steps.insert(0, NextStep(why="As it was typed", command=typed))
    return steps


def _mend(data: ReportData, verdict: Verdict) -> list[NextStep]:
    """What is wrong."""
    lights, found = verdict.lights, []
    if lights["same"].colour == "red":
        found.append(NextStep(why="The saved files are not to be used: look at what the machine"
                              " and the libraries are", command="duiti doctor"))  # fmt: skip
    if lights["stops"].colour in ("amber", "red"):
        found.append(NextStep(why="See whether each answer's stop token is trained",
                              command=_command("check", "-c", _config(data))))  # fmt: skip
    if lights["forgot"].colour in ("amber", "red"):
        why = "Hold it near the base: rehearsal rows, and a bound on the drift"
        found.append(NextStep(why=why, command=_again(data, "--replay 5% --max-drift 0.05")))
    if lights["learned"].colour in ("amber", "red"):
        if data.curves.get("val_loss") is not None and "rose since" in lights["learned"].says:
            why = "Stop where held-out loss is lowest"
            found.append(NextStep(why=why, command=_again(data, "--patience 3")))
        if data.found_rate is None:
            why = "Search the learning rate on your rows"
            found.append(NextStep(why=why, command=_again(data, "--learning-rate auto --find-lr")))
        if data.more_data is None:
            why = "Find out whether more rows would help"
            found.append(NextStep(why=why, command=_again(data, "--more-data")))
    return found


def _measure(data: ReportData, verdict: Verdict) -> list[NextStep]:
    """What is not known."""
    lights, found = verdict.lights, []
    if data.evaluation is None and "val_loss" not in data.curves:
        why = "Hold rows out, to know whether it learned"
        found.append(NextStep(why=why, command=_again(data, "--val 5% --metrics exact_match")))
    elif lights["stops"].colour == "grey":
        why = "Have it write answers to the held-out questions"
        found.append(NextStep(why=why, command=_again(data, "--metrics exact_match")))
    return found


def _improve(data: ReportData) -> list[NextStep]:
    """What can be better."""
    found = []
    epochs = data.config.get("epochs")
    if _is_falling(data) and isinstance(epochs, int):
        why = "Held-out loss was still falling: train longer"
        found.append(NextStep(why=why, command=_again(data, f"--epochs {2 * epochs}")))
    counts = data.rows.counts if data.rows is not None else {}
    file = _file_with_rows(data)
    if file is None or counts.get("contradictory", 0) + counts.get("never_learned", 0) == 0:
        return found
    words = ["eval", str(data.folder), file, "--rows"]
    if isinstance(renamed := data.config.get("map"), dict) and renamed:
        words += ["--map", ",".join(f"{name}={field}" for name, field in renamed.items())]
    why = "Look at the rows that fight the others"
    if counts.get("contradictory", 0):
        words += ["--clean", "cleaned.jsonl"]
        why += ", and write a cleaned file beside yours"
    return [*found, NextStep(why=why, command=_command(*words))]


def _is_falling(data: ReportData) -> bool:
    """Whether held-out loss fell by more than `FALLING` of itself from its last measurement but one
    to the last, which is the lowest."""
    curve = data.curves.get("val_loss")
    if curve is None or len(curve.values) < 3:
        return False
    before, last = float(curve.values[-2]), curve.last
    return last <= float(curve.values.min()) and before - last > FALLING * abs(before)


def _file_with_rows(data: ReportData) -> str | None:
    """The file whose rows are told of first, without the share of it that was taken; None: no file
    of the run is."""
    files = [parse_source(name).name for name in _sources(data)]
    origins = [row.origin.rpartition(":")[0] for row in data.rows.rows] if data.rows else []
    names = {Path(origin).name for origin in origins}
    return next((file for file in files if Path(file).name in names), None)


def _export(data: ReportData) -> NextStep:
    words = ["export", "merged", str(data.folder), "-o", f"{data.folder.name}-merged"]
    why = "One model without an adapter, for any server"
    best = data.strength.recommended if data.strength is not None else None
    if best is not None and best != 1:
        words += ["--strength", f"{best:g}"]
        why = "One model for any server, with the adapter at the strength that is recommended"
    return NextStep(why=why, command=_command(*words))


def _config(data: ReportData) -> str:
    return str(data.folder / CONFIG_FILE)


def _again(data: ReportData, flags: str) -> str:
    output = f"{data.folder.name}-again"
    settings = _command("train", "-c", _config(data), "-o", f"runs/{output}")
    return f"{settings} {flags}".rstrip()


def _sources(data: ReportData) -> list[str]:
    found = data.config.get("data")
    return [str(name) for name in found] if isinstance(found, list) else []


def _command(*words: str) -> str:
    return shlex.join(["duiti", *words])
