"""What the fresh process found, held against what was trained: the verdict, and its numbers.

    proof = judge(expected, found)
    proof.problems                      # empty: what was saved is what was trained
    proof.describe(); proof.as_dict()

How far right answers may be apart is not guessed. Rounding is measured, in both processes and on
these rows: embeddings are moved by one unit in the last place, and what that does to the same
tokens is what two right ways to compute them differ by. `MARGIN` times as much is too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, takewhile, zip_longest
from typing import Any

import torch

from duiti.errors import shown_name
from duiti.proof.chats import Chat
from duiti.proof.expected import EPSILONS, Expected, Logprobs

MARGIN = 3.0
"""Times what rounding the embeddings otherwise does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Two sets of log-probabilities of the same tokens: their absolute differences, in nats."""

    mean: float
    largest: float
    usual: float
    """The mean without the twentieth of the tokens, one at least, that are furthest apart: half
    precision may send a token to another expert, here and not there."""
    is_exact: bool
    """Whether products are float32: then mean and largest are judged, in half precision what is
    usual."""

    def is_within(self, rounding: Apart, margin: float = MARGIN) -> bool:
        # False for what is not a number, too.
        if not self.is_exact:
            return self.usual <= margin * rounding.usual
        return self.mean <= margin * rounding.mean and self.largest <= margin * rounding.largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared, how far it was apart, and what is wrong."""

    problems: tuple[str, ...]
    """The first is the reason of those after it."""
    opened_by: str
    """`PEFT 0.21.2`, or what opened it instead."""
    is_adapter: bool
    num_rows: int
    num_tokens: int
    """Tokens of answers whose log-probability was compared."""
    dtype: str
    device: str
    """On which the fresh process computed."""
    saved: Apart
    """What was saved, against what was trained."""
    merged: Apart | None
    """The adapter merged in memory, against what was trained."""
    base: Apart | None
    """The model without the adapter, here and there."""
    change: Apart | None
    """What was saved, against the base: what training changed."""
    rounding: Apart
    """What rounding does; `MARGIN` times as much is allowed."""
    num_chats: int
    num_row_chats: int
    """Those of them that are rows of the run."""
    stops: tuple[int, ...]
    other_base: str
    """Why the base could not be opened in four bits, as it was trained on, but whole: then the
    distances are told, not judged. Empty: the base is that of training."""
    seconds: float
    """Of the fresh process, from its start to its end."""

    def describe(self) -> str:
        """One line for people."""
        kind = "adapter" if self.is_adapter else "model"
        if self.problems:
            return f"the saved {kind} is not proven: {'; '.join(self.problems)}"
        begin = f"the saved {kind}, opened by {self.opened_by} in a fresh process,"
        end = (
            f"prompts of {self.num_chats} conversations and stop tokens are those of training"
            f" ({self.seconds:.0f} s)"
        )
        if self.other_base:
            return (
                f"{begin} has the tensors and the scale that were trained; its base in four bits"
                f" cannot be opened there ({self.other_base}), and on the whole base"
                f" log-probabilities are {self.saved.mean:.2g} nats away on average; {end}"
            )
        merged = "" if self.merged is None else f"; merged: {self.merged.largest:.1e}"
        return (
            f"{begin} gives the same log-probabilities (largest difference"
            f" {self.saved.largest:.1e} nats over {self.num_tokens} tokens{merged});"
            f" {self._changes()}{end}"
        )

    def _changes(self) -> str:
        if self.change is None:
            return ""
        who = "it" if self.is_adapter else "training"
        is_hidden = self.change.is_within(self.rounding, margin=1)
        hidden = ", which is no more than rounding does" if is_hidden else ""
        return f"{who} changes them by {self.change.mean:.2g} nats on average{hidden}; "

    def as_dict(self) -> dict[str, object]:
        """The machine-readable form (`proof.json`)."""
        return {"passed": not self.problems, **asdict(self), "margin": MARGIN}


def judge(expected: Expected, found: Mapping[str, Any], *, seconds: float) -> Proof:
    """Compare. `found` is the answer of `duiti.proof.plain_reader`."""
    pairs = _prompts(expected, found)
    apart = partial(_apart, is_exact=expected.is_exact)
    proof = Proof(
        problems=(),
        opened_by=found["by"],
        is_adapter=expected.is_adapter,
        num_rows=len(expected.rows),
        num_tokens=expected.num_tokens,
        dtype=str(expected.dtype).removeprefix("torch."),
        device=found["device"],
        saved=apart(found["tuned"], expected.logprobs),
        merged=None if found["merged"] is None else apart(found["merged"], expected.logprobs),
        base=None if expected.base is None else apart(found["base"], expected.base),
        change=None if found["base"] is None else apart(found["tuned"], found["base"]),
        rounding=_rounding(expected, found),
        num_chats=len(pairs),
        num_row_chats=sum(chat.is_row for chat, _ in pairs),
        stops=tuple(sorted(expected.stops)),
        other_base=found.get("not_quantized", ""),
        seconds=seconds,
    )
    problems = (
        *(() if proof.other_base else _wrong_numbers(proof, expected, found)),
        *_wrong_files(expected, found),
        *_wrong_prompts(pairs),
        *_wrong_stops(expected, found),
    )
    return replace(proof, problems=problems)


