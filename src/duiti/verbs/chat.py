"""The verb `chat`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from duiti.errors import UsageError
from duiti.verbs.shared import Flag, say_notes


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
    say_notes(loaded)
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
