"""A finished run's weights: a folder that PEFT (or transformers), and any server, opens as it is.

    save_weights(model, template, folder, config, base)

LoRA: `adapter_config.json` + `adapter_model.safetensors`. Otherwise the whole model, trained
tensors exactly (float32). Beside them tokenizer, `chat_template.jinja`, `template.yaml` where the
template was declared, and a `generation_config.json` that lists every stop token that was trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml
from transformers import GenerationConfig, PreTrainedModel

from duiti.config import Config
from duiti.data.templates.template import Template
from duiti.model.adapter import save_adapter
from duiti.model.load import ModelSource
from duiti.run import TEMPLATE_FILE


def save_weights(
    model: PreTrainedModel,
    template: Template,
    folder: Path,
    config: Config,
    base: ModelSource,
    *,
    trained_stops: Iterable[int],
) -> None:
    """Write everything that using the model needs."""
    stops = list(dict.fromkeys([*sorted(trained_stops), *_listed_stops(model)]))
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
    if config.method == "lora":
        save_adapter(model, folder, config.lora, base=base.location)
    else:
        # Widening what stayed frozen is exact; narrowing what was trained would not be.
        model.float().save_pretrained(folder)
    generation.save_pretrained(folder)
    _save_template(template, folder)


def _save_template(template: Template, folder: Path) -> None:
    tokenizer = template.tokenizer
    own = tokenizer.chat_template
    tokenizer.chat_template = template.source
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = own
    if template.declared is not None:
        values = {"name": template.name, **template.declared.model_dump()}
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        (folder / TEMPLATE_FILE).write_text(text, encoding="utf-8")


def _listed_stops(model: PreTrainedModel) -> list[int]:
    listed = model.generation_config.eos_token_id if model.generation_config else None
    return listed if isinstance(listed, list) else [] if listed is None else [listed]
