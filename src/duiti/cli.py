"""The command `duiti`: its verbs, its errors, its exit codes (`duiti.errors`).

Only what `--help` needs is imported here: a verb is imported when it is used (`duiti.verbs`).
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError

import duiti
from duiti.errors import DuitiError, RowError, UsageError

VERBS = {
    "demo": "See it work: fine-tune the embedded model, ask before and after. No network needed.",
    "check": "Look at data without training: rows, tokens, and what exactly would be trained.",
    "train": "Fine-tune a model on prompt/response pairs.",
    "chat": "Talk to a run (default: the newest) or to a model.",
    "eval": "Measure a run, base beside tuned, on rows that it was not trained on.",
    "runs": "List the runs under runs/, show one, or compare two.",
    "export": "Write a run as one plain model, and measure that it is the same.",
    "doctor": "Say what this machine has: versions, devices, speed, free disk.",
}

app = App(
    name="duiti",
    help="Fine-tune a language model on your prompt/response pairs, and see that it worked.",
    help_format="plaintext",
    version=duiti.__version__,
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
for number, (verb, summary) in enumerate(VERBS.items()):
    place = "evaluate:eval_" if verb == "eval" else f"{verb}:{verb}"
    app.command(f"duiti.verbs.{place}", name=verb, help=summary, sort_key=number)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code. `--debug` adds the traceback to an error."""
    # OpenMP's threads spin while they wait. Beside any other busy process that starves the thread
    # they wait for: a step of a small model took fifty times as long. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The kernels of half precision are made for every new number of tokens, and by default the last
    # 1,024 are kept.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in tokens
    tokens = _named_resume([token for token in tokens if token != "--debug"])
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except DuitiError as error:
        notes = getattr(error, "__notes__", [])  # what else went wrong on the way out
        _fail("\n".join([str(error), *notes]), error.exit_code, is_debug)
    except RowError as error:
        _fail(str(error), UsageError.exit_code, is_debug)
    except CycloptsError as error:
        _fail(_explain(error), UsageError.exit_code, is_debug)
    except KeyboardInterrupt:
        _fail("stopped", 130, is_debug)
    raise SystemExit(0)


def _named_resume(tokens: list[str]) -> list[str]:
    """`--resume` by itself means the newest run that did not finish."""
    named = list(tokens)
    for place, token in reversed(list(enumerate(tokens))):
        if token == "--resume" and (tokens[place + 1 : place + 2] or ["-"])[0].startswith("-"):
            named.insert(place + 1, "newest")
    return named


def _explain(error: CycloptsError) -> str:
    from pydantic import ValidationError

    from duiti.config import SYNONYMS, explain

    if isinstance(error.__cause__, ValidationError):
        return str(explain(error.__cause__))
    text = str(error)
    if isinstance(error, UnknownOptionError) and error.token is not None:
        name = error.token.keyword or error.token.value
        known = SYNONYMS.get(name.lstrip("-").replace("-", "_"))
        if known:
            return f"Unknown option: {name}. Here it is --{known.replace('_', '-')}."
    return text


def _fail(text: str, code: int, is_debug: bool) -> NoReturn:
    if is_debug:
        from rich.console import Console

        Console(stderr=True).print_exception()
    print(f"✗ {text}", file=sys.stderr)
    raise SystemExit(code)
