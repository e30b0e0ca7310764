"""`--selfcheck`: the same update in two layouts, on the user's own model and rows.

    proof = check_first_update(sft, trained.parameters.values(), examples, plan, folder)
    proof.describe()

The first update's rows go through the model as training will run them (packed, attention of ours,
frozen layers from store), and once more with every row alone and the model's own attention. Then
one row is measured by dense cross-entropy on the model's own logits. Loss and gradient must agree
but for rounding. What rounding can do is measured, too: the reference is computed again with its
embeddings moved by as much as one rounding moves them.

It leaves no trace: adapters, whose B starts at zero and would hide A's gradient, are moved for it
and put back bit for bit; gradients are dropped, random streams restored. Dropout is off, for two
layouts would draw two masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from duiti.data.batch import collate, epoch_updates, micro_batches
from duiti.errors import DuitiError
from duiti.model.sft_model import SFTModel
from duiti.run import write_json
from duiti.training.no_trace import (
    adapters_moved,
    drop_gradients,
    embeddings_rounded,
    layers_checkpointed,
    without_trace,
)
from duiti.training.out_of_memory import is_out_of_memory
from duiti.training.step import StepPlan
from duiti.types import Batch, Example

Losses = Callable[[], Iterator[Tensor]]
"""Losses whose sum is that of all rows, one at a time."""

FILE = "selfcheck.json"
MARGIN = 3.0
"""Times what one rounding of the input does to the gradient. Layouts that are right are at most 1.2
times as far apart (sixteen architectures, 2 to 32 layers, both dtypes: gradients of noise 2e-7 to
0.4): whatever layers do to a small error, they do to either. The loss is flatter: a tenth of that
is allowed."""
DRAWS = 4
"""Roundings that are tried before a layout is called wrong. One is enough as a rule; but in a
mixture of experts a rounding may send a token to another expert, or not."""
DENSE_TOKENS = 16
"""Trained tokens that the row should have on which dense cross-entropy is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far two ways to compute the same are apart, and what rounding can do."""

    loss: float
    """Relative to the loss."""
    gradient: float
    """Norm of the difference of the gradients over all trained parameters, relative to the norm of
    the gradient."""
    loss_allowed: float
    gradient_allowed: float

    def is_rounding(self) -> bool:
        # False for what is not a number, too.
        return self.loss <= self.loss_allowed and self.gradient <= self.gradient_allowed

    def describe(self) -> str:
        """`loss 2.4e-08 apart (rounding: up to 9.5e-07), gradient 3.1e-07 (4.2e-06)`."""
        return (
            f"loss {self.loss:.1e} apart (rounding: up to {self.loss_allowed:.1e}),"
            f" gradient {self.gradient:.1e} ({self.gradient_allowed:.1e})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared, and how far it was apart."""

    num_rows: int
    num_parts: int
    """Micro-batches of these rows as they are trained."""
    alone: Apart
    """As trained, against each row alone."""
    dense: Apart
    """One row, against dense cross-entropy."""

    def describe(self) -> str:
        """One line for people."""
        parts = f"{self.num_parts} micro-batch{'' if self.num_parts == 1 else 'es'}"
        return (
            f"{self.num_rows} rows in {parts}, against each alone: {self.alone.describe()}"
            f" · one row, against dense cross-entropy: {self.dense.describe()}"
        )

    def as_dict(self) -> dict[str, object]:
        """The machine-readable form (`selfcheck.json`)."""
        return asdict(self)


def check_first_update(
    sft: SFTModel,
    parameters: Iterable[nn.Parameter],
    examples: Sequence[Example],
    plan: StepPlan,
    folder: Path,
) -> Proof:
    """`check_layouts` on the rows of the first update; leaves `selfcheck.json` in the run's folder.

    Raises:
        DuitiError: as `check_layouts`.
    """
    first = next(epoch_updates(len(examples), plan.batch_size, seed=plan.seed, epoch=0))
    rows = [examples[index] for index in first]
    proof = check_layouts(
        sft, parameters, rows, micro_batch_tokens=plan.micro_batch_tokens, seed=plan.seed
    )
    write_json(folder / FILE, proof.as_dict())
    return proof


