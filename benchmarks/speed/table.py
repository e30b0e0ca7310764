"""What the measurements of a run amount to: medians, ratios, bars, and the tables of the pages.

    found = summary(entry)                  # of one scenario, as `train_speed.json` has it
    print(verdicts(scenario, found))
    write_pages(results)

Pure functions of the JSON; nothing here measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.speed.scenarios import SCENARIOS, Quantity, Scenario

Language = Literal["en", "zh"]
Entry = Mapping[str, Any]

ROOT = Path(__file__).parents[2]
QUIET = 0.05
"""Share of the machine that other processes may take before a run is called disturbed."""
READMES: dict[str, Language] = {"README.md": "en", "README.zh-CN.md": "zh"}
DETAILS = "docs/performance.md"
BEGIN, END = "<!-- speed: made by benchmarks/train_speed.py -->", "<!-- /speed -->"

_HEAD: dict[Language, str] = {
    "en": "| | duiti tokens/s | TRL, best | TRL, defaults | × best | memory | TRL's | roofline |",
    "zh": "| | duiti 词元/秒 | TRL 最佳 | TRL 默认 | × 最佳 | 内存 | TRL 内存 | 占上限 |",
}
_DETAILS_HEAD = (
    "| scenario | duiti tokens/s | TRL, best (its settings) | TRL, defaults | × best | × defaults"
    " | peak memory: duiti, TRL, × | matrix product | roofline | bars |"
)
_BAR_NAMES: dict[Quantity, str] = {
    "speed": "speed ≥ {:g}×",
    "roofline": "roofline ≥ {:.2f}",
    "memory": "memory ≤ {:.2f}×",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One scenario. Medians over its repeats; real tokens, no padding."""

    tokens_per_s: float
    steps_per_s: float
    peak_bytes: float
    peer_tokens_per_s: float
    peer_peak_bytes: float
    default_tokens_per_s: float | None
    """None where it was not measured."""
    roofline: float | None
    """Share of the matrix-product rate that necessary FLOPs reach; None for the embedded model."""

    @property
    def speed(self) -> float:
        """Times the peer's: of tokens, and as the updates are the same, of steps too."""
        return self.tokens_per_s / self.peer_tokens_per_s

    @property
    def memory(self) -> float:
        return self.peak_bytes / self.peer_peak_bytes

    def value(self, quantity: Quantity) -> float | None:
        """What a bar is compared with."""
        values = {"speed": self.speed, "roofline": self.roofline, "memory": self.memory}
        return values[quantity]


def summary(entry: Entry) -> Summary:
    """Of a scenario's measurements."""
    runs = entry["runs"]
    seconds = median(sum(run["seconds"]) for run in runs["duiti"])
    num_updates = len(runs["duiti"][0]["seconds"])
    num_tokens = sum(entry["tokens"][-num_updates:])
    flops = entry["flops"]
    default = runs.get("trl-defaults")
    return Summary(
        tokens_per_s=num_tokens / seconds,
        steps_per_s=num_updates / seconds,
        peak_bytes=median(run["peak_bytes"] for run in runs["duiti"]),
        peer_tokens_per_s=num_tokens / median(sum(run["seconds"]) for run in runs["trl"]),
        peer_peak_bytes=median(run["peak_bytes"] for run in runs["trl"]),
        default_tokens_per_s=(
            num_tokens / median(sum(run["seconds"]) for run in default) if default else None
        ),
        roofline=None if flops is None else flops / seconds / entry["matmul_flops_per_s"],
    )


def verdicts(scenario: Scenario, found: Summary) -> list[str]:
    """A phrase for every bar: `speed ≥ 10×: 11.3, met`."""
    phrases = []
    for bar in scenario.bars:
        value = found.value(bar.quantity)
        assert value is not None  # a scenario without a roofline has no bar for it
        verdict = "met" if bar.is_met(value) else "missed"
        phrases.append(f"{_BAR_NAMES[bar.quantity].format(bar.limit)}: {value:.2f}, {verdict}")
    return phrases


