"""What to do next, by what came of a run: commands that can be pasted, each with its reason.

for step in next_steps(data, verdict):
    step.why, step.command
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from duiti.report.read import ReportData
from duiti.report.verdict import Verdict
from duiti.run import CONFIG_FILE

MAX_STEPS = 6
MAX_SOURCES = 5
"""Files that a command names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """One command, and what it is for."""

    why: str
    command: str


def next_steps(data: ReportData, verdict: Verdict) -> list[NextStep]:
    """The most useful first."""
    found = [
        *_mend(data, verdict),
        *_measure(data, verdict),
        *_improve(data, verdict),
        NextStep(why="Ask it something", command=_command("chat", str(data.folder))),
        _export(data, verdict),
    ]
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
                              command=_command("check", *_sources(data))))  # fmt: skip
    if lights["forgot"].colour in ("amber", "red"):
        why = "Hold it near the base: rehearsal rows, and a bound on the drift"
        found.append(NextStep(why=why, command=_again(data, "--replay 5% --max-drift 0.05")))
    if lights["learned"].colour in ("amber", "red"):
        if data.curves.get("val_loss") is not None and "rose since" in lights["learned"].says:
            why = "Stop where held-out loss is lowest"
            found.append(NextStep(why=why, command=_again(data, "--patience 3")))
        if data.found_rate is None:
            why = "Search the learning rate on your rows"
            found.append(NextStep(why=why, command=_again(data, "--find-lr")))
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


def _improve(data: ReportData, verdict: Verdict) -> list[NextStep]:
    """What can be better."""
    counts = data.rows.counts if data.rows is not None else {}
    if counts.get("contradictory", 0) + counts.get("never_learned", 0) == 0:
        return []
    why = "Look at the rows that fight the others, and write a cleaned file beside yours"
    command = _command("eval", str(data.folder), *_sources(data)[:1])
    return [NextStep(why=why, command=f"{command} --rows --clean cleaned.jsonl")]


def _export(data: ReportData, verdict: Verdict) -> NextStep:
    words = ["export", "merged", str(data.folder), "-o", f"{data.folder.name}-merged"]
    why = "One model without an adapter, for any server"
    best = data.strength.recommended if data.strength is not None else None
    if best is not None and best != 1:
        words += ["--strength", f"{best:g}"]
        why = "One model for any server, with the adapter at the strength that is recommended"
    return NextStep(why=why, command=_command(*words))


def _again(data: ReportData, flags: str) -> str:
    output = f"{data.folder.name}-again"
    settings = _command("train", "-c", str(data.folder / CONFIG_FILE), "-o", f"runs/{output}")
    return f"{settings} {flags}".rstrip()


def _sources(data: ReportData) -> list[str]:
    found = data.config.get("data")
    return [str(name) for name in found[:MAX_SOURCES]] if isinstance(found, list) else ["my.jsonl"]


def _command(*words: str) -> str:
    return shlex.join(["duiti", *words])