def check_layouts(
    sft: SFTModel,
    parameters: Iterable[nn.Parameter],
    rows: Sequence[Example],
    *,
    micro_batch_tokens: int,
    seed: int,
) -> Proof:
    """Compare the layouts. It needs an update's memory, and the gradient once more.

    Args:
        sft: as it will be trained.
        parameters: those that are trained; they have no gradients yet.
        rows: of one update.
        seed: of the roundings, and of the values that adapters have meanwhile.

    Raises:
        DuitiError: the numbers depend on the layout, or memory does not suffice to tell.
    """
    parameters = list(parameters)
    device = parameters[0].device
    parts = micro_batches(range(len(rows)), [len(row) for row in rows], budget=micro_batch_tokens)
    plain = SFTModel(sft.model, compute_dtype=sft.compute_dtype, is_packed=False)
    row = _one_row(rows)

    def as_trained() -> Iterator[Tensor]:
        with layers_checkpointed(sft):
            for part in parts:
                yield sft(collate([rows[i] for i in part], device))[0]

    def alone() -> Iterator[Tensor]:
        return (plain(collate([row], device))[0] for row in rows)

    def one() -> Iterator[Tensor]:
        with layers_checkpointed(sft):
            yield sft(collate([row], device))[0]

    def dense() -> Iterator[Tensor]:
        yield _dense_loss(sft, collate([row], device))

    try:
        with without_trace(sft, parameters), adapters_moved(sft, seed):
            sft.eval()
            proof = Proof(
                num_rows=len(rows),
                num_parts=len(parts),
                alone=_apart(as_trained, alone, sft, parameters, seed),
                dense=_apart(one, dense, sft, parameters, seed),
            )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DuitiError(
            "--selfcheck: out of memory",
            why=str(error).partition("\n")[0],
            fix="--micro-batch-tokens 1 needs the least; without --selfcheck, training makes its"
            " micro-batches smaller by itself",
        ) from None
    _refuse(proof.alone, "from each row alone")
    _refuse(proof.dense, "from dense cross-entropy on the model's own logits")
    return proof


def _refuse(apart: Apart, reference: str) -> None:
    if apart.is_rounding():
        return
    raise DuitiError(
        f"--selfcheck: the first update differs {reference}: {apart.describe()}",
        why="that is more than rounding; what would be trained depends on how rows are laid out,"
        " on this model or on this machine",
        fix="please report it, with the name of the model",
    )


def _one_row(rows: Sequence[Example]) -> Example:
    """A short one, for its logits are held whole, but with something to measure."""
    enough = [row for row in rows if row.num_supervised >= DENSE_TOKENS]
    return min(enough, key=len) if enough else max(rows, key=lambda row: row.num_supervised)


def _apart(
    ours: Losses, reference: Losses, sft: SFTModel, parameters: list[nn.Parameter], seed: int
) -> Apart:
    expected = _accumulate(reference, parameters)
    kept = [(p, p.grad) for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm([grad for _, grad in kept]))

    def distance(losses: Losses) -> tuple[float, float]:
        loss = _accumulate(losses, parameters)
        between = [grad if p.grad is None else p.grad.sub_(grad) for p, grad in kept]
        gradient = float(torch.nn.utils.get_total_norm(between)) / norm
        return abs(loss - expected) / abs(expected), gradient

    loss, gradient = distance(ours)
    epsilon = 2**-24 if sft.compute_dtype == torch.float32 else 2**-9
    noise = 0.0
    for draw in range(DRAWS):
        with embeddings_rounded(sft, epsilon, seed + draw):
            noise = max(noise, distance(reference)[1])
        found = Apart(
            loss=loss,
            gradient=gradient,
            # Never less than a few roundings: of the sums of losses, and of each gradient.
            loss_allowed=max(MARGIN * noise / 10, 16 * 2**-24),
            gradient_allowed=max(MARGIN * noise, 4 * epsilon),
        )
        if found.is_rounding():
            break
    return found


def _accumulate(losses: Losses, parameters: list[nn.Parameter]) -> float:
    drop_gradients(parameters)
    total = 0.0
    for loss in losses():
        loss.backward()
        total += loss.item()
    return total


def _dense_loss(sft: SFTModel, batch: Batch) -> Tensor:
    """Of one row: every position's logits from the model itself, and PyTorch's cross-entropy."""
    device, is_low = batch.input_ids.device, sft.compute_dtype != torch.float32
    with torch.autocast(device.type, sft.compute_dtype) if is_low else nullcontext():
        logits = sft.model(input_ids=batch.input_ids[None], use_cache=False).logits[0]
    losses = cross_entropy(logits[batch.supervised].float(), batch.targets, reduction="none")
    return (losses if batch.weights is None else losses * batch.weights).sum()
