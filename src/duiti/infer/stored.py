"""A stored model, looked at before it is used: is it whole, and does it belong to this base?

    artefact = verified(folder)                 # None: duiti did not make it, it carries no hashes
    hold_base(artefact.trained_on, folder, source)
    template = load_saved_template(folder, tokenizer)
    hold_template(artefact.trained_on, folder, template)

Every refusal names what differs. A library below would load each of these without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from duiti.data.templates.template import Template, as_declared, declare, load_template
from duiti.errors import DuitiError, UsageError
from duiti.infer.digests import base_digest, template_digest, tokenizer_digest
from duiti.manifest import MANIFEST_FILE
from duiti.model.artefact import Artefact, TrainedOn, read_artefact
from duiti.model.load import ModelSource
from duiti.run import TEMPLATE_FILE
from duiti.strict_yaml import read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_HASHES = (
    "it carries no hashes, so nothing tells whether it is whole, nor whether this is its base"
)


def verified(folder: Path) -> Artefact | None:
    """What a folder that duiti finished holds, every byte of it looked at; None: another's folder.

    Raises:
        Damaged: it is not what was written.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file() or not _is_ours(path):
        return None
    return read_artefact(folder)


def hold_base(trained_on: TrainedOn, folder: Path, base: ModelSource) -> None:
    """Stop here unless the base is the one that was trained on.

    Raises:
        DuitiError: it has other weights, or is described otherwise.
    """
    found = base_digest(base)
    what, then, now = "weights", trained_on.weights, found.weights
    if then == now:
        what, then, now = "config.json", trained_on.config, found.config
    if then != now:
        raise DuitiError(
            f"{folder} was not trained on this base, {base.name}: its {what} differs",
            why=f"trained on {trained_on.base} (sha256 {then[:16]}…),"
            f" and this is {base.name} (sha256 {now[:16]}…)",
            fix="put the base back as it was; if it only moved: model, in config.yaml",
        )


def hold_template(trained_on: TrainedOn, folder: Path, template: Template) -> None:
    """Stop here unless tokenizer and template, as they were loaded, are those of training.

    Their files are what was written: another version of a library may still read them otherwise.

    Raises:
        DuitiError: one of them is another.
    """
    for what, then, now in (
        ("tokenizer", trained_on.tokenizer, tokenizer_digest(template.tokenizer)),
        ("template", trained_on.template, template_digest(template)),
    ):
        if then != now:
            raise DuitiError(
                f"{folder}: its {what} is not the one that it was trained with",
                why=f"then {then[:16]}…, and as it is read here {now[:16]}…",
                fix="use the versions of transformers and tokenizers that env.json tells",
            )


def load_saved_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that a run was trained with.

    Raises:
        UsageError: `template.yaml` is not what was written, or contradicts `chat_template.jinja`.
    """
    path = folder / TEMPLATE_FILE
    if not path.is_file():
        return load_template("model", tokenizer)
    values = read_yaml(path)
    name = str(values.pop("name", path.stem))
    template = declare(name, as_declared(values, source=str(path)), tokenizer)
    if template.source.strip() != str(tokenizer.chat_template).strip():
        raise UsageError(
            f"{folder}: {TEMPLATE_FILE} and chat_template.jinja disagree",
            why="one was edited after training, and the model knows only what it saw then",
        )
    return template


def _is_ours(path: Path) -> bool:
    """Whether a manifest.json is duiti's, whole or not: others call files so too."""
    try:
        with path.open("rb") as file:
            return b'"duiti"' in file.read(2**22)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
