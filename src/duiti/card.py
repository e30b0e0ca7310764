"""The README of a run: a model card with the numbers that were measured, and how to use the model.

    write_card(folder)                   # from the files of the folder; again whenever they changed

It is a function of the run's files and nothing else: what was not measured is not mentioned, and no
time, place or name of the machine is in it. Names are shown as they are, and drive neither Markdown
nor YAML nor HTML.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duiti.config import Config
from duiti.durable import write_file
from duiti.findings import end_and_best, number_of, object_of, own_choices, text_of
from duiti.front_matter import Base, find_base, front_matter
from duiti.run import CONFIG_FILE, ENV_FILE, LEDGER_FILE, METRICS_FILE, Run

CARD_FILE = "README.md"
SHARES = ("token_accuracy", "stop_rate", "empty", "other_language", "exact_match", "contains")
"""Measures that are shares, shown in percent."""
WORDS = {
    "loss": "loss (nats per token)",
    "token_accuracy": "next token right",
    "stop_rate": "stops by itself",
    "length_ratio": "length of answers ÷ expected",
    "empty": "empty answers",
    "other_language": "answers in another language",
}


def write_card(folder: Path) -> None:
    """Write `README.md`.

    Raises:
        DuitiError: a file of the run is damaged, or the card cannot be written.
    """
    run = Run(folder)
    config = run.config
    base = find_base(config)
    evaluation = run.read_json("evaluation.json")
    parts = [
        front_matter(run, config, base, evaluation),
        f"# {shown(folder.absolute().name)}",
        shown(text_of(run.read_json("verdict.json").get("sentence"))),
        _what(run, config, base),
        "## Results",
        _evaluation(evaluation),
        _findings(run),
        "## Data",
        _data(run.read_json(LEDGER_FILE)),
        "## Use it",
        _use(folder, config),
        "## Settings",
        _settings(run, config),
    ]
    write_file(folder / CARD_FILE, "\n\n".join(part.strip() for part in parts if part) + "\n")


def shown(text: str) -> str:
    """Text that Markdown shows as it is."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = re.sub(r"([\\`*_{}\[\]<>#!|~$&])", r"\\\1", plain)
    # What begins a list or underlines a heading.
    escaped = re.sub(r"^(\d*)([-+=]|[.)](?= |$))", r"\1\\\2", escaped)
    return re.sub(r"(?i)(https?|ftp|www)(?=[:.])", r"\1&#8203;", escaped)


def code(text: str) -> str:
    """The same as code, also in a table."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    plain = plain.replace("|", "\N{BROKEN BAR}")  # which ends a cell, even in code
    marks = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    edge = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{marks}{edge}{plain}{edge}{marks}" if plain else ""


def _what(run: Run, config: Config, base: Base) -> str:
    kind = "PEFT adapter" if config.method == "lora" else "transformers model"
    how = {
        "lora": f"LoRA, rank {config.lora.rank}",
        "last-n": "its last layers",
        "full": "all of it",
    }
    on = "" if config.quantize == "none" else f", on a base in four bits ({config.quantize})"
    version = text_of(run.read_json(ENV_FILE).get("duiti"))
    name = f"[{shown(base.name)}](https://huggingface.co/{base.hub_id})"
    name = name if base.name == base.hub_id else code(base.name)
    text = f"{name}, fine-tuned with duiti {shown(version)} ({how[config.method]}{on})."
    text += f" This folder is a {kind}. {base.note}".rstrip()
    return f"{text} The licence of the base holds for it; none is stated here."


def _evaluation(found: Mapping[str, Any]) -> str:
    """The table of measures, base beside tuned."""
    base, tuned, change = (object_of(found.get(key)) for key in ("base", "tuned", "change"))
    if not tuned:
        return ""
    lines = ["| on held-out rows | base | tuned | change, 95 % interval |", "|---|--:|--:|--:|"]
    for key in tuned:
        cells = [_value(key, side.get(key)) for side in (base, tuned)]
        if any(cells):
            name = shown(WORDS.get(key, key.replace("_", " ")))
            lines.append(
                f"| {name} | {cells[0]} | {cells[1]} | {_interval(key, change.get(key))} |"
            )
    count = _count(found.get("n"))
    tokens = _count(found.get("supervised_tokens"))
    return "\n".join([*lines, "", f"{count} rows with {tokens} trained tokens, never trained on."])


def _findings(run: Run) -> str:
    """What else was measured, a line each."""
    lines = []
    records = run.metrics
    figures = end_and_best(records)
    if "loss" in figures:
        lines.append(f"training loss at the end: {figures['loss'].end:.4f}")
    if "val_loss" in figures and not run.read_json("evaluation.json"):
        lines.append(f"validation loss at the end: {figures['val_loss'].end:.4f}")
    anchor = run.read_json("anchor.json")
    if (kl := number_of(anchor.get("kl"))) is not None:
        own = anchor.get("source") == "generated"
        on = "text that the base writes itself" if own else code(text_of(anchor.get("source")))
        text = f"forgetting, on {on}: {kl:.4f} nats per token away from the base"
        change = number_of(anchor.get("nll_change"))
        lines.append(text if change is None else f"{text}, loss {change:+.4f}")
    strength = run.read_json("strength.json")
    if (best := number_of(strength.get("recommended"))) is not None and best != 1:
        lines.append(f"recommended strength: {best:g} ({shown(text_of(strength.get('why')))})")
    lines += _troubles(records)
    lines.append(_proof(run.read_json("proof.json")))
    return "\n".join(f"- {line}" for line in lines)


def _troubles(records: list[dict[str, Any]]) -> list[str]:
    skipped = sum(line.get("skipped") is True for line in records)
    failures = sum(n for line in records if type(n := line.get("out_of_memory")) is int)
    found = []
    if skipped:
        found.append(f"updates left out, with a loss or gradient that was not finite: {skipped}")
    if failures:
        found.append(f"memory ran out {failures} times; the updates were made again, whole")
    return found


def _proof(found: Mapping[str, Any]) -> str:
    saved = number_of(object_of(found.get("saved")).get("largest"))
    if not found:
        return "that the saved files give what was trained was not proven"
    if found.get("passed") is not True or saved is None:
        return "**the saved files are not proven to be what was trained**: `proof.json`"
    by, tokens = shown(text_of(found.get("opened_by"))), _count(found.get("num_tokens"))
    return (
        f"the saved files, opened by {by} in a fresh process, give the log-probabilities that were"
        f" trained (largest difference {saved:.1e} nats over {tokens} tokens)"
    )


def _data(ledger: Mapping[str, Any]) -> str:
    """The ledger in a sentence."""
    data = object_of(ledger.get("data"))
    tokens = object_of(data.get("tokens"))
    sources = data.get("sources")
    names = (
        [text_of(object_of(each).get("file")) for each in sources]
        if isinstance(sources, list)
        else []
    )
    rejected = data.get("rejected")
    left_out = {
        "rejected": len(rejected) if isinstance(rejected, list) else 0,
        **{name: data.get(key) for key, name in _LEFT_OUT.items()},
    }
    lost = [f"{_count(n)} {name}" for name, n in left_out.items() if n]
    files = ", ".join(code(Path(name).name) for name in names)
    text = (
        f"{_count(data.get('kept'))} of {_count(data.get('rows'))} rows of {files} were trained on"
    )
    text += f" ({', '.join(lost)})" if lost else ""
    trained, given = (_count(tokens.get(key)) for key in ("supervised", "context"))
    counts = f"{trained} tokens trained, {given} given"
    return f"{text}: {counts}. Every row is accounted for in `{LEDGER_FILE}`."


_LEFT_OUT = {
    "filtered": "filtered",
    "dropped": "too long",
    "val": "held out to measure on",
    "leaked": "in the held-out rows too",
}


def _use(folder: Path, config: Config) -> str:
    place = folder.name if folder.is_absolute() else folder.as_posix()
    chat = shlex.join(["duiti", "chat", place])
    merged = shlex.join(["duiti", "export", "merged", place, "-o", f"{folder.name}-merged"])
    trust = ", trust_remote_code=True" if config.trust_remote_code else ""
    if config.method == "lora":
        imports = "from peft import PeftConfig, PeftModel\n"
        load = (
            "base = PeftConfig.from_pretrained(folder).base_model_name_or_path\n"
            f"model = AutoModelForCausalLM.from_pretrained(base{trust})\n"
            "model = PeftModel.from_pretrained(model, folder)\n"
        )
    else:
        imports = ""
        load = f"model = AutoModelForCausalLM.from_pretrained(folder{trust})\n"
    python = _PYTHON.format(
        imports=imports, folder=json.dumps(place, ensure_ascii=False), load=load, trust=trust
    )
    shell = _block("sh", f"{chat}\n{merged}\n")
    return f"{shell}\n\nOr without duiti:\n\n{_block('python', python)}"


_PYTHON = """\
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder = {folder}
{load}tokenizer = AutoTokenizer.from_pretrained(folder{trust})
# It lists every token that was trained to end an answer.
generation = GenerationConfig.from_pretrained(folder)
messages = [{{"role": "user", "content": "Hello"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, generation_config=generation, max_new_tokens=200)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def _block(language: str, text: str) -> str:
    marks = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{marks}{language}\n{text}{marks}"


def _settings(run: Run, config: Config) -> str:
    lines = ["| setting | value | why |", "|---|---|---|"]
    for choice in own_choices(run, config):
        if choice.key == "output":
            continue
        value = text_of(choice.value) if choice.key not in _PATHS else _no_folders(choice.value)
        lines.append(f"| {code(choice.key)} | {code(value)} | {shown(choice.reason)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"All others are the defaults. Every setting: `{CONFIG_FILE}`, and"
            f" `duiti train -c {CONFIG_FILE} -o NEW` repeats the run. Every update:"
            f" `{METRICS_FILE}`.",
        ]
    )


_PATHS = frozenset({"model", "data", "val", "template", "anchor", "filter"})
"""Settings that may be paths: a card that is published tells no folders of a machine."""


def _no_folders(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_no_folders(item) for item in value)
    text = text_of(value)
    is_path = text.startswith(("/", "~", ".")) or text.count("/") > 1
    return Path(text).name if is_path else text


def _value(key: str, value: object) -> str:
    number = number_of(value)
    if number is None:
        return ""
    return f"{number:.1%}" if key in SHARES else f"{number:,.4f}"


def _interval(key: str, change: object) -> str:
    mean, low, high = (number_of(object_of(change).get(name)) for name in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return ""
    scale, digits = (100, 1) if key in SHARES else (1, 4)
    points = " points" if key in SHARES else ""
    numbers = (f"{scale * each:+.{digits}f}" for each in (mean, low, high))
    first, *between = numbers
    return f"{first}{points} ({' to '.join(between)})"


def _count(value: object) -> str:
    return f"{value:,}" if type(value) is int else "?"
