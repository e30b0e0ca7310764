"""The benchmark for a GPU: its arithmetic, and that duiti's part of it goes through on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.cases import CASES, SETTINGS, Bar
from benchmarks.gpu.report import disagreement, report, summary
from benchmarks.gpu.run import Run

ROOT = Path(__file__).parents[2]
RUN = Run(seconds=2.0, num_tokens=1000, peak_bytes=8_000_000_000, loss=2.0, grad_norm=1.0)


def test_the_dry_run_trains_with_duiti_and_keeps_the_numbers(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--case", "lora-8b"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trl left out: no --trl" in done.stdout
    assert "there is no peer to compare with" in done.stdout
    entry = json.loads(output.read_text(encoding="utf-8"))["cases"]["lora-8b"]
    (run,) = entry["runs"]["duiti"]
    assert run["num_tokens"] == sum(entry["tokens"][entry["warmup"] :])
    assert run["loss"] == pytest.approx(6.2, abs=0.3)  # random weights: about ln 512
    assert entry["summary"]["values"]["mfu"] > 0


def test_a_machine_without_a_gpu_is_told_of_the_dry_run() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--dry-run" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_summary_compares_with_the_fastest_peer() -> None:
    runs = {
        "duiti": [RUN, replace(RUN, seconds=1.0), replace(RUN, seconds=4.0)],
        "flat": [replace(RUN, seconds=5.0, peak_bytes=4_000_000_000)],
        "liger": [replace(RUN, seconds=4.0, peak_bytes=10_000_000_000)],
    }
    found = summary(runs, flops=600, product_rate=1000.0)
    assert found["best_peer"] == "liger"
    # 1000 tokens in a median of 2 s against 4 s; 600 FLOPs in 2 s at 1000 a second.
    assert found["values"] == pytest.approx({"mfu": 0.3, "speed": 2.0, "memory": 0.8})
    assert found["medians"]["flat"]["tokens_per_s"] == 200


def test_without_a_peer_only_the_mfu_is_judged() -> None:
    found = summary({"duiti": [RUN]}, flops=1200, product_rate=1000.0)
    assert found["values"] == {"mfu": 0.6}
    entry = {"summary": found, "disagreements": [], "runs": {"duiti": [RUN]}}
    lines = report(CASES["lora-8b"], entry, is_dry=False)
    assert [line.split()[-1] for line in lines if line.lstrip().startswith("bar")] == [
        "met",
        "with",
        "with",
    ]


def test_losses_that_differ_are_named_and_nan_is_no_agreement() -> None:
    assert disagreement(RUN, replace(RUN, loss=2.01, grad_norm=0.99), "flat", 2e-2) == []
    assert disagreement(RUN, replace(RUN, grad_norm=None), "unsloth", 2e-2) == []
    (line,) = disagreement(RUN, replace(RUN, loss=2.1), "flat", 2e-2)
    assert "loss" in line
    assert "flat" in line
    (line,) = disagreement(RUN, replace(RUN, grad_norm=float("nan")), "flat", 2e-2)
    assert "gradient norm" in line


def test_bars_are_met_from_the_right_side() -> None:
    assert Bar(quantity="speed", limit=1.3).verdict(1.3).endswith("1.30, met")
    assert Bar(quantity="memory", limit=0.8).verdict(0.81).endswith("0.81, missed")
    assert Bar(quantity="mfu", limit=0.5).verdict(0.49).endswith("0.49, missed")


def test_every_setting_divides_every_update() -> None:
    for case in CASES.values():
        for name in case.settings:
            assert case.rows % SETTINGS[name].parts == 0


def test_full_fine_tuning_of_8b_is_left_to_gpus_that_hold_it() -> None:
    h200, h100 = 141e9, 80e9
    assert CASES["lora-8b"].min_memory_bytes < h100
    assert CASES["full-0.6b"].min_memory_bytes < h100
    # 16 bytes a weight for weights, gradients and moments, and two of autocast's copies: 136 GB,
    # and no room for activations.
    assert CASES["full-8b"].min_memory_bytes > h200
