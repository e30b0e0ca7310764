"""What a run is trained with: model, what is trained of it, optimizer and plan. Proven on the
user's rows, rehearsed, and told.

    shop = set_up(job, talk)
    train_steps(shop.sft, shop.optimizer, shop.examples, shop.plan, hold=shop.hold)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from duiti.config import Config
from duiti.data.batch import collate
from duiti.data.replay import rehearsal_digest
from duiti.data.storage.store import ExampleStore
from duiti.fit import Fit
from duiti.general_text import hold_to_base, rehearsed_rows
from duiti.identity import Identity, identity_of
from duiti.infer.model import Model, stop_ids_of
from duiti.material import Material, check_ids
from duiti.model.checkpointing import checkpoint_activations
from duiti.model.choose_trunk import choose_trunk
from duiti.model.freeze import Trained, choose_trained
from duiti.model.load import load_model, num_embeddings
from duiti.model.sft_model import SFTModel, probe_rows, why_alone
from duiti.plan import recurring_rows, step_plan
from duiti.record import write_ledger, write_memory
from duiti.run import write_config
from duiti.selfcheck import check_first_update
from duiti.stopped import Stopped
from duiti.summary import say_plan, say_rehearsal
from duiti.training.allocator import keep_freed_memory
from duiti.training.hold import Hold
from duiti.training.log import Talk
from duiti.training.optim import make_optimizer
from duiti.training.rehearsal import rehearse
from duiti.training.state import RunState
from duiti.training.step import StepPlan
from duiti.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
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
class Workshop:
    """What there is while a run is trained."""

    config: Config
    plan: StepPlan
    identity: Identity
    sft: SFTModel
    examples: ExampleStore
    """Rows to train on, and those that are rehearsed."""
    hold: Hold | None
    """None: the drift from the base is not held."""
    trained: Trained
    optimizer: torch.optim.AdamW
    tuned: Model
    stops: frozenset[int]
    """Tokens that were trained to end an answer."""


def set_up(job: Job, talk: Talk) -> Workshop:
    """Model, what is trained of it, optimizer and plan: proven, rehearsed, told."""
    config, material, folder = job.config, job.material, job.folder
    if config.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    model = load_model(material.source, dtype=getattr(torch, config.dtype), device=config.device,
                       quantize=config.quantize)  # fmt: skip
    check_ids(material, num_embeddings(model))
    examples, identity = _examples(job, model, talk)
    probe = _probe(model, [material.train, material.val], config.device)
    alone = why_alone(model, probe)
    trained = choose_trained(model, config)
    sft = _sft_model(model, config, is_packed=alone is None)
    plan = step_plan(config, len(examples), job.state)
    again = recurring_rows(config, examples, material.val)
    if again:
        probe = _probe(model, again, config.device)
    sft.trunk, frozen = choose_trunk(sft, again, probe, folder, config)
    say_plan(config, job.reasons, trained, plan, job.fit, alone=alone, frozen=frozen, talk=talk)
    parameters = list(trained.parameters.values())
    if config.selfcheck:
        proof = check_first_update(sft, parameters, examples, plan, folder)
        talk.say("selfcheck", proof.describe())
    optimizer = make_optimizer(parameters, weight_decay=config.weight_decay)
    config, plan = _rehearse(job, sft, trained, examples, plan, talk)
    hold = hold_to_base(config, material, sft)
    if hold is not None:
        talk.say("drift", f"held below {hold.max_drift:g} nats per token, on {len(hold.examples)}"
                 " texts that the base writes")  # fmt: skip

    stops = frozenset(material.prepared[0].account.stops)
    stop_ids = stop_ids_of(model, material.template) | stops
    tuned = Model(model, material.template, stop_ids=stop_ids, name=folder.name, date=config.date,
                  special_tokens=config.special_tokens)  # fmt: skip
    return Workshop(config=config, plan=plan, identity=identity, sft=sft, examples=examples,
                     hold=hold, trained=trained, optimizer=optimizer, tuned=tuned,
                     stops=stops)  # fmt: skip


def _examples(job: Job, model: PreTrainedModel, talk: Talk) -> tuple[ExampleStore, Identity]:
    """What is trained on, and the hashes of all that decides what the run becomes."""
    material = job.material
    rehearsed = rehearsed_rows(
        job.config, material, model, job.folder, is_resumed=job.stopped is not None
    )
    identity, examples = identity_of(material), material.train
    if rehearsed is not None:
        identity = replace(identity, rehearsed=rehearsal_digest(rehearsed))
        examples = examples.joined(rehearsed)
        write_ledger(job.folder, material)
        tokens = int(rehearsed.lengths.sum())
        talk.say("replay", f"{len(rehearsed):,} texts among the rows, {tokens:,} tokens, each"
                 " trained as a whole")  # fmt: skip
    if job.stopped is not None:
        for line in job.stopped.hold_same(identity, allowed=job.allowed):
            talk.say("changed", line)
    return examples, identity


def _sft_model(model: PreTrainedModel, config: Config, *, is_packed: bool) -> SFTModel:
    sft = SFTModel(model, compute_dtype=getattr(torch, config.dtype), is_packed=is_packed)
    if config.activation_checkpointing:
        checkpoint_activations(sft)
    return sft


def _rehearse(
    job: Job,
    sft: SFTModel,
    trained: Trained,
    examples: ExampleStore,
    plan: StepPlan,
    talk: Talk,
) -> tuple[Config, StepPlan]:
    """Settings and plan, with what had to be changed because memory ran out."""
    config, reasons = job.config, job.reasons
    parameters = list(trained.parameters.values())
    may_checkpoint = "activation_checkpointing" in reasons  # it was left open
    rehearsal = rehearse(sft, parameters, examples, plan, may_checkpoint=may_checkpoint)
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
