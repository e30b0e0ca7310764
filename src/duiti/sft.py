"""The recipe: a fine-tuning run from top to bottom.

    run = finetune(Config(data=["my.jsonl"], model="tiny"))
    run = go_on("runs/my-tiny", {})                  # the same run, after it was stopped

`_make` is the table of contents. Each line of it is a module below this one; any of them can be
left out, replaced or called alone (`examples/minimal_loop.py` does so).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.data.batch import collate
from duiti.data.storage.store import ExampleStore
from duiti.eval.evaluate import held_out_loss
from duiti.fit import Fit, fit_memory
from duiti.identity import Identity, identity_of
from duiti.infer.model import Model, stop_ids_of
from duiti.lock import held
from duiti.material import Material, check_ids, raise_refusals, read_material
from duiti.model.checkpointing import checkpoint_activations
from duiti.model.choose_trunk import choose_trunk
from duiti.model.freeze import Trained, choose_trained
from duiti.model.load import choose_device, load_model, num_embeddings
from duiti.model.quantize import require_nf4
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.plan import cooling, is_val_due, recurring_rows, settle, step_plan
from duiti.proof.chats import sample_chats
from duiti.proof.expected import Expected, expectations, held_out_rows
from duiti.proof.prove import prove
from duiti.record import before_samples, write_end, write_memory, write_resumed, write_start
from duiti.run import Run, new_run_folder, write_config
from duiti.saving import Checkpoints
from duiti.selfcheck import check_first_update
from duiti.stopped import Stopped, find_stopped, locate
from duiti.summary import say_data, say_end, say_plan, say_rehearsal, say_resumed, say_stopping
from duiti.training.allocator import keep_freed_memory
from duiti.training.log import RunLog, Talk, preparing
from duiti.training.optim import make_optimizer
from duiti.training.rehearsal import rehearse
from duiti.training.save import save_weights
from duiti.training.signals import Interrupted, Stopping
from duiti.training.state import RunState, load_tensors
from duiti.training.step import StepPlan, is_done, train_steps
from duiti.types import Batch, Json

Rows = Iterable[Mapping[str, Json]]


def finetune(config: Config, *, rows: Rows | None = None, talk: Talk | None = None) -> Run:
    """Train as `config` says and leave a run on disk.

    Args:
        rows: rows given from Python, instead of `config.data`.
        talk: where to say what happens; default: stderr.

    Raises:
        UsageError, DataError: before anything is trained.
        Interrupted: a signal asked the process to stop; a checkpoint was made.
        DuitiError: the run failed.
    """
    talk = talk or Talk()
    material = _read(config, rows, talk)
    config, reasons, fit = _settle(config, material)
    folder = new_run_folder(config.output, material.name, material.source.short_name)
    with held(folder):
        write_start(folder, config, reasons, material)
        job = _Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder)
        return _train(job, talk)


def go_on(
    name: str | Path,
    given: Mapping[str, Any],
    *,
    allowed: Collection[str] = (),
    cool_down: int | None = None,
    rows: Rows | None = None,
    talk: Talk | None = None,
) -> Run:
    """Go on with a run that was stopped; a finished one is left as it is.

    Args:
        name: of the run, or of one of its checkpoints (`duiti.stopped.locate`).
        given: settings, by key; all others are those of the run.
        allowed: keys, or parts such as `data`, that may differ from the stopped run.
        cool_down: updates in which the learning rate falls to zero, to finish early.
        rows: again, where they were given from Python.

    Raises:
        UsageError: there is no such run, or it would not be the same one.
        Interrupted: as for `finetune`.
        DuitiError: there is no checkpoint to go on from, or the run failed.
    """
    talk = talk or Talk()
    place = locate(name)
    folder = place.run.path
    with held(folder):
        if place.run.is_finished:
            talk.say("finished", f"{folder}: there is nothing left to do")
            return place.run
        stopped = find_stopped(place)
        config, changed = stopped.settings(given, allowed=allowed)
        say_resumed(stopped, changed, talk)
        material = _read(config, rows, talk)
        config, reasons, fit = _settle(config, material)
        reasons = {**stopped.reasons, **changed, **reasons}
        state = stopped.state
        if "micro_batch_tokens" in given:
            assert config.micro_batch_tokens != "auto"  # it is settled
            state = replace(state, micro_batch_tokens=config.micro_batch_tokens)
        if cool_down is not None:
            state = cooling(state, cool_down)
        job = _Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder,
                   stopped=replace(stopped, state=state), allowed=allowed)  # fmt: skip
        return _train(job, talk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A run that is about to be trained: from its beginning, or from where it was stopped."""

    config: Config
    """Settled."""
    reasons: dict[str, str]
    """Of settings that were chosen, by key."""
    fit: Fit
    material: Material
    folder: Path
    stopped: Stopped | None = None
    allowed: Collection[str] = ()
    """What may differ from the stopped run."""

    @property
    def state(self) -> RunState | None:
        """Where it goes on; None: at the beginning."""
        return None if self.stopped is None else self.stopped.state


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    """What there is while a run is trained."""

    config: Config
    plan: StepPlan
    identity: Identity
    sft: SFTModel
    trained: Trained
    optimizer: torch.optim.AdamW
    tuned: Model
    stops: frozenset[int]
    """Tokens that were trained to end an answer."""


