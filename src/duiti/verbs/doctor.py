"""The verb `doctor`."""

from __future__ import annotations

import json

from duiti.verbs.shared import Json


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
