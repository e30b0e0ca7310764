"""The verbs of the command line, each a few lines over the function that does the work.

`duiti.cli` finds them here by name and only when one is used; torch waits inside them, so that
their help is instant too. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators
from rich.console import Console

from duiti.config import Config, load_config
from duiti.errors import DataError, UsageError

if TYPE_CHECKING:
    from duiti.infer.model import Model

Flag = Annotated[bool, Parameter(negative=())]
Settings = Annotated[Config, Parameter(name="*")]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative=())]
NO_SETTINGS = Config()


def demo(*, output: Annotated[str, Parameter(name=["--output", "-o"])] = "runs/demo") -> None:
    """See it work: fine-tune the embedded model, ask it before and after.

    Parameters
    ----------
    output
        Run folder to create.
    """
    from duiti.demo import run_demo

    run_demo(output)


def check(
    *data: str,
    config: ConfigFile = None,
    show: int = 3,
    dump: Path | None = None,
    html: Path | None = None,
    json_: Json = False,
    settings: Settings = NO_SETTINGS,
) -> None:
    """Look at data without training: rows, tokens, and what exactly would be trained.

    Parameters
    ----------
    data
        Files or folders to look at; `file@0.1` takes a tenth of its rows, `file#500` 500 of them.
    config
        YAML file with settings; flags win over it.
    show
        How many examples to print with their trained part marked.
    dump
        Write every example (origin, input_ids, labels) to this JSONL file.
    html
        Write all that is found to this page: ledger, lengths, and every token of the first rows.
    json_
        Print one JSON object instead.
    """
    from duiti.checking import run_check
    from duiti.summary import say_data, say_need
    from duiti.training.log import Talk, preparing

    with preparing(Talk(quiet=json_)) as watch:
        try:
            report = run_check(_merge(config, data, settings), say=watch.say, report=watch.report)
        except DataError as error:
            if json_:  # a file that cannot be read to its end has no ledger
                print(json.dumps({"refused": error.what}, ensure_ascii=False))
            raise
    if dump is not None:
        report.dump(dump)
    if html is not None:
        report.write_page(html)
    if json_:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        talk = Talk(stdout=True)
        say_data(report.material, talk)
        talk.say("template", report.material.template.name)
        say_need(report.memory, talk)
        report.print_masks(show, talk.console)
        if html is not None:
            talk.say("page", str(html))
    if report.refusal is not None:
        if json_:
            raise SystemExit(report.refusal.exit_code)
        raise report.refusal
    if not json_:
        talk.say("next", shlex.join(["duiti", "train", *data, *_as_flags(config, settings)]))


def train(
    *data: str,
    config: ConfigFile = None,
    resume: str | None = None,
    allow_change: tuple[str, ...] = (),
    cool_down: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    plain: Flag = False,
    settings: Settings = NO_SETTINGS,
) -> None:
    """Fine-tune a model on prompt/response pairs.

    Parameters
    ----------
    data
        Files or folders to train on; `file@0.1` takes a tenth of its rows, `file#500` 500 of them.
    config
        YAML file with settings; flags win over it.
    resume
        Go on with a run that was stopped: its folder or name, or one of its checkpoints; without a
        value the newest run that did not finish. Its settings are those that it was begun with.
    allow_change
        With --resume: a key, or data, base, tokenizer, that may differ from the stopped run.
    cool_down
        With --resume: let the learning rate fall to zero in this many updates, and finish.
    plain
        Lines instead of a progress bar.
    """
    from duiti.training.log import Talk

    talk = Talk(plain=plain)
    if resume is None:
        given = {"--allow-change": allow_change, "--cool-down": cool_down}
        for flag, value in given.items():
            if value:
                raise UsageError(f"{flag} has no effect without --resume")
        from duiti.sft import finetune

        finetune(_merge(config, data, settings), talk=talk)
        return
    from duiti.sft import go_on

    asked = _given(config, data, settings)
    go_on(resume, asked, allowed=allow_change, cool_down=cool_down, talk=talk)


def chat(
    model: str | None = None,
    *,
    prompt: Annotated[str | None, Parameter(name=["--prompt", "-p"])] = None,
    base: Flag = False,
    system: str = "",
    template: str = "auto",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    device: str = "auto",
    trust_remote_code: Flag = False,
) -> None:
    """Talk to a run (default: the newest) or to a model.

    Parameters
    ----------
    model
        A run's folder or name, or a base model.
    prompt
        Ask this one question and print the answer alone.
    base
        Ask the base model of the run instead.
    system
        A system message.
    template
        For a base model only; a run has its own.
    temperature
        0 always takes the likeliest token.
    top_p
        Sample from the likeliest tokens that hold this much of the probability.
    max_new_tokens
        The longest answer.
    seed
        Of the sampling.
    device
        Where to run.
    trust_remote_code
        Run Python code that comes with the model.
    """
    from duiti.infer.chat import Chat, chat_loop
    from duiti.infer.generate import Sampling
    from duiti.infer.model import load
    from duiti.run import newest_run

    loaded = load(
        model if model is not None else newest_run(),
        device=device,
        template=template,
        trust_remote_code=trust_remote_code,
    )
    _say_notes(loaded)
    if base and not loaded.is_tuned:
        raise UsageError(f"--base: {loaded.name} is a base model already")
    session = Chat(
        loaded,
        sampling=Sampling(temperature, top_p, seed),
        max_new_tokens=max_new_tokens,
        voices=("base",) if base else ("tuned",),
        system=system,
    )
    if prompt is None:
        chat_loop(session)
        return
    for piece in session.ask(prompt, session.voices[0]):
        print(piece, end="", flush=True)
    print()


def eval_(
    model: str,
    data: str,
    *,
    metric: tuple[str, ...] = ("exact_match",),
    map: Annotated[str, Parameter(name="--map")] = "",
    template: str = "auto",
    device: str = "auto",
    on_bad_row: Literal["refuse", "drop"] = "refuse",
    json_: Json = False,
    trust_remote_code: Flag = False,
) -> None:
    """Measure a run, base beside tuned, on rows that it was not trained on.

    Parameters
    ----------
    model
        A run's folder or name, or a base model.
    data
        File with prompts and expected answers.
    metric
        Scores of the generated answers: exact_match.
    map
        Rename fields: question=prompt,answer=response.
    template
        For a base model only; a run has its own.
    device
        Where to run.
    on_bad_row
        refuse, or drop rows that cannot be used.
    json_
        Print one JSON object instead of a table.
    trust_remote_code
        Run Python code that comes with the model.
    """
    from duiti.api import check_metrics, evaluate
    from duiti.infer.model import load

    renamed = load_config(None, {"map": map}).map if map else None
    check_metrics(metric)
    loaded = load(model, device=device, template=template, trust_remote_code=trust_remote_code)
    _say_notes(loaded)
    found = evaluate(loaded, data, metrics=metric, map=renamed, on_bad_row=on_bad_row)
    if json_:
        print(json.dumps(found))
        return
    _print_scores(found)


def runs(*, json_: Json = False) -> None:
    """List the runs under runs/, newest first.

    Parameters
    ----------
    json_
        Print one JSON array instead of a table.
    """
    from duiti.listing import list_as_dicts, print_runs

    found = list_as_dicts()
    if json_:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_runs(found)


def export(
    format: Literal["merged"],
    run: str | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    proof: bool = True,
    json_: Json = False,
    trust_remote_code: Flag = False,
) -> None:
    """Write a run (default: the newest) as one plain model, and measure that it is the same.

    Parameters
    ----------
    format
        merged: base and adapter in one, for transformers and whatever reads its format.
    run
        The run's folder or name.
    output
        Folder to create.
    dtype
        Of the weights; auto is that of the base model.
    proof
        Open the folder in a new process, with plain transformers, and hold it against the run.
    json_
        Print one JSON object instead.
    trust_remote_code
        Run Python code that comes with the model.
    """
    from duiti.api import export as export_run
    from duiti.run import newest_run

    report = export_run(
        run if run is not None else newest_run(),
        format,
        output,
        dtype=dtype,
        proof=proof,
        trust_remote_code=trust_remote_code,
    )
    print(json.dumps(report.as_dict()) if json_ else report)


def doctor(*, json_: Json = False) -> None:
    """Say what this machine has: versions, devices, speed, free disk.

    Parameters
    ----------
    json_
        Print one JSON object instead.
    """
    from duiti.doctor import examine, print_findings

    findings = examine()
    if json_:
        print(json.dumps(findings))
    else:
        print_findings(findings)


def _say_notes(model: Model) -> None:
    """What is good to know of a model that was opened."""
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)


def _merge(file: Path | None, data: tuple[str, ...], settings: Config) -> Config:
    """The settings of the file, then those of the flags that were given."""
    return load_config(file, _given(None, data, settings))


def _given(file: Path | None, data: tuple[str, ...], settings: Config) -> dict[str, Any]:
    """What is set by a file and by flags, and nothing else."""
    given: dict[str, Any] = settings.model_dump(exclude_unset=True)
    if data:
        given["data"] = data
    return given if file is None else load_config(file, given).model_dump(exclude_unset=True)


def _as_flags(file: Path | None, settings: Config) -> list[str]:
    """The flags that were given, as they would be given again."""
    flags = [] if file is None else ["-c", str(file)]
    given = settings.model_dump(exclude_unset=True, mode="json")
    for key, value in given.items():
        inner = value.items() if key in ("lora", "last_n") else [("", value)]
        for name, item in inner:
            flag = "--" + f"{key}.{name}".rstrip(".").replace("_", "-")
            if key == "model":
                flag = "-m"
            if isinstance(item, bool):
                flags.append(flag if item else flag.replace("--", "--no-", 1))
            elif isinstance(item, dict):
                flags += [flag, ",".join(f"{old}={new}" for old, new in item.items())]
            else:
                flags += [flag, ",".join(item) if isinstance(item, list) else str(item)]
    return flags


def _print_scores(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "base", *(["tuned"] if found["tuned"] else []), box=None)
    for key, value in found["base"].items():
        cells = [value, *([found["tuned"][key]] if found["tuned"] else [])]
        shown = [f"{c:.4f}" if key == "loss" else f"{c:.1%}" for c in cells]
        table.add_row(key, *shown)
    Console().print(table)
    print(f"{found['n']} rows, {found['supervised_tokens']} supervised tokens")
