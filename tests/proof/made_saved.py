"""Models as they stand at the end of a run, and what they saved: without the run.

saved = make(tmp_path, llama_dir, "lora", "bfloat16")
proof, found = saved.looked_at()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made import DATE, prepared, settled, write_rows
from torch import Tensor

from duiti.config import Config
from duiti.data.jobs import PrepareOptions
from duiti.data.templates.template import load_template
from duiti.model.artefact import TrainedOn
from duiti.model.freeze import choose_trained
from duiti.model.load import load_model, load_tokenizer, resolve
from duiti.proof.chats import sample_chats
from duiti.proof.expected import Expected, expectations, held_out_rows
from duiti.proof.plain_reader import read
from duiti.proof.prove import make_request
from duiti.proof.verdict import Proof, judge
from duiti.training.save import save_weights

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
ROWS = [
    {"prompt": f"Who wrote number {n}?" + " Please say." * (n % 4), "response": f"It was {n * 7}!"}
    for n in range(10)
]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4}},
    "last-n": {"method": "last-n", "last_n": {"layers": 1}},
    "full": {"method": "full"},
}


@dataclass(frozen=True)
class Saved:
    """A run's folder, the base, and what the model said that lies in the folder."""

    folder: Path
    base: str
    expected: Expected

    def looked_at(self, **more: Any) -> tuple[Proof, dict[str, Any]]:
        """What the fresh process would do, in this one."""
        values = {"base": self.base, **more}
        found = read(make_request(self.folder, self.expected, **values), [""])
        found["device"] = "cpu"
        return judge(self.expected, found, seconds=0.0), found

    def problems(self, **more: Any) -> str:
        return "\n".join(self.looked_at(**more)[0].problems)


def make(
    where: Path,
    base: Path,
    method: str = "lora",
    dtype: str = "float32",
    *,
    strength: float = 0.05,
    **more: Any,
) -> Saved:
    """A run of that method on that base, in the folder `where`."""
    config = Config(model=str(base), dtype=dtype, **{**METHODS[method], **more})
    source = resolve(str(base))
    model = load_model(source, dtype=getattr(torch, dtype), device="cpu", quantize=config.quantize)
    template = load_template("auto", load_tokenizer(source))
    file = write_rows(where / "rows.jsonl", ROWS)
    data = prepared(template, file)
    store = settled(template, file).train
    stops = data.account.stops
    _train(model, config, strength)
    options = PrepareOptions(date=DATE)
    chats = sample_chats(template, options, data.files, [store])
    expected = expectations(
        model, held_out_rows(store), chats,
        dtype=getattr(torch, dtype), stops=stops,
    )  # fmt: skip
    folder = where / "run"
    folder.mkdir()
    names = dict.fromkeys(("base", "weights", "config", "tokenizer", "template"), "none")
    trained_on = TrainedOn(**names)
    save_weights(
        model, template, folder, config, source, trained_stops=stops, trained_on=trained_on
    ).close()
    return Saved(folder, source.location, expected)


def _train(model: Any, config: Config, strength: float) -> None:
    """Move what is trained: more than any rounding, in a direction that nothing repeats."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in choose_trained(model, config).parameters.values():
            drawn = torch.empty(parameter.shape).normal_(std=strength, generator=generator)
            parameter.add_(drawn)


def retouched(base: str, where: Path, change: Callable[[Tensor], object]) -> Path:
    """A copy of a model with something done to its first matrix of attention."""
    model = load_model(resolve(base), dtype=torch.float32, device="cpu")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        change(next(p for name, p in parameters.items() if name.endswith("q_proj.weight")))
    model.save_pretrained(where)
    return where
