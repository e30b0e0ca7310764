"""The recipe: a fine-tuning run from top to bottom.

    run = finetune(Config(data=["my.jsonl"], model="tiny"))
    run = go_on("runs/my-tiny", {})                  # the same run, after it was stopped

`_make` is the table of contents. Each line of it is a module below this one; any of them can be
left out, replaced or called alone (`examples/minimal_loop.py` does so).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from duiti.card import write_card
from duiti.config import Config
from duiti.disk_errors import gone
from duiti.durable import remove_leftovers
from duiti.errors import DuitiError
from duiti.eval.evaluate import held_out_loss
from duiti.eval.metrics import find_metrics
from duiti.eval.row_losses import ROW_LOSSES_FILE, RowLosses
from duiti.fit import Fit, fit_memory
from duiti.lock import held
from duiti.material import Material, raise_refusals, read_material
from duiti.measuring import Before, look, look_after, look_before
from duiti.model.load import choose_device
from duiti.model.quantize import require_nf4
from duiti.plan import cooling, is_look_due, is_out_of_patience, settle
from duiti.proof.chats import sample_chats
from duiti.proof.expected import Expected, expectations, held_out_rows
from duiti.proof.prove import prove
from duiti.record import write_resumed, write_start
from duiti.report.page import write_report
from duiti.run import Run, is_run, new_run_folder
from duiti.saving import Checkpoints
from duiti.searching.search import NOTHING, Search
from duiti.stopped import find_stopped, locate
from duiti.summary import say_data, say_end, say_patience, say_proving, say_resumed, say_stopping
from duiti.training.keeper import CHECKPOINTS, set_aside
from duiti.training.log import RunLog, Talk, preparing
from duiti.training.out_of_memory import is_out_of_memory, release_memory
from duiti.training.save import Saved, save_weights
from duiti.training.signals import Interrupted, Stopping
from duiti.training.state import RunState, load_tensors
from duiti.training.step import is_done, train_steps
from duiti.training.trackers import check_trackers
from duiti.training.tracking import start_trackers
from duiti.types import Json
from duiti.workshop import Job, Workshop, set_up

Rows = Iterable[Mapping[str, Json]]


def finetune(
    config: Config,
    *,
    rows: Rows | None = None,
    search: Search = NOTHING,
    talk: Talk | None = None,
) -> Run:
    """Train as `config` says and leave a run on disk.

    Args:
        rows: rows given from Python, instead of `config.data`.
        search: what to find out before the run begins.
        talk: where to say what happens; default: stderr.

    Raises:
        UsageError, DataError: before anything is trained.
        Interrupted: a signal asked the process to stop; a checkpoint was made.
        DuitiError: the run failed.
    """
    talk = talk or Talk()
    search.refuse_settings(config)
    check_trackers(config.track)
    find_metrics(config.metrics)
    material = _read(config, rows, talk)
    search.refuse_rows(material)
    config, reasons, fit = _settle(config, material)
    folder = new_run_folder(config.output, material.name, material.source.short_name)
    with held(folder):
        write_start(folder, config, reasons, material)
        job = Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder)
        return _train(job, search, talk)


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
        for place_of_leftovers in (folder, folder / "data", folder / CHECKPOINTS):
            remove_leftovers(place_of_leftovers)
        stopped = find_stopped(place)
        config, changed = stopped.settings(given, allowed=allowed)
        check_trackers(config.track)
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
        job = Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder,
                   stopped=replace(stopped, state=state), allowed=allowed)  # fmt: skip
        return _train(job, NOTHING, talk)


def _train(job: Job, search: Search, talk: Talk) -> Run:
    """Train, save, and have a fresh process look at what was saved."""
    started = time.perf_counter()
    # The model is gone with this call: the proof needs its memory.
    state, expected, saved = _make(job, search, talk)
    with Stopping(partial(say_proving, talk)):
        if expected is not None:
            source = job.material.source
            proof = prove(job.folder, expected, base=source.location,
                          trust_remote_code=source.trust_remote_code)  # fmt: skip
            talk.say("proof", proof.describe())
        report = write_report(job.folder)
        write_card(job.folder)  # again: verdict and proof are in it
        saved.close()
    out_of_patience = is_out_of_patience(state, job.config)
    best = state.best if out_of_patience else None
    say_end(report, state, time.perf_counter() - started, talk, best=best)
    return Run(job.folder)


def _make(job: Job, search: Search, talk: Talk) -> tuple[RunState, Expected | None, Saved]:
    """The table of contents. What is left of it in memory is where it ended, what a proof of the
    files has to find, and the folder that is to be closed after it."""
    material, folder = job.material, job.folder
    shop = search.look(job, set_up(job, talk), talk)
    model, config = shop.sft.model, shop.config
    before = look_before(shop, material, talk)
    state = job.state or _beginning(shop, material)
    if job.stopped is not None:
        load_tensors(job.stopped.checkpoint, shop.trained.parameters, shop.optimizer)
        if job.stopped.is_named:
            for path in set_aside(folder / CHECKPOINTS, after=state.progress.step):
                talk.say("aside", f"{path}: of a future that is given up")
        write_resumed(folder, job.stopped)
    with Stopping(partial(say_stopping, talk)) as stopping:
        state = _run_updates(job, shop, before, state, stopping, talk)
        if state.last is None:
            raise DuitiError(
                "nothing was trained: every update was left out",
                why="the loss or the gradient of each was not finite",
                fix="a lower --learning-rate, or look at the rows that were named",
            )
        if not is_run(folder):
            raise gone(folder)
        model.eval()
        look_after(shop, material, before, folder, talk,
                   is_stopping=lambda: stopping.signal is not None)  # fmt: skip
        expected = _expected(shop, material, talk) if config.proof else None
        saved = save_weights(model, material.template, folder, config, material.source,
                     trained_stops=shop.stops, trained_on=shop.identity.trained_on)  # fmt: skip
        write_card(folder)
    return state, expected, saved


def _expected(shop: Workshop, material: Material, talk: Talk) -> Expected | None:
    """What a proof has to find; None where memory has no room to find it out: a trained model is
    not lost for that."""
    stores = [material.val, material.train]
    files = [file for prepared in material.prepared for file in prepared.files]
    chats = sample_chats(material.template, material.options, files, stores)
    try:
        return expectations(shop.sft.model, held_out_rows(*stores), chats,
                            dtype=shop.sft.compute_dtype, stops=shop.stops)  # fmt: skip
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(shop.sft.model.device)
    talk.say("proof", "left out: there is no memory for the model's own logits on a row")
    return None


def _run_updates(
    job: Job, shop: Workshop, before: Before, state: RunState, stopping: Stopping, talk: Talk
) -> RunState:
    """Train to the end of the plan, or of the patience: then the best weights are the model's.

    Raises:
        Interrupted: it was asked to stop before.
    """
    config, plan, folder = shop.config, shop.plan, job.folder
    parameters = shop.trained.parameters
    trackers = start_trackers(config.track, folder, config, start_step=state.progress.step)
    has_same_rows = job.stopped is None or job.stopped.has_rows_of(shop.identity, config)
    with (
        RunLog(folder, talk, total_steps=plan.total_steps, start=state.progress,
               budget_s=plan.rate.budget_s, trackers=trackers) as log,
        RowLosses(folder / ROW_LOSSES_FILE, cursor=state.progress.cursor,
                  is_same=has_same_rows) as row_losses,
        Checkpoints(folder, config, job.reasons, shop.identity, parameters, shop.optimizer,
                    talk, start_step=state.progress.step) as checkpoints,
    ):  # fmt: skip
        if job.stopped is not None:
            checkpoints.tidy(state)
        steps = train_steps(
            shop.sft, shop.optimizer, shop.examples, plan, start=state.progress, hold=shop.hold
        )
        for metrics, progress in () if is_out_of_patience(state, config) else steps:
            is_due = is_look_due(progress, config, plan)
            measured = (
                look(shop, job.material, before, folder, metrics.step, talk) if is_due else {}
            )
            log.step(metrics, measured)
            row_losses.add(metrics.row_losses, cursor=progress.cursor)
            state = state.after(metrics, progress, measured.get("val_loss"))
            checkpoints.offer(state)
            if is_out_of_patience(state, config):
                break
            if stopping.signal is not None and not is_done(progress, plan):
                saved = checkpoints.make(state)
                raise Interrupted(progress.step, plan.total_steps, by=stopping.signal,
                                  saved=saved, run=folder)  # fmt: skip
        if state.best is not None and is_out_of_patience(state, config):
            load_tensors(checkpoints.best(state.best), parameters, shop.optimizer)
            say_patience(state.best, talk)
    return state


def _beginning(shop: Workshop, material: Material) -> RunState:
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
