"""The pure parts of the speed benchmark: rows, the clock, medians, bars and tables."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.speed.machine import others_since, stamp
from benchmarks.speed.measure import TOLERANCE
from benchmarks.speed.rows import LENGTHS, made_lengths, write_made, write_sample
from benchmarks.speed.run import Run
from benchmarks.speed.scenarios import DEFAULTS, PEERS, QUICK, SCENARIOS, Bar, quick
from benchmarks.speed.table import BEGIN, END, details, summary, table, verdicts, write_pages
from benchmarks.speed.watch import Failed, watch

GIGABYTE = 1e9


def run(seconds: list[float], gigabytes: float) -> dict[str, Any]:
    return {"seconds": seconds, "peak_bytes": gigabytes * GIGABYTE, "loss": 12.0, "grad_norm": 1.0}


def entry(**changes: Any) -> dict[str, Any]:
    """Measurements of a scenario: a warm-up update of 50 tokens, two timed ones of 100 each."""
    values = {
        "source": "rows.jsonl",
        "tokens": [50, 100, 100],
        "supervised": [20, 40, 40],
        "warmup": 1,
        "others_share": 0.0,
        "flops": 600,
        "matmul_flops_per_s": 400.0,
        "settings": {"duiti": {"threads": 2}, "trl": {"name": "padding-free", "threads": 2}},
        "runs": {
            "duiti": [run([1.0, 1.0], 2), run([1.5, 0.5], 3), run([9.0, 9.0], 2)],
            "trl": [run([10.0, 10.0], 8), run([11.0, 11.0], 8), run([1.0, 1.0], 8)],
            "trl-defaults": [run([40.0, 40.0], 5)],
        },
    }
    return {**values, **changes}


def results(**entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"torch": "2.13", "trl": "1.16", "peft": "0.21"},
        "scenarios": {name.replace("_", "-"): value for name, value in entries.items()},
    }


def test_a_summary_is_of_medians_and_of_timed_updates_only() -> None:
    found = summary(entry())
    assert found.tokens_per_s == 100.0  # 200 tokens in 2 s, the median of 2, 2 and 18
    assert found.steps_per_s == 1.0
    assert found.peer_tokens_per_s == 10.0
    assert found.default_tokens_per_s == 2.5
    assert found.speed == 10.0
    assert found.memory == 0.25
    assert found.roofline == 0.75  # 600 FLOPs in 2 s where 400 a second can be had


def test_what_was_not_measured_is_none() -> None:
    runs = {who: own for who, own in entry()["runs"].items() if who != "trl-defaults"}
    found = summary(entry(runs=runs, flops=None, matmul_flops_per_s=None))
    assert found.default_tokens_per_s is None
    assert found.roofline is None
    shown = results(tiny=entry(runs=runs, flops=None, matmul_flops_per_s=None))
    assert "–" in table(shown, "en")
    assert "–" in details(shown)


def test_a_bar_of_speed_is_a_floor_and_one_of_memory_a_ceiling() -> None:
    assert Bar(quantity="speed", limit=10).is_met(10)
    assert not Bar(quantity="speed", limit=10).is_met(9.9)
    assert Bar(quantity="memory", limit=0.35).is_met(0.35)
    assert not Bar(quantity="memory", limit=0.35).is_met(0.36)


def test_verdicts_say_met_or_missed_for_every_bar() -> None:
    scenario = SCENARIOS["lora-4-bf16"]
    assert verdicts(scenario, summary(entry())) == [
        "speed ≥ 10×: 10.00, met",
        "roofline ≥ 0.75: 0.75, met",
        "memory ≤ 0.35×: 0.25, met",
    ]
    slow = entry(matmul_flops_per_s=500.0)
    assert "roofline ≥ 0.75: 0.60, missed" in verdicts(scenario, summary(slow))


def test_tables_go_between_the_marks_and_touch_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / name for name in ("README.md", "README.zh-CN.md", "docs/performance.md")]
    for page in pages:
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_pages(results(lora_4_bf16=entry()), tmp_path)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"\n{END}\nafter\n")
        assert "old" not in text
        assert "10.0" in text
    assert "LoRA，4 层" in pages[1].read_text(encoding="utf-8")
    assert "missed" not in pages[2].read_text(encoding="utf-8")


def test_a_page_without_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"README\.md has no marks"):
        write_pages(results(lora_4_bf16=entry()), tmp_path)


def test_scenarios_name_settings_that_exist_and_bars_that_can_be_judged() -> None:
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert set(scenario.peers) <= PEERS.keys() - {DEFAULTS}
        if scenario.shape is None:
            assert all(bar.quantity != "roofline" for bar in scenario.bars)
        assert TOLERANCE[scenario.dtype] < 0.1
        assert quick(scenario).bars == ()
    assert set(QUICK) <= SCENARIOS.keys()


@pytest.mark.parametrize("kind", sorted(LENGTHS))
def test_made_up_rows_are_the_same_every_time_and_as_long_as_the_real_ones(
    kind: str, tmp_path: Path
) -> None:
    """Means of log-normal lengths are exp(mean + deviation² / 2), a little less where they are
    cut; 4,000 of them are within 5 % of it."""
    pairs = made_lengths(LENGTHS[kind], 4000)
    real = {"gsm8k": (59.6, 121.8), "alpaca-zh": (13.1, 110.8)}[kind]
    cut = {"gsm8k": 0.03, "alpaca-zh": 0.15}[kind]  # the real answers are no log-normal exactly
    assert mean(prompt for prompt, _ in pairs) == pytest.approx(real[0], rel=0.05)
    assert mean(answer for _, answer in pairs) == pytest.approx(real[1], rel=cut + 0.05)
    for name in ("a", "b"):
        write_made(tmp_path / name, kind, num_rows=16)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert [len(row["response"]) for row in rows] == [answer for _, answer in pairs[:16]]


@pytest.mark.parametrize("is_array", [True, False])
def test_a_sample_has_rows_of_the_file_and_is_the_same_every_time(
    is_array: bool, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{number}", "response": "是"} for number in range(50)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows").write_text(json.dumps(rows) if is_array else lines, encoding="utf-8")
    for name in ("a", "b"):
        write_sample(tmp_path / "rows", tmp_path / name, num_rows=10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    drawn = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    assert len(drawn) == 10
    assert all(row in rows for row in drawn)


def test_a_file_that_is_too_short_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="has 1 rows, and 8 are needed"):
        write_sample(tmp_path / "rows", tmp_path / "out", num_rows=8)


def test_a_run_counts_tokens_of_timed_updates_only() -> None:
    own = Run(seconds=[1.0, 3.0], peak_bytes=0, loss=0.0, grad_norm=0.0)
    assert own.rate([50, 100, 300]) == 100.0
    assert {field.name for field in fields(Run)} == run([], 0).keys()


def test_a_process_is_watched_line_by_line_and_its_peak_is_its_own(tmp_path: Path) -> None:
    """The child holds 64 MB more than Python; this process, with torch in it, holds far more."""
    code = (
        "import sys, time\n"
        "held = bytearray(64_000_000)\n"
        "given = sys.stdin.read()\n"
        "with open(sys.argv[1], 'w') as out:\n"
        "    for step in range(3):\n"
        "        out.write(f'{given}{step}\\n'); out.flush(); time.sleep(0.05)\n"
    )
    lines = tmp_path / "lines"
    seen = watch(
        [sys.executable, "-c", code, str(lines)],
        lines=lines,
        log=tmp_path / "log",
        environment={},
        stdin="step ",
    )
    assert seen.lines == ("step 0", "step 1", "step 2")
    assert list(seen.at_s) == sorted(seen.at_s)
    assert seen.peak_bytes > 64_000_000


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(Failed, match=r"(?s)ended with 1:.*no such model"):
        watch(command, lines=tmp_path / "lines", log=tmp_path / "log", environment={})


def test_the_share_of_others_is_a_share() -> None:
    began = stamp()
    share = others_since(began)
    assert (share is None) == (began is None)
    assert share is None or share >= 0.0


def test_a_machine_that_did_something_else_is_told_of() -> None:
    quiet, busy = results(tiny=entry()), results(tiny=entry(others_share=0.21))
    assert "Other processes" not in table(quiet, "en")
    assert "Other processes took up to 21% of the machine" in table(busy, "en")
    assert "21%" in table(busy, "zh")
