"""The verb `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from duiti.verbs.shared import Flag, Json


def export(
    format: Literal["merged"],
    run: str | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    strength: float = 1.0,
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
    strength
        How much of what was learned, from 0 (the base) over 1 (as trained) to 1.2.
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
        strength=strength,
        proof=proof,
        trust_remote_code=trust_remote_code,
    )
    print(json.dumps(report.as_dict()) if json_ else report)
