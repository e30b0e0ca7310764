"""What a run says to the person who started it: before, and at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from signal import Signals

from duiti.config import Config
from duiti.data.ledger import Ledger
from duiti.fit import Fit
from duiti.material import Material
from duiti.model.freeze import Trained
from duiti.run import VERDICT_FILE, Run
from duiti.stopped import Stopped
from duiti.training.log import Talk, clock, gigabytes, megabytes
from duiti.training.rehearsal import Rehearsal
from duiti.training.state import Best, RunState
from duiti.training.step import StepPlan

NEWS = 0.1
"""By how much a measured peak must differ from the one that was expected to be told."""
MAX_NAME = 32
"""Characters of a file's name in a table; the end tells more than the beginning."""


def say_data(material: Material, talk: Talk) -> None:
    """Where every row and token went, and everything that looked odd."""
    data = material.data
    total = data.ledger.total
    share = f" ({total.supervised / total.total:.0%})" if total.total else ""
    rows = f"{total.rows:,} row{'' if total.rows == 1 else 's'}: {total.kept:,} kept"
    if total.examples != total.kept:
        rows += f" → {total.examples:,} examples"
    talk.say("data", f"{rows} · {total.total:,} tokens, {total.supervised:,} trained{share}")
    for line in _table(data.ledger):
        talk.say("", line)
    if total.dropped or total.cut:
        lost = f"{total.answers_cut:,} answer tokens are lost with them"
        talk.say("length", f"longer than {data.max_length}: {total.dropped:,} rows dropped,"
                 f" {total.cut:,} cut; {lost}")  # fmt: skip
    if data.val:
        val = f"{len(data.val):,} examples to measure on"
        val += f" ({_rejected(data.val_ledger)} rejected)" if _rejected(data.val_ledger) else ""
        talk.say("val", val)
    for note in material.notes:
        talk.say("note", note)
    for warning in data.warnings:
        talk.say("warning", warning)


def _rejected(ledger: Ledger | None) -> int:
    return len(ledger.rejected) if ledger is not None else 0


_COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("rows", "rows", True),
    ("kept", "kept", True),
    ("rejected", "rejected", False),
    ("filtered", "filtered", False),
    ("too long", "dropped", False),
    ("val", "val", False),
    ("in val too", "leaked", False),
    ("tokens", "total", True),
    ("= trained", "supervised", True),
    ("+ given", "context", True),
    ("+ cut", "cut_tokens", False),
    ("+ too long", "dropped_tokens", False),
    ("+ val", "val_tokens", False),
    ("+ in val too", "leaked_tokens", False),
)
"""Heading, field of a `SourceLedger`, and whether it is shown where all are zero."""


