"""The report of a run: one HTML file that anyone can read, and its verdict beside it.

    path = write_report("runs/my-tiny")         # report.html; and verdict.json

The file needs no network and no other file, says so in its own content security policy, and stays
below a megabyte. All text in it is hostile and escaped. The same folder gives the same bytes.
Everything can be read with scripts off; they add what needs a hand: values under the pointer,
smoothing, searching, sorting, the choice of light or dark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duiti.data.showing.ledger import LedgerLine, show_ledger
from duiti.data.showing.one_file import (
    environment,
    json_in_html,
    policy_hash,
    script_of,
    style_of,
)
from duiti.durable import write_file
from duiti.report.charts import Chart
from duiti.report.curves import (
    eval_table,
    more_data_chart,
    rate_chart,
    strength_charts,
    training_charts,
)
from duiti.report.folder import SourceCounts
from duiti.report.measures import measures_of
from duiti.report.next_steps import next_steps, reproduce
from duiti.report.read import ReportData, Setting, read_report
from duiti.report.samples import ink, show_samples
from duiti.report.verdict import Verdict, verdict_of
from duiti.report.watched import show_watched
from duiti.run import write_json

REPORT_FILE = "report.html"
VERDICT_FILE = "verdict.json"
MAX_BYTES = 1_000_000
MAX_ROWS = 200
"""Telling rows that are listed."""
MAX_ITEMS = 100
"""Lines of any other list."""
MAX_VALUE = 300
"""Characters of a setting."""
SAMPLE_BYTES = 420_000
"""Of the samples; with all else a page stays below its limit, unless lists are full of escapes."""
SHRINK = (1.0, 0.5, 0.25, 0.1, 0.0)

QUESTIONS = {
    "learned": "Did it learn?",
    "forgot": "Did it forget?",
    "stops": "Does it stop?",
    "same": "The same after reload?",
}
WORDS = {
    "learned": {"green": "yes", "amber": "unclear", "red": "no"},
    "forgot": {"green": "hardly", "amber": "somewhat", "red": "a lot"},
    "stops": {"green": "yes", "amber": "mostly", "red": "too seldom"},
    "same": {"green": "proven", "amber": "in part", "red": "no"},
}
"""What a light says in a word, for eyes that do not tell its colour."""
KINDS = {
    "never_learned": "never learned",
    "unlearned": "learned, then lost again",
    "memorised": "memorised",
    "contradictory": "contradictory",
    "learned": "learned most",
}

_HERE = Path(__file__).parent


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `verdict.json` into a run's folder; returns the report's path.

    Raises:
        DuitiError: they cannot be written.
    """
    data = read_report(folder)
    verdict = verdict_of(data)
    write_json(data.folder / VERDICT_FILE, verdict.as_dict())
    path = data.folder / REPORT_FILE
    write_file(path, render_report(data, verdict))
    return path


def render_report(data: ReportData, verdict: Verdict) -> str:
    """The report as HTML, below `MAX_BYTES`. The same data give the same bytes."""
    for scale in SHRINK:
        html = _render(data, verdict, scale)
        if len(html.encode()) < MAX_BYTES:
            return html
    raise ValueError("a report without lists is larger than a report may be")


