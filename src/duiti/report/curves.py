"""Which pictures a report has: curves of training, the strength dial, and the searches.

training_charts(data.curves); strength_charts(data.strength)
rate_chart(data.found_rate); more_data_chart(data.more_data)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duiti.report.charts import Chart, Line, compact, draw
from duiti.report.folder import FoundRate, MoreData, Strength
from duiti.report.read import Curve

MAX_CHARTS = 12

_CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...], bool], ...] = (
    ("Loss", "nats per token", 
     (("loss", "train", "training"), ("val_loss", "val", "held out")), False),
    ("Distance from the base", "KL on general text, nats per token",
     (("anchor_kl", "drift", "all words"), ("anchor_nll_change", "val", "the text itself")), True),
    ("Learning rate", "", (("lr", "plain", "rate"),), True),
    ("Gradient norm", "before clipping", (("grad_norm", "train", "norm"),), False),
    ("Speed", "tokens per second", (("tokens_per_s", "train", "tokens/s"),), True),
    ("Drift that is held", "nats per token", (("drift_kl", "train", "KL"),), True),
    ("Weight of holding it", "", (("drift_weight", "plain", "weight"),), True),
)  # fmt: skip
"""Title, unit, lines (name in `metrics.jsonl`, style, label), and whether the axis begins at 0."""
_NOISY = {"loss", "grad_norm", "tokens_per_s", "drift_kl"}


def training_charts(curves: Mapping[str, Curve]) -> list[Chart]:
    """The curves of training that there are; the loss first."""
    found = []
    for title, note, parts, from_zero in _CURVES:
        lines = [
            _line(curves[key], style, label, smooth=key in _NOISY)
            for key, style, label in parts
            if key in curves
        ]
        if lines:
            is_wide = title == "Loss"
            chart = draw(lines, title=title, note=note, from_zero=from_zero, is_wide=is_wide)
            found.append(chart)
    scores = [name for name in curves if name.startswith("val_") and name != "val_loss"]
    for name in sorted(scores):
        label = name.removeprefix("val_").rpartition(":")[2].replace("_", " ")
        line = _line(curves[name], "val", "held out", smooth=False)
        found.insert(min(1, len(found)), draw([line], title=label.capitalize(), from_zero=True))
    return found[:MAX_CHARTS]


def strength_charts(strength: Strength) -> list[Chart]:
    """What the adapter's strength gains on held-out rows, and what it costs on general text."""
    kinds = (
        ("Held-out loss", "what it gains", "val",
         [(p.strength, p.val_loss) for p in strength.points]),
        ("Distance from the base", "what it costs: KL, nats per token", "drift",
         [(p.strength, p.anchor_kl) for p in strength.points]),
    )  # fmt: skip
    found = []
    for title, note, style, points in kinds:
        known = [(x, y) for x, y in sorted(points) if y is not None]
        if len(known) > 1:
            told = _at(known, strength.recommended or 1.0)
            line = Line(name=style, label=title.lower(), x=[x for x, _ in known],
                        y=[y for _, y in known], told=told)  # fmt: skip
            found.append(
                draw([line], title=title, note=note, x_label="strength", mark=strength.recommended,
                     mark_label="recommended", from_zero=style == "drift")
            )  # fmt: skip
    return found


def rate_chart(found_rate: FoundRate) -> Chart | None:
    """Held-out loss by learning rate."""
    points = sorted((p.learning_rate, p.val_loss) for p in found_rate.points
                    if p.val_loss is not None and p.learning_rate > 0)  # fmt: skip
    if len(points) < 2:
        return None
    line = Line(name="val", label="held-out loss", x=[x for x, _ in points],
                y=[y for _, y in points], told=_at(points, found_rate.chosen))  # fmt: skip
    return draw([line], title="Held-out loss after a short training", x_label="learning rate",
                log_x=True, mark=found_rate.chosen, mark_label="chosen")  # fmt: skip


def more_data_chart(more_data: MoreData) -> Chart | None:
    """Held-out loss by number of rows, with intervals."""
    points = sorted((p for p in more_data.points if p.val_loss is not None), key=lambda p: p.rows)
    if len(points) < 2:
        return None
    losses = [point.val_loss for point in points if point.val_loss is not None]
    line = Line(name="val", label="held-out loss", x=[p.rows for p in points], y=losses,
                low=[p.low for p in points], high=[p.high for p in points])  # fmt: skip
    return draw([line], title="Held-out loss by rows of training", x_label="rows")


def eval_table(curves: Mapping[str, Curve], most: int = 50) -> tuple[list[str], list[list[str]]]:
    """What was measured in between, as a table: its head, and a line per measurement."""
    names = [name for name in curves if name.startswith(("val_", "anchor_"))]
    by_step: dict[int, dict[str, float]] = {}
    for name in names:
        curve = curves[name]
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)
    if len(steps) > most:
        steps = [steps[index * (len(steps) - 1) // (most - 1)] for index in range(most)]
    rows = [[f"{step:,}", *(_cell(by_step[step].get(name)) for name in names)] for step in steps]
    return ["step", *(name.replace("_", " ") for name in names)], rows


def _at(points: Sequence[tuple[float, float]], x: float | None) -> str:
    """The value at a place that is pointed out."""
    if x is None:
        return ""
    nearest = min(points, key=lambda point: abs(point[0] - x))
    return f"{compact(float(f'{nearest[1]:.3g}'))} at {compact(nearest[0])}"


def _line(curve: Curve, style: str, label: str, *, smooth: bool) -> Line:
    told = f"peak {compact(float(curve.values.max()))}" if label == "rate" else ""
    return Line(name=style, label=label, x=curve.steps, y=curve.values, smooth=smooth, told=told)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