def _table(ledger: Ledger) -> list[str]:
    """Lines of a table: a source each, and the sums where there are several."""
    total = ledger.total
    shown = [(head, name) for head, name, always in _COLUMNS if always or getattr(total, name)]
    several = (total,) if len(ledger.sources) > 1 else ()
    rows = [["", *(head for head, _ in shown)]]
    for source in (*ledger.sources, *several):
        name = source.file if len(source.file) <= MAX_NAME else f"…{source.file[1 - MAX_NAME :]}"
        rows.append([name, *(f"{getattr(source, field):,}" for _, field in shown)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def say_plan(
    config: Config,
    reasons: dict[str, str],
    trained: Trained,
    plan: StepPlan,
    fit: Fit,
    *,
    alone: str | None,
    frozen: str,
    talk: Talk,
) -> None:
    """What will be done, each choice with its reason.

    Args:
        alone: why rows run one by one, if they do.
        frozen: what becomes of the layers below the first trained one, where there are any.
    """

    def reason(*keys: str) -> str:
        found = [reasons[key] for key in keys if key in reasons]
        return f" ({'; '.join(found)})" if found else ""

    talk.say("template", f"{config.template}{reason('template')}")
    talk.say("model", f"{config.model} in {config.dtype} on {config.device}{reason('dtype')}")
    if config.quantize == "nf4":
        talk.say("base", _quantised(config, trained))
    what = {
        "lora": f"lora, rank {config.lora.rank}, alpha {config.lora.alpha:g}"
        + ("" if config.lora.layers == "all" else f", on {_last_layers(config.lora.layers)}"),
        "last-n": _last_layers(config.last_n.layers),
        "full": "everything",
    }[config.method]
    why = reason(config.method)
    talk.say("trains", f"{what}: {trained.describe()}{why}")
    if trained.frozen_experts:
        share = trained.frozen_experts / trained.total
        talk.say("note", f"experts hold {share:.0%} of the parameters and stay as they are, their"
                 " router too: they are no linear layers, which lora adapts")  # fmt: skip
    if frozen:
        talk.say("frozen", frozen)
    rate = f"{plan.rate.peak:g}, {plan.rate.schedule}, {plan.rate.warmup_steps} warm-up updates"
    talk.say("rate", f"{rate}{reason('learning_rate')}")
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    updates = f"{plan.total_steps:,} updates of {plan.batch_size} rows, {epochs}"
    if alone is not None:
        updates += f" · rows run one by one, slower: run together, {alone}"
    talk.say("plan", updates)
    _say_memory(config, fit, reasons, talk)


def say_need(fit: Fit, talk: Talk) -> None:
    """What training would need, for somebody who only looks."""
    talk.say("memory", fit.describe())
    if fit.refusal is not None:
        talk.say("warning", str(fit.refusal))


def _say_memory(config: Config, fit: Fit, reasons: dict[str, str], talk: Talk) -> None:
    """What the run will need, and what was chosen for that."""
    talk.say("memory", fit.describe())
    if fit.need is not None and fit.room is not None:
        if "do not fit" in reasons.get("micro_batch_tokens", ""):
            talk.say("", f"micro-batches of {config.micro_batch_tokens:,} tokens:"
                     f" {reasons['micro_batch_tokens']}")  # fmt: skip
        if config.activation_checkpointing:
            why = reasons.get("activation_checkpointing", "as asked")
            talk.say("", f"activation checkpointing: {why}")


def say_rehearsal(rehearsal: Rehearsal, fit: Fit, talk: Talk) -> None:
    """What two micro-batches have shown, where it is news."""
    for key, value in rehearsal.changes.items():
        talk.say("memory", f"it ran out in the rehearsal: {key} is {value}")
    peak = fit.after(rehearsal)
    if fit.need is None or abs(fit.need.peak_bytes - peak) > NEWS * peak:
        talk.say("memory", f"{gigabytes(peak)} at the peak, after the two heaviest micro-batches")
    if fit.room is not None and peak > fit.room.num_bytes:
        talk.say("warning", f"that is more than the {gigabytes(fit.room.num_bytes)}"
                 f" {fit.room.reason}")  # fmt: skip


def _quantised(config: Config, trained: Trained) -> str:
    """Memory of a base in four bits, beside what it would be without them."""
    width_bytes = 2 if config.dtype == "bfloat16" else 4
    plain = (trained.total - trained.num_parameters) * width_bytes
    kept, plain_text = megabytes(trained.frozen_bytes), megabytes(plain)
    return (
        f"{kept} instead of {plain_text} in {config.dtype}: linear layers in NF4 (4.1 bits a"
        " weight); embedding, head and norms as they are"
    )


def _last_layers(count: int) -> str:
    return "the last layer" if count == 1 else f"the last {count} layers"


def say_resumed(stopped: Stopped, changed: Mapping[str, str], talk: Talk) -> None:
    """From where a run goes on, what was passed over for that, and what is changed."""
    for candidate in stopped.skipped:
        talk.say("skipped", f"{candidate.path}: {candidate.problem}")
    talk.say("resume", f"{stopped.run.path} from step {stopped.state.progress.step:,}")
    for key, text in changed.items():
        talk.say("changed", f"{key}: {text}")


def say_stopping(talk: Talk, by: Signals) -> None:
    """That a signal was heard."""
    talk.say("stopping", f"{by.name}: after this update, with a checkpoint; again: at once")


def say_proving(talk: Talk, by: Signals) -> None:
    """That a signal was heard when there was nothing left to train."""
    talk.say("stopping", f"{by.name}: the trained model is there; its proof comes first")


def say_patience(best: Best, talk: Talk) -> None:
    """That the run ends before its plan, and with which weights."""
    talk.say("patience", f"val has not got better since step {best.step:,}; its weights are those"
             f" of the model (val {best.val_loss:.4f})")  # fmt: skip


def say_end(
    report: Path, state: RunState, seconds: float, talk: Talk, *, best: Best | None = None
) -> None:
    """What came of it, and the next command.

    Args:
        best: the update whose weights are the model's, if they are not those of the last one.
    """
    folder = report.parent
    assert state.last is not None  # a plan has at least one update
    text = f"loss {state.last.loss:.4f}"
    val_after = state.val_after if best is None else best.val_loss
    if state.val_before is not None and val_after is not None:
        text += f" · val {state.val_before:.4f} → {val_after:.4f}"
    peak = gigabytes(state.last.peak_memory_bytes)
    talk.say("done", f"{text} · {clock(seconds)} · peak memory {peak}")
    talk.say("verdict", str(Run(folder).read_json(VERDICT_FILE)["sentence"]))
    talk.say("saved", str(folder))
    talk.say("report", str(report))
    talk.say("next", shlex.join(["duiti", "chat", str(folder)]))