def _train(job: _Job, talk: Talk) -> Run:
    """Train, save, and have a fresh process look at what was saved."""
    started = time.perf_counter()
    # The model is gone with this call: the proof needs its memory.
    state, expected = _make(job, talk)
    if expected is not None:
        source = job.material.source
        proof = prove(job.folder, expected, base=source.location,
                      trust_remote_code=source.trust_remote_code)  # fmt: skip
        talk.say("proof", proof.describe())
    say_end(job.folder, state, time.perf_counter() - started, talk)
    return Run(job.folder)


def _make(job: _Job, talk: Talk) -> tuple[RunState, Expected | None]:
    """The table of contents. What is left of it in memory is where it ended, and what a proof of
    the files has to find."""
    material, folder = job.material, job.folder
    shop = _set_up(job, talk)
    model, config = shop.sft.model, shop.config
    samples = before_samples(shop.tuned, material.val, shop.sft.compute_dtype)
    state = job.state or _beginning(shop, material)
    if job.stopped is not None:
        load_tensors(job.stopped.checkpoint, shop.trained.parameters, shop.optimizer)
        write_resumed(folder, job.stopped)
    with Stopping(partial(say_stopping, talk)) as stopping:
        state = _run_updates(job, shop, state, stopping, talk)
        model.eval()
        samples.write(folder, shop.tuned)
        expected = _expected(shop, material) if config.proof else None
        save_weights(model, material.template, folder, config, material.source,
                     trained_stops=shop.stops, trained_on=shop.identity.trained_on)  # fmt: skip
        write_end(folder, config, material, state)
    return state, expected


def _expected(shop: _Workshop, material: Material) -> Expected:
    stores = [material.val, material.train]
    files = [file for prepared in material.prepared for file in prepared.files]
    chats = sample_chats(material.template, material.options, files, stores)
    return expectations(shop.sft.model, held_out_rows(*stores), chats,
                        dtype=shop.sft.compute_dtype, stops=shop.stops,
                        date=shop.config.date)  # fmt: skip


def _run_updates(
    job: _Job, shop: _Workshop, state: RunState, stopping: Stopping, talk: Talk
) -> RunState:
    """Train to the end of the plan.

    Raises:
        Interrupted: it was asked to stop before.
    """
    config, plan, val = shop.config, shop.plan, job.material.val
    parameters = shop.trained.parameters
    with (
        RunLog(job.folder, talk, total_steps=plan.total_steps, start=state.progress,
               budget_s=plan.rate.budget_s) as log,
        Checkpoints(job.folder, config, job.reasons, shop.identity, parameters, shop.optimizer,
                    talk, start_step=state.progress.step) as checkpoints,
    ):  # fmt: skip
        steps = train_steps(
            shop.sft, shop.optimizer, job.material.train, plan, start=state.progress
        )
        for metrics, progress in steps:
            val_loss = None
            if val and is_val_due(progress, config, plan):
                val_loss = held_out_loss(shop.sft, val)
            log.step(metrics, val_loss=val_loss)
            state = state.after(metrics, progress, val_loss)
            checkpoints.offer(state)
            if stopping.signal is not None and not is_done(progress, plan):
                saved = checkpoints.make(state)
                raise Interrupted(progress.step, plan.total_steps, by=stopping.signal,
                                  saved=saved, run=job.folder)  # fmt: skip
    return state


