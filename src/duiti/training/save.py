"""A finished run's weights: a folder that PEFT (or transformers), and any server, opens as it is.

    saved = save_weights(model, template, folder, config, base, trained_stops=stops, …)
    saved.close()                                   # what else there is to be sure of comes before

LoRA: `adapter_config.json` + `adapter_model.safetensors`. Otherwise the whole model, trained
tensors exactly (float32), frozen ones as they were. Beside them tokenizer, `chat_template.jinja`,
`template.yaml` where the template was declared, and a `generation_config.json` that lists every
stop token that was trained.

All of it is written beside first and moved in when it is whole; `manifest.json`, with the hash of
every file, closes it. A folder without it is not finished, however the process ended.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from duiti.config import Config
from duiti.data.templates.template import Template
from duiti.disk_errors import explained
from duiti.durable import new_folder, remove_folder
from duiti.manifest import MANIFEST_FILE
from duiti.model.adapter import save_adapter
from duiti.model.artefact import Artefact, TrainedOn, write_artefact
from duiti.model.load import ModelSource
from duiti.model.lora import lora_layers
from duiti.run import TEMPLATE_FILE

STAGED = "weights"
"""Folder in the run's in which everything is whole before it is moved to its place."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Weights that are in their place, in a folder that is not closed yet."""

    folder: Path
    artefact: Artefact
    names: tuple[str, ...]
    """Of the files that decide what the model answers."""

    def close(self) -> None:
        """Write the manifest: the run is finished.

        Raises:
            DuitiError: it cannot be written.
        """
        write_artefact(self.folder, self.artefact, self.names)


def save_weights(
    model: PreTrainedModel,
    template: Template,
    folder: Path,
    config: Config,
    base: ModelSource,
    *,
    trained_stops: Iterable[int],
    trained_on: TrainedOn,
) -> Saved:
    """Write everything that using the model needs, whole or not at all.

    Raises:
        DuitiError: there is no room, or the folder cannot be written to; it is not finished then.
    """
    _list_stops(model, template, trained_stops)
    staged = folder.absolute() / STAGED
    if staged.exists():  # left by a process that ended between two moves
        remove_folder(staged)
    with new_folder(staged, num_bytes=_num_bytes(model, config)) as made:
        if config.method == "lora":
            save_adapter(model, made, config.lora, base=base.location)
        else:
            model.save_pretrained(made)
            _say_float32(made)
        assert model.generation_config is not None
        model.generation_config.save_pretrained(made)
        _save_template(template, made)
    names = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    _move_in(staged, folder)
    is_adapter = config.method == "lora"
    artefact = Artefact(
        kind="adapter" if is_adapter else "model",
        trained_on=trained_on,
        adapter=config.lora.model_dump(mode="json") if is_adapter else {},
    )
    return Saved(folder, artefact, tuple(name.as_posix() for name in names))


def _say_float32(folder: Path) -> None:
    """Have whoever opens the model widen what stayed frozen, which is exact: narrowing what was
    trained would not be. Widening it here would need memory for a whole second model."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if part is config or "dtype" in part:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer's files; a disk that refuses them is an OSError, as everywhere else."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The Rust library raises a bare Exception, which tells of the system's error in its text.
        found = re.search(r"\(os error ([0-9]{1,5})\)", str(error))
        if type(error) is not Exception or found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def _move_in(staged: Path, folder: Path) -> None:
    """One rename after another; while they go on, the folder is not finished."""
    with explained(folder):
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        (folder / TEMPLATE_FILE).unlink(missing_ok=True)  # there may be none this time
        for path in sorted(staged.iterdir()):
            target = folder / path.name
            if target.is_dir():
                remove_folder(target)
            path.replace(target)
        staged.rmdir()


def _num_bytes(model: PreTrainedModel, config: Config) -> int:
    """Of the tensors that will be written."""
    if config.method == "lora":
        layers = lora_layers(model).values()
        return 4 * sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers)
    return sum(parameter.nbytes for parameter in model.parameters())


def _list_stops(model: PreTrainedModel, template: Template, trained: Iterable[int]) -> None:
    """Have the model's generation config name every stop token that was trained."""
    stops = list(dict.fromkeys([*sorted(trained), *_listed_stops(model)]))
    generation = GenerationConfig.from_dict(model.generation_config.to_dict())
    generation.eos_token_id = stops
    if generation.pad_token_id is None:
        pad = template.tokenizer.pad_token_id
        generation.pad_token_id = stops[0] if pad is None else pad
    try:
        generation.validate(strict=True)
    except ValueError:
        # Some bases state a temperature but no sampling; transformers refuses to save that.
        generation.do_sample = True
    model.generation_config = generation


def _save_template(template: Template, folder: Path) -> None:
    tokenizer = template.tokenizer
    own = tokenizer.chat_template
    tokenizer.chat_template = template.source
    try:
        save_tokenizer(tokenizer, folder)
    finally:
        tokenizer.chat_template = own
    if template.declared is not None:
        values = {"name": template.name, **template.declared.model_dump()}
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        (folder / TEMPLATE_FILE).write_text(text, encoding="utf-8")


def _listed_stops(model: PreTrainedModel) -> list[int]:
    listed = model.generation_config.eos_token_id if model.generation_config else None
    return listed if isinstance(listed, list) else [] if listed is None else [listed]