def table(results: Mapping[str, Any], language: Language) -> str:
    """The table of a README."""
    lines = [_HEAD[language], "|---|---|---|---|---|---|---|---|"]
    for name, entry in _in_order(results):
        found, scenario = summary(entry), SCENARIOS[name]
        title = scenario.title if language == "en" else scenario.title_zh
        default = found.default_tokens_per_s
        cells = [
            title,
            _rate(found.tokens_per_s),
            _rate(found.peer_tokens_per_s),
            "–" if default is None else _rate(default),
            f"**{found.speed:.1f}**",
            _gigabytes(found.peak_bytes),
            _gigabytes(found.peer_peak_bytes),
            "–" if found.roofline is None else f"{found.roofline:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([_machine(results, language), "", *lines])


def details(results: Mapping[str, Any]) -> str:
    """The table of `docs/performance.md`: the same, with settings, product rates and bars."""
    lines = [_DETAILS_HEAD, "|---|---|---|---|---|---|---|---|---|---|"]
    for name, entry in _in_order(results):
        found, scenario = summary(entry), SCENARIOS[name]
        peer = entry["settings"]["trl"]
        peak, peer_peak = _gigabytes(found.peak_bytes), _gigabytes(found.peer_peak_bytes)
        default = found.default_tokens_per_s
        rate = entry["matmul_flops_per_s"]
        cells = [
            f"`{name}`",
            _rate(found.tokens_per_s),
            f"{_rate(found.peer_tokens_per_s)} ({peer['name']}{_threads(entry)})",
            "–" if default is None else _rate(default),
            f"{found.speed:.1f}",
            "–" if default is None else f"{found.tokens_per_s / default:.1f}",
            f"{peak}, {peer_peak}, {found.memory:.2f}",
            "–" if rate is None else f"{rate / 1e9:.0f} GFLOP/s",
            "–" if found.roofline is None else f"{found.roofline:.2f}",
            "; ".join(verdicts(scenario, found)) or "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([_machine(results, "en"), "", *lines])


def write_pages(results: Mapping[str, Any], root: Path = ROOT) -> None:
    """Put the tables between the marks of the pages."""
    for name, language in READMES.items():
        _replace(root / name, table(results, language))
    _replace(root / DETAILS, details(results))


def _replace(page: Path, text: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no marks for the table: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _in_order(results: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    entries = results["scenarios"]
    return [(name, entries[name]) for name in SCENARIOS if name in entries]


def _machine(results: Mapping[str, Any], language: Language) -> str:
    machine, versions = results["machine"], results["versions"]
    sources = {entry["source"] for entry in results["scenarios"].values()}
    parts = (machine["processor"], machine["cores"], versions["torch"], versions["trl"])
    rows = ", ".join(sorted(sources))
    text = "{}，{} 核；torch {}，TRL {} + PEFT {}。数据：{}。" if language == "zh" else (
        "{}, {} cores; torch {}, TRL {} + PEFT {}. Rows: {}."
    )  # fmt: skip
    return text.format(*parts, versions["peft"], rows) + _busy(results, language)


def _busy(results: Mapping[str, Any], language: Language) -> str:
    """What the reader has to know of a machine that did something else beside."""
    shares = [entry["others_share"] or 0.0 for entry in results["scenarios"].values()]
    if max(shares) <= QUIET:
        return ""
    share = f"{max(shares):.0%}"
    if language == "zh":
        return f"测量时其他进程最多占用了机器的 {share}，时间只是大概。"
    return f" Other processes took up to {share} of the machine meanwhile: times are rough."


def _threads(entry: Entry) -> str:
    settings = entry["settings"]
    ours, theirs = settings["duiti"]["threads"], settings["trl"]["threads"]
    return "" if ours == theirs else f", {theirs} threads; duiti {ours}"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.1f}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
