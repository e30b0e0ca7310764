"""The command `duiti`: ten verbs at most, each a few lines over the function that does the work.

Only what parsing needs is imported on top; torch waits inside the verbs, so `--help` is instant.
Results go to stdout, everything else to stderr. Exit codes: `duiti.errors`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console

import duiti
from duiti.config import Config, explain, load_config
from duiti.errors import DuitiError, RowError, UsageError

Flag = Annotated[bool, Parameter(negative=())]
Settings = Annotated[Config, Parameter(name="*")]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative=())]

app = App(
    name="duiti",
    help="Fine-tune a language model on your prompt/response pairs, and see that it worked.",
    help_format="plaintext",
    version=duiti.__version__,
    default_parameter=Parameter(negative_iterable=()),
)


@app.command(sort_key=1)
def demo(*, output: Annotated[str, Parameter(name=["--output", "-o"])] = "runs/demo") -> None:
    """See it work: fine-tune the embedded model, ask it before and after. No network, about a minute.

    Parameters
    ----------
    output
        Run folder to create.
    """
    from duiti.demo import run_demo

    run_demo(output)


@app.command(sort_key=2)
def check(
    *data: str,
    config: ConfigFile = None,
    show: int = 3,
    dump: Path | None = None,
    json_: Json = False,
    settings: Settings = Config(),
) -> None:
    """Look at data without training: rows, tokens, and what exactly would be trained.

    Parameters
    ----------
    data
        Files to look at.
    config
        YAML file with settings; flags win over it.
    show
        How many examples to print with their trained part marked.
    dump
        Write every example (origin, input_ids, labels) to this JSONL file.
    json_
        Print one JSON object instead.
    """
    from duiti.checking import run_check
    from duiti.summary import say_data
    from duiti.train.log import Talk

    report = run_check(_merge(config, data, settings))
    if dump is not None:
        report.dump(dump)
    if json_:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        talk = Talk(stdout=True)
        say_data(report.material, talk)
        talk.say("template", report.material.template.name)
        report.print_masks(show, talk.console)
    if report.refusal is not None:
        if json_:
            raise SystemExit(report.refusal.exit_code)
        raise report.refusal
    if not json_:
        model = report.material.source.name
        talk.say("next", f"duiti train {' '.join(data)} -m {model}")


@app.command(sort_key=3)
def train(
    *data: str, config: ConfigFile = None, plain: Flag = False, settings: Settings = Config()
) -> None:
    """Fine-tune a model on prompt/response pairs.

    Parameters
    ----------
    data
        Files to train on: JSONL or JSON.
    config
        YAML file with settings; flags win over it.
    plain
        Lines instead of a progress bar.
    """
    from duiti.sft import finetune
    from duiti.train.log import Talk

    finetune(_merge(config, data, settings), talk=Talk(plain=plain))


@app.command(sort_key=4)
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


@app.command(name="eval", sort_key=5)
def eval_(
    model: str,
    data: Path,
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
    from duiti.api import evaluate

    renamed = load_config(None, {"map": map}).map if map else None
    found = evaluate(
        model,
        data,
        metrics=metric,
        map=renamed,
        template=template,
        device=device,
        on_bad_row=on_bad_row,
        trust_remote_code=trust_remote_code,
    )
    if json_:
        print(json.dumps(found))
        return
    _print_scores(found)


@app.command(sort_key=6)
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


@app.command(sort_key=7)
def export(
    format: Literal["merged"],
    run: str | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
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
        trust_remote_code=trust_remote_code,
    )
    print(json.dumps(report.as_dict()) if json_ else report)


@app.command(sort_key=8)
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


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except DuitiError as error:
        _fail(str(error), error.exit_code, debug)
    except RowError as error:
        _fail(str(error), UsageError.exit_code, debug)
    except ValidationError as error:
        _fail(str(explain(error)), UsageError.exit_code, debug)
    except CycloptsError as error:
        cause = error.__cause__
        text = str(explain(cause)) if isinstance(cause, ValidationError) else str(error)
        _fail(text, UsageError.exit_code, debug)
    except KeyboardInterrupt:
        _fail("stopped", 130, debug)
    raise SystemExit(0)


def _merge(file: Path | None, data: tuple[str, ...], settings: Config) -> Config:
    """The settings of the file, then those of the flags that were given."""
    given: dict[str, Any] = settings.model_dump(exclude_unset=True)
    if data:
        given["data"] = data
    return load_config(file, given)


def _print_scores(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "base", *(["tuned"] if found["tuned"] else []), box=None)
    for key, value in found["base"].items():
        cells = [value, *([found["tuned"][key]] if found["tuned"] else [])]
        shown = [f"{c:.4f}" if key == "loss" else f"{c:.1%}" for c in cells]
        table.add_row(key, *shown)
    Console().print(table)
    print(f"{found['n']} rows, {found['supervised_tokens']} supervised tokens")


def _fail(text: str, code: int, debug: bool) -> NoReturn:
    if debug:
        Console(stderr=True).print_exception()
    print(f"✗ {text}", file=sys.stderr)
    raise SystemExit(code)