def _set_up(job: _Job, talk: Talk) -> _Workshop:
    """Model, what is trained of it, optimizer and plan: proven, rehearsed, told."""
    config, material, folder = job.config, job.material, job.folder
    if config.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    model = load_model(material.source, dtype=getattr(torch, config.dtype), device=config.device,
                       quantize=config.quantize)  # fmt: skip
    check_ids(material, num_embeddings(model))
    identity = identity_of(material)
    if job.stopped is not None:
        for line in job.stopped.hold_same(identity, allowed=job.allowed):
            talk.say("changed", line)
    probe = _probe(model, [material.train, material.val], config.device)
    alone = why_alone(model, probe)
    trained = choose_trained(model, config)
    sft = _sft_model(model, config, is_packed=alone is None)
    plan = step_plan(config, len(material.train), job.state)
    again = recurring_rows(config, material)
    if again:
        probe = _probe(model, again, config.device)
    sft.trunk, frozen = choose_trunk(sft, again, probe, folder, config)
    say_plan(config, job.reasons, trained, plan, job.fit, alone=alone, frozen=frozen, talk=talk)
    parameters = list(trained.parameters.values())
    if config.selfcheck:
        proof = check_first_update(sft, parameters, material.train, plan, folder)
        talk.say("selfcheck", proof.describe())
    optimizer = make_optimizer(parameters, weight_decay=config.weight_decay)
    config, plan = _rehearse(job, sft, trained, plan, talk)

    stops = frozenset(material.prepared[0].account.stops)
    stop_ids = stop_ids_of(model, material.template) | stops
    tuned = Model(model, material.template, stop_ids=stop_ids, name=folder.name, date=config.date,
                  special_tokens=config.special_tokens)  # fmt: skip
    return _Workshop(config=config, plan=plan, identity=identity, sft=sft, trained=trained,
                     optimizer=optimizer, tuned=tuned, stops=stops)  # fmt: skip


def _beginning(shop: _Workshop, material: Material) -> RunState:
    val_before = held_out_loss(shop.sft, material.val) if material.val else None
    return RunState(micro_batch_tokens=shop.plan.micro_batch_tokens, val_before=val_before)


def _read(config: Config, rows: Rows | None, talk: Talk) -> Material:
    """The data, which there is no reason to refuse."""
    if config.quantize == "nf4":
        require_nf4(choose_device(config.device))
    with preparing(talk) as watch:
        material = read_material(config, rows=rows, say=watch.say, report=watch.report)
    say_data(material, talk)
    raise_refusals(material, config)
    return material


def _settle(config: Config, material: Material) -> tuple[Config, dict[str, str], Fit]:
    """No setting is left open, the reasons, and a need of memory that there is."""
    config, reasons = settle(config, material)
    config, fit = fit_memory(config, material, reasons)
    if fit.refusal is not None:
        raise fit.refusal
    return config, reasons, fit


def _sft_model(model: PreTrainedModel, config: Config, *, is_packed: bool) -> SFTModel:
    sft = SFTModel(model, compute_dtype=getattr(torch, config.dtype), is_packed=is_packed)
    if config.activation_checkpointing:
        checkpoint_activations(sft)
    return sft


def _rehearse(
    job: _Job, sft: SFTModel, trained: Trained, plan: StepPlan, talk: Talk
) -> tuple[Config, StepPlan]:
    """Settings and plan, with what had to be changed because memory ran out."""
    config, reasons = job.config, job.reasons
    parameters = list(trained.parameters.values())
    may_checkpoint = "activation_checkpointing" in reasons  # it was left open
    rehearsal = rehearse(sft, parameters, job.material.train, plan, may_checkpoint=may_checkpoint)
    say_rehearsal(rehearsal, job.fit, talk)
    write_memory(job.folder, job.fit, rehearsal)
    if rehearsal.changes:
        config = config.model_copy(update=rehearsal.changes)
        reasons |= dict.fromkeys(rehearsal.changes, "memory ran out in the rehearsal")
        if "micro_batch_tokens" in rehearsal.changes:
            assert config.micro_batch_tokens != "auto"
            plan = replace(plan, micro_batch_tokens=config.micro_batch_tokens)
    if rehearsal.changes or job.stopped is not None:
        write_config(job.folder, config, reasons)
    return config, plan


def _probe(model: PreTrainedModel, stores: list[ExampleStore], device: str) -> Batch:
    """A few rows of each store, to try on the model what holds for all of them."""
    rows = [row for store in stores for row in probe_rows(model, store, lengths=store.lengths)]
    return collate(rows, device)
