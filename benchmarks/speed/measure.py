"""One scenario, measured: the same loss first, then the best settings, then turn by turn.

    checked: Checked = {}
    entry = measure(bench, SCENARIOS["lora-4-bf16"], repeats=3, checked=checked)

The entry is plain JSON; `benchmarks/speed/table.py` makes medians and tables of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.speed.flops import necessary_flops
from benchmarks.speed.machine import others_since, stamp
from benchmarks.speed.run import Run, Unequal, matmul_rate, train_duiti, train_trl
from benchmarks.speed.scenarios import DEFAULTS, RANK, Scenario
from benchmarks.speed.start import Bench, Ready, prepare
from benchmarks.speed.watch import Failed

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Of the first update's loss and gradient norm, relative. In bfloat16 a number is off by up to
2^-9, and some ten roundings lie between a weight and its gradient."""
Checked = dict[tuple[object, ...], dict[str, Any]]
"""What was shown to compute the same, and the numbers that show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What each side runs best with."""

    threads: int
    """Of duiti."""
    peer: str
    """TRL's settings, by their name in `PEERS`."""
    peer_threads: int
    trials: dict[str, float]
    """Tokens per second of all that was tried; empty where there was no choice."""


def measure(
    bench: Bench, scenario: Scenario, *, repeats: int, has_defaults: bool, checked: Checked
) -> dict[str, Any]:
    """One scenario, as JSON.

    Args:
        has_defaults: also run TRL as it comes, once.
        checked: what was already shown to compute the same; added to.

    Raises:
        Failed: a process did not end well.
        Unequal: the two sides do not do the same.
    """
    began = stamp()
    ready = prepare(bench, scenario)
    timed = slice(scenario.warmup, None)
    _say(
        "rows",
        f"{ready.source}; {scenario.updates} updates of {sum(ready.tokens[timed]):,} tokens,"
        f" {sum(ready.supervised[timed]):,} trained",
    )
    key = (scenario.shape, scenario.method, scenario.rows)
    if key not in checked:
        checked[key] = compare_first(bench, ready)
    choice = choose(bench, ready)
    runs, rates = take_turns(bench, ready, choice, repeats=repeats, has_defaults=has_defaults)
    return {
        "title": scenario.title,
        "source": ready.source,
        "tokens": ready.tokens,
        "supervised": ready.supervised,
        "warmup": scenario.warmup,
        "check": checked[key],
        "trials": choice.trials,
        "settings": {
            "duiti": {"threads": choice.threads},
            "trl": {"name": choice.peer, "threads": choice.peer_threads},
        },
        "others_share": others_since(began),
        "flops": _flops(ready),
        "matmul_flops_per_s": max(rates) if rates else None,
        "matmul_each": rates,
        "runs": {who: [asdict(run) for run in own] for who, own in runs.items()},
    }


def compare_first(bench: Bench, ready: Ready) -> dict[str, Any]:
    """The first update in float32 on both sides.

    Raises:
        Failed, Unequal: as for `measure`.
    """
    scenario = ready.scenario
    threads, peer = max(scenario.threads), scenario.peers[0]
    ours = train_duiti(bench, ready, threads=threads, num_updates=1, dtype="float32")
    theirs = train_trl(bench, ready, peer, threads=threads, num_updates=1, dtype="float32")
    _hold("float32", ours, theirs)
    _say(
        "check",
        f"first update in float32: loss {ours.loss:.5f} and {theirs.loss:.5f}, gradient norm"
        f" {ours.grad_norm:.5f} and {theirs.grad_norm:.5f}",
    )
    return {
        who: {"loss": run.loss, "grad_norm": run.grad_norm}
        for who, run in (("duiti", ours), ("trl", theirs))
    }


