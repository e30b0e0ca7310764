"""Two micro-batches before the first update: the heaviest of the run, forward and backward, and no
step. What they take is measured, and where memory does not suffice they are made smaller.

    done = rehearse(sft, parameters, examples, plan)
    done.peak_bytes, done.changes

It leaves no trace: gradients are dropped, buffers and random streams are put back, parameters are
never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from duiti.data.batch import collate
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError
from duiti.model.checkpointing import can_checkpoint, checkpoint_activations, is_checkpointed
from duiti.model.sft_model import SFTModel
from duiti.training.heaviest import HeavyPart, heaviest
from duiti.training.no_trace import drop_gradients, without_trace
from duiti.training.out_of_memory import is_out_of_memory, release_memory, smaller_budget
from duiti.training.step import StepPlan, peak_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was measured."""

    peak_bytes: int
    """The most that was in use, from the beginning of the run to the end of the rehearsal."""
    changes: dict[str, int | bool]
    """Settings that had to be changed because memory ran out, by key."""


def rehearse(
    sft: SFTModel,
    parameters: Sequence[nn.Parameter],
    examples: ExampleStore,
    plan: StepPlan,
    *,
    may_checkpoint: bool,
) -> Rehearsal:
    """Run the heaviest micro-batches of the plan; smaller ones where memory runs out.

    Args:
        parameters: what is trained; the optimizer's moments should be there already.
        may_checkpoint: whether activation checkpointing may be switched on if nothing else helps.

    Raises:
        DuitiError: memory does not suffice for the longest row alone.
    """
    device = parameters[0].device
    changes: dict[str, int | bool] = {}
    with without_trace(sft, parameters):
        sft.train()
        while True:
            parts = heaviest(examples.lengths, examples.num_supervised, plan)
            try:
                _run(sft, parameters, examples, parts)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Here the error is gone, and with it the last reference to what was computed.
            drop_gradients(parameters)
            release_memory(device)
            lengths = [int(examples.lengths[i]) for i in parts[0].rows]
            smaller = smaller_budget(plan.micro_batch_tokens, lengths)
            if smaller is not None:
                plan = replace(plan, micro_batch_tokens=smaller)
                changes["micro_batch_tokens"] = smaller
            elif may_checkpoint and can_checkpoint(sft) and not is_checkpointed(sft):
                checkpoint_activations(sft)
                changes["activation_checkpointing"] = True
            else:
                raise _does_not_fit(max(lengths), reason)
    return Rehearsal(peak_bytes=peak_memory_bytes(device), changes=changes)


def _run(
    sft: SFTModel,
    parameters: Sequence[nn.Parameter],
    examples: ExampleStore,
    parts: Sequence[HeavyPart],
) -> None:
    for part in parts:
        if part.is_first:
            drop_gradients(parameters)
        loss, _ = sft(collate([examples[i] for i in part.rows], parameters[0].device))
        loss.backward()


def _does_not_fit(longest: int, reason: str) -> DuitiError:
    return DuitiError(
        "out of memory, even with one row at a time and activation checkpointing",
        why=f"the longest row has {longest:,} tokens ({reason})",
        fix=f"--max-length below {longest}, a smaller model,"
        " or --method lora where more is trained",
    )
