"""The verb `demo`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def demo(*, output: Annotated[str, Parameter(name=["--output", "-o"])] = "runs/demo") -> None:
    """See it work: fine-tune the embedded model, ask it before and after.

    Parameters
    ----------
    output
        Run folder to create.
    """
    from duiti.demo import run_demo

    run_demo(output)