def _wrong_numbers(proof: Proof, expected: Expected, found: Mapping[str, Any]) -> Iterator[str]:
    """What log-probabilities show, the cause before what follows from it."""
    kind = "adapter" if proof.is_adapter else "model"
    rounding = proof.rounding
    if proof.base is not None and not proof.base.is_within(rounding):
        what = "the base is not the one that was trained on: without the adapter,"
        yield f"{what} {_off(proof.base, rounding)}"
    trained = _trained_change(expected, found)
    if proof.change is not None and trained is not None and proof.change.is_within(rounding, 1):
        did = f"log-probabilities are those of the base to {proof.change.mean:.1e} nats"
        if not trained.is_within(rounding, 1):
            what = f"the saved {kind} changes nothing"
            yield f"{what}: {did}, and training had moved them by {trained.mean:.1e}"
        elif expected.is_exact:
            # In half precision, a short training may be less than can be told.
            yield f"training changed nothing: {did}, as rounding does"
    if not proof.saved.is_within(rounding):
        yield f"the saved {kind} is not what was trained: {_off(proof.saved, rounding)}"
    elif proof.merged is not None and not proof.merged.is_within(rounding):
        yield f"the adapter, merged, is not what was trained: {_off(proof.merged, rounding)}"


def _trained_change(expected: Expected, found: Mapping[str, Any]) -> Apart | None:
    """What training changed, as the trained model has it."""
    base = expected.base if expected.base is not None else found["base"]
    return None if base is None else _apart(expected.logprobs, base, is_exact=expected.is_exact)


def _off(apart: Apart, rounding: Apart) -> str:
    return (
        f"log-probabilities are off by {apart.mean:.2g} nats on average, {apart.largest:.2g} at"
        f" most (rounding: up to {MARGIN * rounding.mean:.1e} and {MARGIN * rounding.largest:.1e})"
    )


def _wrong_files(expected: Expected, found: Mapping[str, Any]) -> Iterator[str]:
    """An adapter's tensors and its scale are exact."""
    if not expected.is_adapter:
        return
    hashes: Mapping[str, str] = found["hashes"]
    names = sorted(expected.hashes.keys() | hashes.keys())
    wrong = [name for name in names if expected.hashes.get(name) != hashes.get(name)]
    if wrong:
        count = f"{len(wrong)} of {len(names)} tensors of the adapter"
        yield f"{count} are not those that were trained, such as {shown_name(wrong[0])}"
    if found["scales"] != [expected.scale]:
        scales = " or ".join(f"{scale:g}" for scale in found["scales"])
        yield f"the adapter is multiplied by {scales}, in training it was by {expected.scale:g}"


def _prompts(expected: Expected, found: Mapping[str, Any]) -> list[tuple[Chat, list[int] | str]]:
    """Conversations, with the ids that their prompt has there; or with an error's name."""
    pairs = zip(expected.chats, found["prompts"], strict=True)
    # A proof at midnight: the template was told another day.
    return [(chat, ids) for chat, ids in pairs if chat.date in ("", found["date"])]


def _wrong_prompts(pairs: Sequence[tuple[Chat, list[int] | str]]) -> Iterator[str]:
    wrong = [(chat.prompt_ids, ids) for chat, ids in pairs if chat.prompt_ids != ids]
    if not wrong:
        return
    what = f"the saved chat template gives {len(wrong)} of {len(pairs)} conversations"
    trained, ids = wrong[0]
    if isinstance(ids, str):
        yield f"{what} no prompt: it ends in {ids}"
        return
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip_longest(trained, ids)))
    yield (
        f"{what} another prompt than training had: the first one differs from token"
        f" {same + 1} of {len(trained)} on"
    )


def _wrong_stops(expected: Expected, found: Mapping[str, Any]) -> Iterator[str]:
    missing = sorted(expected.stops - set(found["stops"]))
    if missing:
        listed = ", ".join(map(str, found["stops"])) or "none"
        yield (
            f"generation_config.json does not name the trained stop token"
            f" {', '.join(map(str, missing))} (eos_token_id: {listed})"
        )


def _apart(one: Logprobs, other: Logprobs, *, is_exact: bool) -> Apart:
    apart = (_flat(one) - _flat(other)).abs()
    mean, largest, usual = float(apart.mean()), float(apart.max()), math.nan
    if math.isfinite(largest):
        num_usual = max(1, len(apart) - max(1, len(apart) // 20))
        usual = float(apart.sort().values[:num_usual].mean())
    return Apart(mean=mean, largest=largest, usual=usual, is_exact=is_exact)


def _flat(rows: Logprobs) -> torch.Tensor:
    return torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float64)


def _rounding(expected: Expected, found: Mapping[str, Any]) -> Apart:
    """The most that any of the roundings did."""
    is_exact = expected.is_exact
    # Never less than a few roundings of the log-probabilities themselves.
    size = _flat(expected.logprobs).abs()
    mean = EPSILONS[torch.float32] * max(1.0, float(size.mean()))
    largest = 4 * EPSILONS[torch.float32] * max(1.0, float(size.max()))
    least = Apart(mean=mean, largest=largest, usual=mean, is_exact=is_exact)
    here = [_apart(each, expected.logprobs, is_exact=is_exact) for each in expected.rounded]
    there = [_apart(each, found["tuned"], is_exact=is_exact) for each in found["rounding"]]

    def most(of: Callable[[Apart], float]) -> float:
        own = max(map(of, [least, *here]))
        # A process that does not agree with itself must not be its own excuse.
        return max(own, min(MARGIN * own, max(map(of, there))))

    return Apart(
        mean=most(lambda apart: apart.mean),
        largest=most(lambda apart: apart.largest),
        usual=most(lambda apart: apart.usual),
        is_exact=is_exact,
    )
