"""Every fault of the matrix, and the table of what was expected and seen.

    cd tests && python -m faults.run_matrix [--only NAME …] [--list] [--write]

`--write` puts the table into docs/reliability.md, between its marks. Exit 1 if anything was not as
expected; each such trial is named with its folder, which is kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
from faults import around, damage, disks, kills, others
from faults.fault import Fault, spread
from faults.place import World

FAULTS: list[Fault] = sorted(
    [fault for part in (kills, damage, others, disks, around) for fault in part.FAULTS],
    key=lambda fault: int(fault.number.partition(",")[0].removeprefix("F")),
)
PAGE = Path(__file__).parent.parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- faults: made by `make faults` -->", "<!-- /faults -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--trials", type=int, default=10**9, help="of each fault, at most")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args()
    by_name = {fault.name: fault for fault in FAULTS}
    chosen = [by_name[name] for name in given.only] or FAULTS
    if given.list:
        for fault in chosen:
            print(f"{fault.name:<18} {fault.number:<9} {fault.what}")
        return 0
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:  # as `nohup` has it, for children too
            signal.signal(number, signal.SIG_DFL)
    started = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    root.chmod(0o755)  # another user is among the trials
    rows, problems = [], 0
    with World(root, seed=given.seed) as world:
        print(f"a run takes {world.run_s:.1f} s, {len(world.changes)} changes to the disk")
        for fault in chosen:
            row, wrong = try_fault(fault, world, given.trials)
            rows.append(row)
            problems += wrong
    table = made_table(rows)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{table}\n{problems} not as expected; {minutes:.0f} minutes; {root}")
    if given.write:
        write(table)
    if not problems:
        shutil.rmtree(root)
    return int(bool(problems))


def try_fault(fault: Fault, world: World, most: int) -> tuple[list[str], int]:
    """Make its trials: its line of the table, and how many were not as expected."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for label, trial in spread(list(fault.trials(world)), most):
        started = time.monotonic()
        try:
            found = trial()
            seen[found] += 1
        except pytest.skip.Exception as skipped:
            found = f"not possible here: {skipped}"
            seen[found] += 1
        except Exception as error:
            found = f"✗ {type(error).__name__}: {error}"
            wrong.append(label)
            traceback.print_exc(limit=-3, file=sys.stdout)
        took = time.monotonic() - started
        print(f"{fault.name} · {label} · {found} · {took:.1f} s", flush=True)
    told = [f"{count} × {text}" if count > 1 else text for text, count in seen.most_common()]
    told += [f"**not as expected**: {label}" for label in wrong]
    return [fault.number, fault.what, fault.expected, "; ".join(told)], len(wrong)


def made_table(rows: list[list[str]]) -> str:
    lines = ["| | fault | expected | seen |", "|---|---|---|---|"]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(table: str) -> None:
    import torch

    text = PAGE.read_text(encoding="utf-8")
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    by = f"Measured on {machine}, torch {torch.__version__}, as user {os.getuid()}."
    block = f"{BEGIN}\n{table}\n\n{by}\n{END}"
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        text = f"{head}{block}{rest.partition(END)[2]}"
    else:
        text = f"{text.rstrip()}\n\n## What was tried\n\n{block}\n"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
