"""The proof of an artefact: a fresh process opens what was saved and must find what was trained.

    expected = expectations(model, rows, chats, …)      # then save, and let the model go
    proof = prove(folder, expected, base=source.location)
    print(proof.describe())                             # and `proof.json` lies in the folder

What a run has in memory is worth nothing to anybody; what counts is what its files do elsewhere. So
nothing here looks at the model that was trained: the process has only the folder, the base, plain
transformers and PEFT, and no network. It holds the weights once, so free yours before.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from duiti.errors import DuitiError
from duiti.proof import plain_reader
from duiti.proof.expected import SEEDS, Expected
from duiti.proof.verdict import Proof, judge
from duiti.run import write_json

FILE = "proof.json"
MAX_SECONDS = 3600.0
"""For the whole of it; a small model on a CPU takes about ten."""


def prove(
    folder: Path,
    expected: Expected,
    *,
    base: str | None,
    trust_remote_code: bool = False,
    with_peft: bool = True,
) -> Proof:
    """Open the folder in a fresh process, compare, and write `proof.json` into it.

    Args:
        folder: a saved adapter, or a whole model.
        base: where the model is that it was made from; None (of a whole model): what training
            changed is not told.
        with_peft: whether PEFT opens an adapter, where it is installed; else its arithmetic, W + s
            B A, is done on the plain model.

    Raises:
        DuitiError: what was saved is not what was trained, or it cannot be opened; `proof.json` has
            the numbers, and the files stay as they are.
    """
    begin = time.perf_counter()
    request = make_request(
        folder, expected, base=base, trust_remote_code=trust_remote_code, with_peft=with_peft
    )
    answer = _ask(request)
    if "failed" in answer and expected.device != "cpu" and answer["kind"] == "OutOfMemoryError":
        request["device"] = "cpu"
        answer = _ask(request)
    if "failed" in answer:
        write_json(folder / FILE, {"passed": False, "problems": [_failure(answer)]})
        raise DuitiError(f"{folder} cannot be opened by a fresh process: {_failure(answer)}")
    answer["device"] = request["device"]
    proof = judge(expected, answer, seconds=time.perf_counter() - begin)
    write_json(folder / FILE, proof.as_dict())
    if proof.problems:
        first, *others = proof.problems
        raise DuitiError(
            f"{folder}: {first}",
            why="; ".join(others) or "a fresh process opened it, and found something else",
            fix=f"do not use it; {folder / FILE} has the numbers. Please report it if nothing"
            " touched the files meanwhile",
        )
    return proof


def make_request(
    folder: Path,
    expected: Expected,
    *,
    base: str | None,
    trust_remote_code: bool = False,
    with_peft: bool = True,
) -> dict[str, Any]:
    """What the fresh process is asked (`plain_reader` says what each part means)."""
    return {
        "folder": str(folder.resolve()),
        "base": base,
        "is_adapter": expected.is_adapter,
        "is_quantized": expected.is_quantized,
        "dtype": str(expected.dtype).removeprefix("torch."),
        "device": expected.device,
        "threads": torch.get_num_threads(),
        "rows": [asdict(row) for row in expected.rows],
        "chats": [{"messages": chat.messages, "tools": chat.tools} for chat in expected.chats],
        "rounding": {"epsilon": expected.epsilon, "seeds": SEEDS},
        "with_peft": with_peft,
        "trust_remote_code": trust_remote_code,
    }


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the fresh process. It is asked through a pipe: rows are written to no file."""
    _give_memory_back()
    try:
        done = subprocess.run(
            # -P: not the folder of the script first, whose modules would pass for Python's own.
            [sys.executable, "-P", plain_reader.__file__],
            env=_environment(),
            input=json.dumps(request).encode("utf-8"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings, which may quote what they warn of
            timeout=MAX_SECONDS,
            check=False,
            start_new_session=True,  # a Ctrl-C is for this process, which knows what to do with it
        )
    except subprocess.TimeoutExpired:
        return _no_answer(f"it came to no end within {MAX_SECONDS:.0f} s")
    except OSError as error:
        return _no_answer(f"it cannot be started ({error.strerror})")
    code = done.returncode
    if code:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        memory = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return _no_answer(f"it died ({how}{memory})")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _no_answer(reason: str) -> dict[str, Any]:
    return {"failed": "the process", "kind": "", "reason": reason}


def _give_memory_back() -> None:
    """What this process has freed and kept: the fresh one needs room for the weights."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _environment() -> dict[str, str]:
    """This one, without the network and without a key to anything on it."""
    secret = re.compile("TOKEN|KEY|SECRET|PASSW", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not secret.search(name)}
    path = os.pathsep.join(filter(None, sys.path))
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": path,
    }


def _failure(answer: Mapping[str, Any]) -> str:
    return f"{answer['failed']}: {' '.join(filter(None, (answer['kind'], answer['reason'])))}"
