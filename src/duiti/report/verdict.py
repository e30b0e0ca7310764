"""Did it work? Four lights and a sentence, from what was measured and from nothing else.

    verdict = verdict_of(read_report(folder))
    verdict.sentence; verdict.lights["learned"].colour; verdict.as_dict()

A light is green, amber, red, or grey: not measured. The thresholds:

learned  green: better on held-out rows, and chance does not explain it (the 95 % interval of the
         paired difference lies on the better side of zero). amber: the interval holds zero, there
         are fewer than `FEWEST_ROWS`, or the loss on held-out rows rose by more than `RISEN` from
         its lowest point. red: worse, beyond chance, or no number. What is compared is the first
         metric that answers were scored by; without one, or where chance explains its change, the
         loss. Without intervals, a change of less than `SMALL` of the loss counts as chance.
forgot   how much more general text surprises the tuned model, in nats per token: the larger of the
         change of the loss there and of KL(base ‖ tuned). green: below `LITTLE` (5 % of
         perplexity). amber: below `MUCH` (25 %). red: from there on.
stops    the share of its own answers that end by a stop token. green: `MOST` of them. amber: `MANY`
         of them.
same     whether a fresh process found in the saved files what was trained (`duiti.proof`). green:
         it did. amber: it could compare a part of it. red: it found something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from duiti.report.folder import Evaluation, Interval
from duiti.report.read import ReportData
from duiti.report.words import capital, nats, percent, score, spoken

Colour = Literal["green", "amber", "red", "grey"]

SMALL = 0.01
"""Share of the loss that a change must be, where there is no interval."""
RISEN = 0.05
"""Share by which held-out loss may rise above its lowest point."""
LITTLE = math.log(1.05)
MUCH = math.log(1.25)
MOST = 0.98
MANY = 0.9
FEW_ROWS, FEWEST_ROWS = 20, 5
"""Fewer held-out rows are named, for they say little; still fewer say nothing."""

NOT_ANSWERS = {
    *("loss", "perplexity", "token_accuracy"),
    *("stop_rate", "length_ratio", "empty", "other_language"),
}
"""Numbers of an evaluation that are no score of answers."""
_ANSWERED = {
    "exact_match": "answers {after} of held-out questions (before: {before})",
    "json_valid": "writes valid JSON in {after} of held-out answers (before: {before})",
}
_NO_VAL = "not measured: no validation rows; --val 5% measures it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """One of the four answers."""

    colour: Colour
    says: str
    """A sentence with the numbers, or what would measure it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a run."""

    sentence: str
    lights: Mapping[str, Light]
    """`learned`, `forgot`, `stops`, `same`, in this order."""

    def as_dict(self) -> dict[str, object]:
        """The machine-readable form (`verdict.json`)."""
        lights = {name: asdict(light) for name, light in self.lights.items()}
        return {"sentence": self.sentence, "lights": lights}


def verdict_of(data: ReportData) -> Verdict:
    """The four lights, and the sentence that says the same."""
    told = {
        "learned": _learned(data),
        "forgot": _forgot(data),
        "stops": _stops(data),
        "same": _same(data),
    }
    parts = [part for light, part in told.values() if light.colour != "grey"]
    missing = [part for light, part in told.values() if light.colour == "grey"]
    sentences = [] if data.has_weights else [_unfinished(data)]
    sentences += [capital(", ".join(parts))] if parts else []
    if missing:
        sentences.append(f"Not measured: {', '.join(missing)}")
    return Verdict(
        sentence=". ".join(sentences) + ".",
        lights={name: light for name, (light, _) in told.items()},
    )


def headline(evaluation: Evaluation) -> str | None:
    """The score of answers that comes first, if answers were scored."""
    scored = (name for name in evaluation.tuned if name not in NOT_ANSWERS)
    return next((name for name in scored if evaluation.tuned[name] is not None), None)


def _learned(data: ReportData) -> tuple[Light, str]:
    evaluation = data.evaluation
    if evaluation is None:
        return _learned_from_curve(data)
    name = headline(evaluation) or "loss"
    before, after = evaluation.base.get(name), evaluation.tuned.get(name)
    if after is None:
        part = "its loss on held-out rows is no number"
        return Light(colour="red", says=capital(part)), part
    if before is None:
        after_text = score(name, after)
        return _grey(f"{spoken(name)} is {after_text}; the base was not measured beside it",
                     "whether it learned")  # fmt: skip
    colour, why = _compared(name, before, after, evaluation.change.get(name))
    part = _told_change(name, before, after)
    loss = evaluation.base.get("loss"), evaluation.tuned.get("loss")
    if colour == "amber" and name != "loss" and loss[0] is not None and loss[1] is not None:
        # Where no answer is right yet, or all were before, a score cannot tell.
        colour, why = _compared("loss", loss[0], loss[1], evaluation.change.get("loss"))
        why = f"by the loss {why}"
        part += f", {_told_change('loss', loss[0], loss[1])}"
    rose = _risen(data)
    if colour == "green" and (rose or evaluation.n < FEWEST_ROWS):
        colour = "amber"
    rows = f"{evaluation.n:,} row{'' if evaluation.n == 1 else 's'}"
    few = f"; only {rows}" if evaluation.n < FEW_ROWS else f", {rows}"
    says = capital(f"{part}; {why}{few}{rose}")
    return Light(colour=colour, says=says), part


def _learned_from_curve(data: ReportData) -> tuple[Light, str]:
    """Without an evaluation, the loss on held-out rows during training is what there is."""
    curve = data.curves.get("val_loss")
    if curve is None or len(curve.values) < 2:
        says, loss = _NO_VAL, data.curves.get("loss")
        if loss is not None and len(loss.values) > 1:
            fell = f"{nats(float(loss.values[0]))} → {nats(loss.last)}"
            says += f". Training loss {fell} says nothing of new questions"
        return _grey(says, "whether it learned (no validation rows)")
    first = float(curve.values[0])
    colour, _ = _compared("loss", first, curve.last, None)
    rose = _risen(data)
    part = f"held-out loss {nats(first)} → {nats(curve.last)} while training"
    if rose and colour == "green":
        colour = "amber"
    return Light(colour=colour, says=capital(part + rose)), part


def _compared(
    name: str, before: float, after: float, change: Interval | None
) -> tuple[Colour, str]:
    """Better, worse, or not to be told apart."""
    sign = -1 if name in ("loss", "perplexity") else 1
    if change is not None and change.low is not None and change.high is not None:
        low, high = sorted((sign * change.low, sign * change.high))
    else:
        least = SMALL * abs(before) if sign < 0 else SMALL
        difference = sign * (after - before)
        low, high = difference - least, difference + least
    if low > 0:
        return "green", "more than chance"
    return ("red", "worse than before") if high < 0 else ("amber", "no more than chance would do")


def _risen(data: ReportData) -> str:
    """That held-out loss rose again in the end, where it did.

    Only figures of the same rows are compared; and a run that is out of patience ends with the
    weights of its best update."""
    curve = data.curves.get("val_loss")
    if curve is None or len(curve.values) < 3 or data.config.get("patience") is not None:
        return ""
    best = int(curve.values.argmin())
    lowest = float(curve.values[best])
    rise = curve.last - lowest
    if rise <= RISEN * abs(lowest):
        return ""
    return f". Held-out loss was lowest at step {int(curve.steps[best]):,} and rose since"


def _told_change(name: str, before: float, after: float) -> str:
    if form := _ANSWERED.get(name):
        return form.format(after=score(name, after), before=score(name, before))
    verb = "held-out" if name == "loss" else "scores"
    return f"{verb} {spoken(name)} {score(name, after)} (before: {score(name, before)})"


def _forgot(data: ReportData) -> tuple[Light, str]:
    anchor = data.anchor
    kl = anchor.kl if anchor is not None else _last(data, "anchor_kl")
    change = anchor.nll_change if anchor is not None else _last(data, "anchor_nll_change")
    known = [value for value in (kl, change) if value is not None]
    if not known and anchor is not None:
        part = "its loss on general text is no number"
        return Light(colour="red", says=capital(part)), part
    if not known:
        asked = data.config.get("anchor") == "none"
        why = "not measured: it was told not to (anchor: none)" if asked else "not measured"
        return _grey(why, "whether it forgot")
    colour = _by_drift(max(known))
    part = "" if change is None else _text_change(change)
    if kl is not None and (change is None or colour != _by_drift(change)):
        part += f"{', but ' if part else ''}it expects other words in general text (KL {kl:.2g})"
    says = [part]
    if kl is not None:
        says.append(f"its words are {kl:.3f} nats per token away from the base's")
    if anchor is not None and anchor.num_tokens:
        of = "text that the base wrote" if anchor.source == "generated" else anchor.source
        says.append(f"{anchor.num_tokens:,} tokens of {of}")
    return Light(colour=colour, says=capital("; ".join(says))), part


def _by_drift(drift: float) -> Colour:
    return "green" if drift < LITTLE else "amber" if drift < MUCH else "red"


def _text_change(change: float) -> str:
    """The change of perplexity on general text, in words."""
    worse = math.expm1(min(change, 50.0))
    if abs(worse) < 0.005:
        return "general text is as good as before"
    if worse > 1000:
        return "it can no longer read general text"
    if worse > 1:
        return f"general text got {1 + worse:,.3g} times as hard for it"
    return f"general text got {percent(abs(worse))} {'worse' if worse > 0 else 'better'}"


def _stops(data: ReportData) -> tuple[Light, str]:
    if data.evaluation is None and "val_loss" not in data.curves:
        return _grey(_NO_VAL, "whether it stops")
    rate = None if data.evaluation is None else data.evaluation.tuned.get("stop_rate")
    if rate is None:
        why = "not measured: no answers were written at its end"
        return _grey(why, "whether it stops")
    before = data.evaluation.base.get("stop_rate") if data.evaluation is not None else None
    was = "" if before is None else f" (before: {percent(before)})"
    says = f"{percent(rate)} of its answers end by themselves{was}"
    if rate >= MOST:
        return Light(colour="green", says=says), "stops by itself"
    colour: Colour = "amber" if rate >= MANY else "red"
    part = f"stops by itself in {percent(rate)} of answers" if rate else "never stops by itself"
    return Light(colour=colour, says=says), part


def _same(data: ReportData) -> tuple[Light, str]:
    proof = data.proof
    if proof is None:
        asked = data.config.get("proof") is False
        why = "it was told not to (proof: false)" if asked else "there is no proof of this run"
        return _grey(f"not proven: {why}", "whether the saved model is the trained one")
    if not proof.passed:
        problem = proof.problems[0] if proof.problems else "the proof failed"
        return Light(colour="red", says=capital(problem)), "saved model is NOT what was trained"
    if proof.other_base:
        says = "Its tensors are those that were trained; the base in four bits could not be opened"
        return Light(colour="amber", says=f"{says} there: {proof.other_base}"), (
            "saved tensors proven identical, on a base that could not be"
        )
    by = f", opened by {proof.opened_by} in a fresh process," if proof.opened_by else ""
    most = proof.saved.largest if proof.saved is not None else None
    apart = "" if most is None else "; no difference at all"
    if most:
        apart = f"; largest difference {most:.1e} nats"
    says = (
        f"The saved model{by} gives the same probabilities for {proof.num_tokens:,} tokens{apart}"
    )
    return Light(colour="green", says=says), "saved model proven identical"


def _unfinished(data: ReportData) -> str:
    loss = data.curves.get("loss")
    after = "before its first update" if loss is None else f"after update {int(loss.steps[-1]):,}"
    return f"Not finished: it was stopped {after}"


def _last(data: ReportData, name: str) -> float | None:
    curve = data.curves.get(name)
    return None if curve is None else curve.last


def _grey(says: str, part: str) -> tuple[Light, str]:
    return Light(colour="grey", says=capital(says)), part
