"""The verb `check`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from duiti.errors import DataError
from duiti.verbs.shared import NO_SETTINGS, ConfigFile, Json, Settings, as_flags, merged


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
            report = run_check(merged(config, data, settings), say=watch.say, report=watch.report)
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
        talk.say("next", shlex.join(["duiti", "train", *data, *as_flags(config, settings)]))
