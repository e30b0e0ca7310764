"""One plain model out of a run: base + adapter, summed in float32, cast once, and compared.

    report = export_merged(Run("runs/my-tiny"), Path("my-tiny-merged"))
    report.max_logprob_error

The result opens in plain transformers (and anything that reads its format), tokenizer, template and
stop tokens included. What is reported is measured on the files: they are loaded again and compared
with the adapted model; and a fresh process, which knows nothing of duiti, proves the folder.

An adapter that was trained on a base in four bits (`quantize: nf4`) is merged into the original
base, which is not quite the one that it was trained on. How far the result is from the model that
was trained is no error of the merge, but is measured and told: `report.from_quantized`.

With `strength` an adapter is merged weaker (or a little stronger) than it was trained; of a run
without adapters, base + strength · (trained - base) is written. All that is compared is compared
with the model at that strength, and the manifest says which it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from duiti.data.jobs import PrepareOptions
from duiti.disk_errors import explained
from duiti.durable import make_folder, new_folder
from duiti.errors import DuitiError, UsageError
from duiti.exporting.from_quantized import (
    AsTrained,
    FromQuantized,
    answers_of,
    as_trained,
    from_quantized,
    log_probabilities,
)
from duiti.infer.model import Model, load
from duiti.model.artefact import Artefact, write_artefact
from duiti.model.load import load_config, resolve
from duiti.model.lora import adapters_scaled, check_strength, lora_layers, merge
from duiti.proof.chats import sample_chats
from duiti.proof.expected import NUM_ROWS, Expected, expectations, scored_answer
from duiti.proof.prove import prove
from duiti.proof.verdict import Proof
from duiti.run import Run
from duiti.training.save import save_tokenizer
from duiti.types import Json

MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats by which a log-probability may differ after the cast, by the dtype of the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """How the merged files compare with base and adapter, in float32, on fixed probe tokens."""

    path: Path
    dtype: torch.dtype
    max_logprob_error: float
    """Largest difference of a token's log-probability, in nats."""
    mean_logprob_error: float
    argmax_changes: int
    """Positions at which another token is the most likely one."""
    num_positions: int
    strength: float = 1.0
    """By which the adapter was multiplied."""
    from_quantized: FromQuantized | None = None
    """Where the base was in four bits: how far from the model that was trained."""
    proof: Proof | None = None
    """What a fresh process found in the folder; None where it was not asked."""

    def as_dict(self) -> dict[str, object]:
        """The machine-readable form."""
        return {
            "path": str(self.path),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_logprob_error": self.max_logprob_error,
            "mean_logprob_error": self.mean_logprob_error,
            "argmax_changes": self.argmax_changes,
            "num_positions": self.num_positions,
            "strength": self.strength,
            "from_quantized": asdict(self.from_quantized) if self.from_quantized else None,
            "proof": None if self.proof is None else self.proof.as_dict(),
        }

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        other = "original base and adapter" if self.from_quantized else "the trained one"
        at = "" if self.strength == 1 else f" at strength {self.strength:g}"
        lines = [
            f"{self.path}: one plain model in {dtype}{at}; against {other}{at}, on"
            f" {self.num_positions} tokens: log-probabilities off by {self.mean_logprob_error:.1e}"
            f" nats on average, {self.max_logprob_error:.1e} at most;"
            f" {self.argmax_changes} likeliest tokens changed"
        ]
        if self.from_quantized is not None:
            lines += [str(self.from_quantized)]
        if self.proof is not None:
            lines += [self.proof.describe()]
        return "\n".join(lines)