def choose(bench: Bench, ready: Ready) -> Choice:
    """Try what each side may choose from, for a few updates.

    A setting of the peer that fails is said and left out.

    Raises:
        Failed: every one of them does.
    """
    scenario = ready.scenario
    num_updates = scenario.warmup + max(1, scenario.updates // 3)
    tokens = ready.tokens[:num_updates]
    ours = dict.fromkeys(scenario.threads, 0.0)
    pairs = [(peer, threads) for peer in scenario.peers for threads in scenario.threads]
    theirs = dict.fromkeys(pairs, 0.0)
    if len(ours) > 1:
        for threads in scenario.threads:
            run = train_duiti(bench, ready, threads=threads, num_updates=num_updates)
            ours[threads] = run.rate(tokens)
    if len(theirs) > 1:
        for peer, threads in pairs:
            try:
                run = train_trl(bench, ready, peer, threads=threads, num_updates=num_updates)
            except Failed as error:
                _say("trial", f"TRL {peer} fails here: {str(error).splitlines()[-1]}")
                del theirs[peer, threads]
            else:
                theirs[peer, threads] = run.rate(tokens)
    if not theirs:
        raise Failed("TRL fails with every setting")
    trials = {f"duiti, {threads} threads": rate for threads, rate in ours.items() if rate}
    trials |= {f"{peer}, {threads} threads": rate for (peer, threads), rate in theirs.items()}
    if len(trials) > 1:
        _say("trials", " · ".join(f"{name}: {rate:,.1f}" for name, rate in trials.items()))
    peer, peer_threads = max(theirs, key=theirs.__getitem__)
    return Choice(
        threads=max(ours, key=ours.__getitem__),
        peer=peer,
        peer_threads=peer_threads,
        trials=trials if len(trials) > 1 else {},
    )


def take_turns(
    bench: Bench, ready: Ready, choice: Choice, *, repeats: int, has_defaults: bool
) -> tuple[dict[str, list[Run]], list[float]]:
    """duiti, TRL, the product rate; and again. Runs by who made them, and the rates.

    Raises:
        Failed, Unequal: as for `measure`.
    """
    scenario = ready.scenario
    total = scenario.num_updates
    runs: dict[str, list[Run]] = {"duiti": [], "trl": [], "trl-defaults": []}
    rates: list[float] = []
    for number in range(1, repeats + 1):
        ours = train_duiti(bench, ready, threads=choice.threads, num_updates=total)
        theirs = train_trl(
            bench, ready, choice.peer, threads=choice.peer_threads, num_updates=total
        )
        turn = {"duiti": ours, "trl": theirs}
        if has_defaults and number == 1:
            threads = max(scenario.threads)
            turn["trl-defaults"] = train_trl(
                bench, ready, DEFAULTS, threads=threads, num_updates=total
            )
        shown = [_shown(who, run, ready) for who, run in turn.items()]
        if scenario.shape is not None:
            rates.append(matmul_rate(bench, scenario.dtype, threads=choice.threads))
            shown.append(f"{rates[-1] / 1e9:.0f} GFLOP/s")
        _say(f"{number}/{repeats}", " · ".join(shown))
        for who, run in turn.items():
            _hold(scenario.dtype, ours, run)
            runs[who].append(run)
    return {who: own for who, own in runs.items() if own}, rates


def _hold(dtype: str, ours: Run, theirs: Run) -> None:
    """Stop unless both computed the same first update."""
    limit = TOLERANCE[dtype]
    pairs = {
        "loss": (ours.loss, theirs.loss),
        "gradient norm": (ours.grad_norm, theirs.grad_norm),
    }
    for what, (one, other) in pairs.items():
        if not abs(one - other) <= limit * abs(one):  # not: NaN agrees with nothing
            raise Unequal(
                f"the {what} of the first update in {dtype} is {one:.6f} with duiti and"
                f" {other:.6f} with TRL, further apart than {limit:g}: they do not compute the"
                " same thing, and their speeds cannot be compared"
            )


def _flops(ready: Ready) -> int | None:
    """Of the timed updates."""
    scenario = ready.scenario
    if scenario.shape is None:
        return None
    updates = list(zip(ready.lengths, ready.supervised, strict=True))[scenario.warmup :]
    return sum(
        necessary_flops(
            scenario.shape,
            method=scenario.method,
            rank=RANK,
            lengths=lengths,
            num_supervised=supervised,
        )
        for lengths, supervised in updates
    )


def _shown(who: str, run: Run, ready: Ready) -> str:
    rate = run.rate(ready.tokens)
    return f"{who} {rate:,.1f} tokens/s {run.peak_bytes / 1e9:.2f} GB"


def _say(label: str, text: str) -> None:
    print(f"  {label:<9} {text}", flush=True)