def _render(data: ReportData, verdict: Verdict, scale: float) -> str:
    """The page, with lists of that share of their usual length."""
    style, script = style_of(_HERE), script_of(_HERE)
    most = int(MAX_ITEMS * scale)
    samples = show_samples(data.samples, budget=int(SAMPLE_BYTES * scale))
    charts = training_charts(data.curves)
    dial = strength_charts(data.strength) if data.strength is not None else []
    searches = _searches(data)
    table_head, table = eval_table(data.curves)
    rows = data.rows
    return environment(_HERE).get_template("page.html").render(
        data=data,
        name=data.folder.absolute().name,
        verdict=verdict,
        questions=QUESTIONS,
        words=WORDS,
        facts=_facts(data),
        measures=measures_of(data.evaluation) if data.evaluation is not None else [],
        charts=charts,
        dial=dial,
        searches=searches,
        table_head=table_head,
        table=table,
        samples=samples,
        num_samples=data.num_samples,
        watched=show_watched(data.moments),
        rows=rows.rows[: int(MAX_ROWS * scale)] if rows is not None else [],
        counts=_counts(data),
        kinds=KINDS,
        ledger=_ledger(data, most),
        warnings=list(data.ledger.warnings[:most]) if data.ledger is not None else [],
        num_warnings=len(data.ledger.warnings) if data.ledger is not None else 0,
        settings=_settings(data.settings),
        environment=_environment(data.environment.values)[: max(most, 10)],
        steps=next_steps(data, verdict),
        reproduce=reproduce(data),
        clipped=_clipped,
        ink=ink,
        sentence=_sentence,
        style=style,
        script=script,
        style_hash=policy_hash(style),
        script_hash=policy_hash(script),
        island=json_in_html([chart.data for chart in [*charts, *dial, *(c for c, _ in searches)]]),
    )  # fmt: skip


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """What was trained, in a line."""
    config, loss = data.config, data.curves.get("loss")
    found = [("model", str(config.get("model", ""))), ("method", _method(config))]
    if data.ledger is not None:
        kept = sum(source.kept for source in data.ledger.data.sources)
        found.append(("rows", f"{kept:,}"))
    if loss is not None:
        found.append(("updates", f"{int(loss.steps[-1]):,}"))
    found.append(("started", str(data.environment.values.get("started") or "")[:10]))
    return [(name, value) for name, value in found if value]


def _method(config: Any) -> str:
    method = str(config.get("method", ""))
    lora = config.get("lora")
    if method == "lora" and isinstance(lora, dict):
        return f"lora, rank {lora.get('rank')}"
    return method


def _searches(data: ReportData) -> list[tuple[Chart, str]]:
    """The searches that were made, each with what came of it."""
    found: list[tuple[Chart, str]] = []
    if data.found_rate is not None and (chart := rate_chart(data.found_rate)) is not None:
        found.append((chart, data.found_rate.why))
    if data.more_data is not None and (chart := more_data_chart(data.more_data)) is not None:
        found.append((chart, data.more_data.says))
    return found


def _counts(data: ReportData) -> list[tuple[str, int]]:
    """How many rows of each kind, in the order of `KINDS`."""
    counts = data.rows.counts if data.rows is not None else {}
    order = [*(kind for kind in KINDS if kind in counts), *sorted(counts.keys() - KINDS.keys())]
    return [(KINDS.get(kind, kind.replace("_", " ")), counts[kind]) for kind in order[:10]]


def _ledger(data: ReportData, most: int) -> Any:
    if data.ledger is None:
        return None
    lines = [_ledger_line(source) for source in data.ledger.data.sources]
    return show_ledger(lines, max_sources=most)


def _ledger_line(source: SourceCounts) -> LedgerLine:
    tokens = source.tokens
    return LedgerLine(
        source=source.file,
        rows=source.rows,
        kept=source.kept,
        dropped=source.dropped,
        rejected=source.rejected,
        not_selected=source.filtered,
        held_out=source.val + source.leaked,
        tokens=tokens.get("total", 0),
        supervised=tokens.get("supervised", 0),
        context=tokens.get("context", 0),
        cut=tokens.get("cut", 0),
        dropped_tokens=tokens.get("dropped", 0),
        held_out_tokens=tokens.get("val", 0) + tokens.get("leaked", 0),
    )


def _settings(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    """By who chose them."""
    groups = {
        "chosen by duiti": [s for s in settings if s.reason],
        "set by you": [s for s in settings if not s.reason and not s.is_default],
        "as usual": [s for s in settings if not s.reason and s.is_default],
    }
    return [(name, found) for name, found in groups.items() if found]


def _environment(values: dict[str, Any]) -> list[tuple[str, str]]:
    """All that is known of the machine, as text."""
    hidden = {"command"}
    return [
        (key.replace("_", " "), value if isinstance(value, str) else _json(value))
        for key, value in values.items()
        if key not in hidden and value is not None
    ]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    """A reason, as a sentence of its own."""
    text = text.strip()
    return (
        f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '。', '!', '?')) else '.'}"
        if text
        else ""
    )


def _clipped(text: str) -> str:
    """A setting's value, not long."""
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"
