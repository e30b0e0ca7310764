"""The verb `train`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

from duiti.errors import UsageError
from duiti.verbs.shared import NO_SETTINGS, ConfigFile, Flag, Settings, given, merged


def train(
    *data: str,
    config: ConfigFile = None,
    resume: str | None = None,
    allow_change: tuple[str, ...] = (),
    cool_down: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    find_lr: Flag = False,
    more_data: Flag = False,
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
    find_lr
        Try a few learning rates in short trainings, and train with the one that is best on rows
        held out.
    more_data
        Before training, measure on val what 25, 50 and 100 % of the rows come to, and say whether
        more of them would help. Takes nearly twice the time of the run.
    plain
        Lines instead of a progress bar.
    """
    from duiti.training.log import Talk

    talk = Talk(plain=plain)
    if resume is None:
        dead = {"--allow-change": allow_change, "--cool-down": cool_down}
        for flag, value in dead.items():
            if value:
                raise UsageError(f"{flag} has no effect without --resume")
        from duiti.searching.search import Search
        from duiti.sft import finetune

        asked = merged(config, data, settings)
        finetune(asked, search=Search(find_lr=find_lr, more_data=more_data), talk=talk)
        return
    for flag, is_given in {"--find-lr": find_lr, "--more-data": more_data}.items():
        if is_given:
            raise UsageError(
                f"{flag} has no effect with --resume",
                why="it looks for something before a run begins",
                fix="leave it out",
            )
    from duiti.sft import go_on

    changes = given(config, data, settings)
    go_on(resume, changes, allowed=allow_change, cool_down=cool_down, talk=talk)