def export_merged(
    run: Run,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    strength: float = 1.0,
    proof: bool = True,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Write the merged model of a run to a new folder, which is there when all of it is, compared
    and with the hash of every file in its `manifest.json`; or not at all.

    Args:
        dtype: of the weights; default: that of the base model's files.
        strength: of what was trained: 0 is the base, 1 the trained model.
        proof: have a fresh process open the folder with plain transformers.

    Raises:
        UsageError: the folder exists and holds something; the run did not finish; there is no such
        strength.
        DuitiError: the run is damaged, its base another, the disk full, or the written files do
        not compute what the adapted model does (where only the proof fails, they stay).
    """
    check_strength(strength)
    run.require_finished()
    _require_free(output)
    config = run.config
    base = load_config(resolve(config.model, trust_remote_code=trust_remote_code))
    dtype = dtype or (base.dtype if isinstance(base.dtype, torch.dtype) else torch.float32)
    trained = None
    if config.quantize != "none":
        trained = as_trained(run, strength=strength, trust_remote_code=trust_remote_code)
    model = load(
        run, device="cpu", dtype=torch.float32, quantize="none", trust_remote_code=trust_remote_code
    )
    _, answers = answers_of(run, model)
    probe = probe_ids(model.hf)
    with adapters_scaled(model.hf, strength):
        if strength != 1 and not lora_layers(model.hf):
            _interpolate(model, strength)
        expected = log_probabilities(model.hf, probe)
        merge(model.hf)
    make_folder(output.parent)
    if output.exists():
        with explained(output, done="replaced"):
            output.rmdir()  # it is empty, and there again when all is in it
    with new_folder(output, num_bytes=_num_bytes(model.hf, dtype)) as made:
        nn.Module.to(model.hf, dtype).save_pretrained(made)
        merged = _expected(model, answers, config.date) if proof else None
        save_tokenizer(model.tokenizer, made)
        names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
        assert model.trained_on is not None  # a run always knows
        # A model at full strength is what was trained: there is nothing to say about it.
        facts: dict[str, Json] = {} if strength == 1 else {"strength": strength}
        artefact = Artefact(kind="model", trained_on=model.trained_on, adapter=facts)
        write_artefact(made, artefact, names)
        del model
        report = _compare(made, dtype, probe, expected, trained, trust=trust_remote_code)
        if not report.max_logprob_error <= MAX_ERROR.get(dtype, 0.5):
            raise DuitiError(
                f"{output}: log-probabilities are off by up to {report.max_logprob_error:.3g} nats",
                why=f"the merged weights, rounded to {dtype}, are not the trained model",
                fix="--dtype float32 keeps them exact",
            )
    proven = None
    if merged is not None:
        proven = prove(output, merged, base=None, trust_remote_code=trust_remote_code)
    return replace(report, path=output, strength=strength, proof=proven)


def probe_ids(model: PreTrainedModel, *, rows: int = 4, length: int = 64) -> Tensor:
    """[rows, length] fixed tokens, spread over the vocabulary."""
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size, (rows, length), generator=generator)


@torch.no_grad()
def _interpolate(model: Model, strength: float) -> None:
    """base + strength · (trained - base), in place (WiSE-FT, Wortsman et al. 2022)."""
    tuned = model.hf
    with model.base():
        for own, base in zip(tuned.parameters(), model.hf.parameters(), strict=True):
            own.copy_(base + strength * (own - base))


def _expected(model: Model, answers: list[tuple[list[int], list[int]]], date: str) -> Expected:
    """What the merged model in memory says, as it was written."""
    options = PrepareOptions(date=date, special_tokens=model.special_tokens)
    rows = [scored_answer(given, answer) for given, answer in answers[:NUM_ROWS]]
    stops = model.hf.generation_config.eos_token_id if model.hf.generation_config else None
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    chats = sample_chats(model.template, options, [], [])
    return expectations(model.hf, rows, chats, dtype=model.hf.dtype, stops=listed)


def _require_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty", fix="choose another folder: -o")


def _num_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())


def _compare(
    folder: Path,
    dtype: torch.dtype,
    ids: Tensor,
    expected: Tensor,
    trained: AsTrained | None,
    *,
    trust: bool,
) -> MergeReport:
    # The rounded weights, computing in float32: what is measured is the rounding, not the kernels.
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=trust
    )
    found = log_probabilities(again, ids)
    chosen = expected.argmax(dim=-1, keepdim=True)
    error = (found.gather(-1, chosen) - expected.gather(-1, chosen)).abs()
    return MergeReport(
        path=folder,
        dtype=dtype,
        max_logprob_error=float(error.max()),
        mean_logprob_error=float(error.mean()),
        argmax_changes=int((found.argmax(dim=-1) != chosen[..., 0]).sum()),
        num_positions=error.numel(),
        from_quantized=None if trained is None else from_quantized(again, trained),
    )
