"""The fuzzer: `python tests/fuzz/fuzz.py --seconds 60 [--target NAME] [--seed N]`.

Each target runs in a child process with limits on memory and time, on mutations that follow from
the seed, which is printed. A finding is anything but an answer: another exception, a crash, more
than ten seconds of computing or a gigabyte. The input is kept in `fuzz-findings/`, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

INPUT_S = 10
MEMORY_BYTES = 2**30
FINDINGS = Path("fuzz-findings")


def child(name: str, seed: int, seconds: float, count: int, folder: Path) -> int:
    """Run one target; what it is at lies in `folder` for whoever finds this process dead."""
    from targets import TARGETS, manifest_seed, mutated

    target = TARGETS[name]
    seeds = target.seeds or (manifest_seed(folder),)
    rng = random.Random(f"{name} {seed}")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end and (not count or done < count):
        data = (
            rng.choice(seeds)
            if done < len(seeds)
            else mutated(rng.choice(seeds), target.words, rng)
        )
        (folder / "input").write_bytes(data)
        # Of computing, so that a crowded machine finds nothing; and what waits for ever ends too.
        used_s = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used_s + INPUT_S, resource.RLIM_INFINITY))
        signal.alarm(10 * INPUT_S)
        try:
            target.run(data, folder)
        except BaseException:
            traceback.print_exc()
            return 1
        done += 1
    print(f"{name}: {done} inputs, seed {seed}: nothing found", flush=True)
    return 0


def fuzz(name: str, seed: int, seconds: float, *, count: int = 0) -> str:
    """Run one target in a child; an empty string, or what was found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--target", name]
        command += ["--seed", str(seed), "--seconds", str(seconds), "--count", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode in (0, -signal.SIGPROF):  # so templates end that compute in C
            print(done.stdout or f"{name}: ended by the sandbox's clock\n", end="")
            return ""
        data = Path(folder, "input").read_bytes() if Path(folder, "input").exists() else b""
        FINDINGS.mkdir(exist_ok=True)
        kept = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        kept.write_bytes(data)
        how = f"exit code {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        return f"{name}, seed {seed}: {how}; the input is {kept}\n{done.stderr[-1500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", help="one of them only")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--count", type=int, default=0, help="inputs at most")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.target, given.seed, given.seconds, given.count, Path(given.child))
    from targets import TARGETS

    names = [given.target] if given.target else list(TARGETS)
    print(f"seed {given.seed}", flush=True)
    share = given.seconds / len(names)
    found = [fuzz(name, given.seed, share, count=given.count) for name in names]
    print("\n".join(filter(None, found)))
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
