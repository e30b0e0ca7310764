"""What a run writes beside its weights: settings, environment, ledger and samples.

write_start(folder, config, reasons, material)     # before training
write_resumed(folder, stopped)                     # where it goes on
"""

from __future__ import annotations

import json
import platform
import secrets
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

import duiti
from duiti.config import Config
from duiti.fit import Fit
from duiti.material import Material
from duiti.run import (
    ENV_FILE,
    LEDGER_FILE,
    REJECTED_FILE,
    write_config,
    write_json,
    write_jsonl,
)
from duiti.stopped import Stopped
from duiti.training.rehearsal import Rehearsal


def write_start(folder: Path, config: Config, reasons: dict[str, str], material: Material) -> None:
    """Settings, environment and ledger: what is known before the first update."""
    files = [file for prepared in material.prepared for file in prepared.files]
    environment = {
        "id": secrets.token_hex(8),
        "duiti": duiti.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if config.device.startswith("cuda") else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["duiti", *sys.argv[1:]] if Path(sys.argv[0]).name == "duiti" else None,
        "data": [{"file": file.name, "sha256": file.sha256} for file in files],
        "date": config.date,
    }
    if config.quantize != "none":
        environment["bitsandbytes"] = version("bitsandbytes")
    write_json(folder / ENV_FILE, environment)
    # With both of them a folder is a run, which can say how it is begun again.
    write_config(folder, config, reasons)
    write_ledger(folder, material)


def write_ledger(folder: Path, material: Material) -> None:
    """Where every row and token went; again where rows were added that are rehearsed."""
    data = material.data
    ledger: dict[str, object] = {"data": data.ledger.as_dict(), "warnings": list(data.warnings)}
    ledger["duplicates"] = data.duplicates.as_dict()
    rejected = list(data.ledger.rejected)
    if data.val_ledger is not None:
        ledger["val"] = data.val_ledger.as_dict()
        rejected += data.val_ledger.rejected
    if data.leaks is not None:
        ledger["leaks"] = data.leaks.as_dict()
    write_json(folder / LEDGER_FILE, ledger)
    lines = [{"origin": str(row.origin), "reason": row.reason} for row in rejected]
    write_jsonl(folder / REJECTED_FILE, lines)


def write_memory(folder: Path, fit: Fit, rehearsal: Rehearsal) -> None:
    """What the run is expected to need, from shapes and from the rehearsal: into `env.json`."""
    environment = json.loads((folder / ENV_FILE).read_text(encoding="utf-8"))
    environment["memory"] = {
        "expected": fit.as_dict(),
        "rehearsed_bytes": rehearsal.peak_bytes,
        "expected_after_rehearsal_bytes": fit.after(rehearsal),
    }
    write_json(folder / ENV_FILE, environment)


def write_resumed(folder: Path, stopped: Stopped) -> None:
    """That a run goes on, and from where: into `env.json`."""
    path = folder / ENV_FILE
    environment = json.loads(path.read_text(encoding="utf-8"))
    resumed = {
        "from": stopped.checkpoint.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    environment["resumed"] = [*environment.get("resumed", []), resumed]
    write_json(path, environment)
