"""What a run says to the person who started it: before, and at the end."""

from __future__ import annotations

from pathlib import Path

from duiti.config import Config
from duiti.material import Material
from duiti.model.freeze import Trained
from duiti.record import Outcome
from duiti.training.log import Talk, clock, gigabytes
from duiti.training.step import StepPlan


def say_data(material: Material, talk: Talk) -> None:
    """The ledger in a line, and everything that looked odd."""
    ledger = material.prepared.ledger
    share = f" ({ledger.supervised / ledger.total:.0%})" if ledger.total else ""
    rows = f"{ledger.rows:,} rows: {ledger.kept:,} kept"
    rows += f", {len(ledger.rejected):,} rejected" if ledger.rejected else ""
    rows += f", {ledger.dropped:,} too long" if ledger.dropped else ""
    if ledger.examples != ledger.kept:
        rows += f" → {ledger.examples:,} examples"
    talk.say("data", f"{rows} · {ledger.total:,} tokens, {ledger.supervised:,} trained{share}")
    if ledger.dropped:
        cut = f"{ledger.answers_cut:,} answer tokens with them"
        talk.say("", f"longer than {material.prepared.max_length} tokens, so dropped: {cut}")
    if material.val:
        talk.say("", f"{len(material.train):,} to train on, {len(material.val):,} to measure on")
    for warning in material.prepared.warnings:
        talk.say("note", warning)


def say_plan(
    config: Config,
    reasons: dict[str, str],
    trained: Trained,
    plan: StepPlan,
    *,
    is_packed: bool,
    talk: Talk,
) -> None:
    """What will be done, each choice with its reason."""

    def reason(*keys: str) -> str:
        found = [reasons[key] for key in keys if key in reasons]
        return f" ({'; '.join(found)})" if found else ""

    talk.say("template", f"{config.template}{reason('template')}")
    talk.say("model", f"{config.model} in {config.dtype} on {config.device}{reason('dtype')}")
    what = {
        "lora": f"lora, rank {config.lora.rank}, alpha {config.lora.alpha:g}",
        "last-n": f"the last {config.last_n.layers} layers",
        "full": "everything",
    }[config.method]
    talk.say("trains", f"{what}: {trained.describe()}")
    rate = f"{plan.rate.peak:g}, {plan.rate.schedule}, {plan.rate.warmup_steps} warm-up updates"
    talk.say("rate", f"{rate}{reason('learning_rate')}")
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    updates = f"{plan.total_steps:,} updates of {plan.batch_size} rows, {epochs}"
    if not is_packed:
        updates += " · rows run one by one: this architecture cannot keep them apart in a batch"
    talk.say("plan", updates)


def say_end(folder: Path, outcome: Outcome, seconds: float, talk: Talk) -> None:
    """What came of it, and the next command."""
    assert outcome.last is not None  # a plan has at least one update
    text = f"loss {outcome.last.loss:.4f}"
    if outcome.val_before is not None and outcome.val_after is not None:
        text += f" · val {outcome.val_before:.4f} → {outcome.val_after:.4f}"
    peak = gigabytes(outcome.last.peak_memory_bytes)
    talk.say("done", f"{text} · {clock(seconds)} · peak memory {peak}")
    talk.say("saved", str(folder))
    talk.say("next", f"duiti chat {folder}")
