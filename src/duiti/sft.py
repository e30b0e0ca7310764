"""The recipe: a fine-tuning run from top to bottom.

    run = finetune(Config(data=["my.jsonl"], model="tiny"))

`finetune` is the table of contents. Each line of it is a module below this one; any of them can be
left out, replaced or called alone (`examples/minimal_loop.py` does so).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.data.batch import collate
from duiti.data.storage.store import ExampleStore
from duiti.eval.evaluate import held_out_loss
from duiti.fit import Fit, fit_memory
from duiti.infer.model import Model, stop_ids_of
from duiti.material import Material, check_ids, raise_refusals, read_material
from duiti.model.checkpointing import checkpoint_activations
from duiti.model.choose_trunk import choose_trunk
from duiti.model.freeze import choose_trained
from duiti.model.load import choose_device, load_model, num_embeddings
from duiti.model.quantize import require_nf4
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.plan import is_val_due, recurring_rows, settle, step_plan
from duiti.record import Outcome, before_samples, write_end, write_memory, write_start
from duiti.run import Run, new_run_folder, write_config
from duiti.selfcheck import check_first_update
from duiti.summary import say_data, say_end, say_plan, say_rehearsal
from duiti.training.allocator import keep_freed_memory
from duiti.training.log import RunLog, Talk, preparing
from duiti.training.optim import make_optimizer
from duiti.training.rehearsal import rehearse
from duiti.training.save import save_weights
from duiti.training.step import StepPlan, train_steps
from duiti.types import Batch, Json


def finetune(
    config: Config, *, rows: Iterable[Mapping[str, Json]] | None = None, talk: Talk | None = None
) -> Run:
    """Train as `config` says and leave a run on disk.

    Args:
        rows: rows given from Python, instead of `config.data`.
        talk: where to say what happens; default: stderr.

    Raises:
        UsageError, DataError: before anything is trained.
        DuitiError: the run failed.
    """
    talk = talk or Talk()
    started = time.perf_counter()
    if config.quantize == "nf4":
        require_nf4(choose_device(config.device))

    with preparing(talk) as watch:
        material = read_material(config, rows=rows, say=watch.say, report=watch.report)
    say_data(material, talk)
    raise_refusals(material, config)
    config, reasons, fit = _settle(config, material)
    folder = new_run_folder(config.output, material.name, material.source.short_name)
    write_start(folder, config, reasons, material)

    if config.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    compute_dtype = getattr(torch, config.dtype)
    model = load_model(material.source, dtype=compute_dtype, device=config.device,
                       quantize=config.quantize)  # fmt: skip
    check_ids(material, num_embeddings(model))
    probe = _probe(model, [material.train, material.val], config.device)
    alone = why_alone(model, probe)
    trained = choose_trained(model, config)
    sft = _sft_model(model, config, is_packed=alone is None)
    plan = step_plan(config, len(material.train))
    again = recurring_rows(config, material)
    if again:
        probe = _probe(model, again, config.device)
    sft.trunk, frozen = choose_trunk(sft, again, probe, folder, config)
    say_plan(config, reasons, trained, plan, fit, alone=alone, frozen=frozen, talk=talk)
    parameters = list(trained.parameters.values())
    if config.selfcheck:
        proof = check_first_update(sft, parameters, material.train, plan, folder)
        talk.say("selfcheck", proof.describe())
    optimizer = make_optimizer(parameters, weight_decay=config.weight_decay)
    config, plan = _rehearse(sft, parameters, material, config, reasons, fit, folder, talk)

    stops = frozenset(material.prepared[0].account.stops)
    stop_ids = stop_ids_of(model, material.template) | stops
    tuned = Model(model, material.template, stop_ids=stop_ids, name=folder.name, date=config.date,
                  special_tokens=config.special_tokens)  # fmt: skip
    samples = before_samples(tuned, material.val, compute_dtype)
    outcome = Outcome(val_before=held_out_loss(sft, material.val) if material.val else None)
    with RunLog(folder, talk, total_steps=plan.total_steps) as log:
        for metrics, _ in train_steps(sft, optimizer, material.train, plan):
            val_loss = None
            if material.val and is_val_due(metrics.step, config, plan.total_steps):
                val_loss = held_out_loss(sft, material.val)
            log.step(metrics, val_loss=val_loss)
            outcome = outcome.after(metrics, val_loss)

    model.eval()
    samples.write(folder, tuned)
    save_weights(model, material.template, folder, config, material.source, trained_stops=stops)
    write_end(folder, config, material, outcome)
    say_end(folder, outcome, time.perf_counter() - started, talk)
    return Run(folder)


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
    sft: SFTModel,
    parameters: list[nn.Parameter],
    material: Material,
    config: Config,
    reasons: dict[str, str],
    fit: Fit,
    folder: Path,
    talk: Talk,
) -> tuple[Config, StepPlan]:
    """Settings and plan, with what had to be changed because memory ran out."""
    plan = step_plan(config, len(material.train))
    may_checkpoint = "activation_checkpointing" in reasons  # it was left open
    rehearsal = rehearse(sft, parameters, material.train, plan, may_checkpoint=may_checkpoint)
    say_rehearsal(rehearsal, fit, talk)
    write_memory(folder, fit, rehearsal)
    if rehearsal.changes:
        config = config.model_copy(update=rehearsal.changes)
        reasons |= dict.fromkeys(rehearsal.changes, "memory ran out in the rehearsal")
        write_config(folder, config, reasons)
    return config, step_plan(config, len(material.train))


def _probe(model: PreTrainedModel, stores: list[ExampleStore], device: str) -> Batch:
    """A few rows of each store, to try on the model what holds for all of them."""
    rows = [row for store in stores for row in probe_rows(model, store, lengths=store.lengths)]
    return collate(rows, device)
