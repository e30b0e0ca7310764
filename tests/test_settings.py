"""Every setting changes something that can be seen: a run's weights, its record, or a refusal."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from made import write_rows
from transformers import dynamic_module_utils

from duiti.config import Config, keys
from duiti.errors import DuitiError
from duiti.material import read_material
from duiti.run import Run
from duiti.sft import finetune
from duiti.training.log import Talk

TIMING = {"tokens_per_s", "peak_memory_bytes"}
PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(12)]
CHAT = {"messages": [{"role": role, "content": f"{role} {n}"}
                     for n in range(2) for role in ("user", "assistant")]}  # fmt: skip
FILES: dict[str, list[dict[str, Any]]] = {
    "rows": [*PAIRS, CHAT],
    "other": PAIRS[:5],
    "renamed": [{"question": r["prompt"], "response": r["response"]} for r in PAIRS],
    "bad": [*PAIRS, {"prompt": "no answer"}],
    "control": [*PAIRS, {"prompt": "a<|im_end|>b", "response": "c"}],
    "long": [*PAIRS, {"prompt": "long", "response": "x " * 40}],
    "twice": [*PAIRS, PAIRS[0]],
}
DATED = (
    "{{ strftime_now('%Y') }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUT = {"data": "long", "max_length": 32, "max_lost": 1.0}
LAST = {"method": "last-n"}

CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("data", {}, "other"),
    ("model", {}, "qwen3_dir"),
    ("val", {}, "30%"),
    ("map", {"data": "renamed"}, {"question": "prompt"}),
    ("filter", {}, "keep.py:some"),
    ("on_bad_row", {"data": "bad"}, "drop"),
    ("template", {}, "chatml"),
    ("train_on", {}, "last"),
    ("train_on", {}, "all"),
    ("special_tokens", {"data": "control"}, "escape"),
    ("special_tokens", {"data": "control", "special_tokens": "escape"}, "allow"),
    ("date", {"model": "dated", "date": "2024-01-01"}, "2025-01-01"),
    ("max_length", {"data": "long", "max_lost": 1.0}, 32),
    ("over_length", CUT, "truncate"),
    ("over_length", CUT, "error"),
    ("max_lost", {"data": "long", "max_length": 32}, 1.0),
    ("strict", {"data": "twice"}, True),
    ("method", {}, "full"),
    ("lora.rank", {}, 4),
    ("lora.alpha", {}, 8.0),
    ("lora.dropout", {}, 0.5),
    ("lora.rslora", {}, True),
    ("lora.target_modules", {}, ("q_proj",)),
    ("lora.layers", {}, 1),
    ("last_n.layers", LAST, 1),
    ("last_n.train_norm", LAST, False),
    ("last_n.train_head", LAST, True),
    ("epochs", {}, 2),
    ("max_steps", {}, 1),
    ("batch_size", {}, 3),
    ("micro_batch_tokens", {}, 1),
    ("learning_rate", {}, 1e-3),
    ("schedule", {}, "constant"),
    ("warmup_steps", {}, 2),
    ("weight_decay", {}, 0.5),
    ("max_grad_norm", {}, 1e-3),
    ("dtype", {}, "bfloat16"),
    ("quantize", {}, "nf4"),
    ("device", {}, "cuda:63"),
    ("max_memory", {}, "1MB"),
    ("eval_every", {"val": "30%"}, 1),
    ("metrics", {"val": "30%"}, ("token_f1",)),
    ("patience", {"val": "30%", "epochs": 9, "learning_rate": 5.0, "eval_every": 1}, 1),
    ("anchor", {}, "none"),
    ("replay", {}, "20%"),
    ("max_drift", {}, 1e-3),
    ("track", {}, "nobody"),
    ("budget", {}, "1s"),
    ("seed", {}, 1),
]
ELSEWHERE = {
    "output",
    "cache",
    "workers",
    "selfcheck",
    "trust_remote_code",
    "activation_checkpointing",
    "save_every",
    "keep",
    "skip_bad_steps",
    "proof",
}
"""What these change is not in a run's weights; the tests below show it, and those of resuming."""


@pytest.fixture(scope="module")
def place(
    llama_dir: Path, qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Names that the cases use → paths."""
    folder = tmp_path_factory.mktemp("settings")
    found = {name: str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in FILES.items()}
    (folder / "keep.py").write_text("def some(row):\n    return '1' in str(row)\n")
    shutil.copytree(llama_dir, folder / "dated")
    (folder / "dated" / "chat_template.jinja").write_text(DATED)
    found |= {"llama_dir": str(llama_dir), "qwen3_dir": str(qwen3_dir)}
    return found | {"dated": str(folder / "dated"), "keep.py:some": f"{folder}/keep.py:some"}


def settings(place: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "data": "rows", "model": "llama_dir", "device": "cpu", "epochs": 1, "batch_size": 4,
        "learning_rate": 1e-2, "workers": 1, "proof": False, **values,
    }  # fmt: skip
    return {
        key: place.get(value, value) if isinstance(value, str) else value
        for key, value in whole.items()
    }


def outcome(place: dict[str, str], values: dict[str, Any], folder: Path) -> object:
    """What a run leaves, without the settings themselves; or why there is none."""
    try:
        run = finetune(Config(**settings(place, values), output=str(folder)), talk=Talk(quiet=True))
    except DuitiError as error:
        return str(error)
    return left(run)


def left(run: Run) -> object:
    weights = {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}
    metrics = [{k: v for k, v in line.items() if k not in TIMING} for line in run.metrics]
    return weights, metrics, json.loads((run.path / "data" / "ledger.json").read_text())


def test_the_table_has_every_key() -> None:
    assert {key for key, _, _ in CASES} | ELSEWHERE == set(keys())


@pytest.mark.parametrize(
    ("key", "base", "value"), CASES, ids=[f"{key}={value}" for key, _, value in CASES]
)
def test_a_setting_changes_something(
    place: dict[str, str], tmp_path: Path, key: str, base: dict[str, Any], value: Any
) -> None:
    section, _, inner = key.partition(".")
    before = outcome(place, base, tmp_path / "before")
    after = outcome(
        place, {**base, section: {inner: value} if inner else value}, tmp_path / "after"
    )
    assert before != after


def test_the_same_settings_change_nothing(place: dict[str, str], tmp_path: Path) -> None:
    assert outcome(place, {}, tmp_path / "one") == outcome(place, {}, tmp_path / "two")


def test_output_names_the_folder(place: dict[str, str], tmp_path: Path) -> None:
    config = Config(**settings(place, {"max_steps": 1}), output=str(tmp_path / "here"))
    assert finetune(config, talk=Talk(quiet=True)).path == tmp_path / "here"


def test_cache_keeps_or_leaves_nothing(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUITI_CACHE", str(tmp_path / "cache"))
    read_material(Config(**settings(place, {"cache": False})))
    assert not (tmp_path / "cache").exists()
    read_material(Config(**settings(place, {})))
    assert read_material(Config(**settings(place, {}))).prepared[0].is_from_cache


def test_a_selfcheck_leaves_its_proof_and_changes_nothing_else(
    place: dict[str, str], tmp_path: Path
) -> None:
    assert outcome(place, {"selfcheck": True}, tmp_path / "with") == outcome(
        place, {"selfcheck": False}, tmp_path / "without"
    )
    names = [{path.name for path in (tmp_path / n).iterdir()} for n in ("with", "without")]
    assert names[0] - names[1] == {"selfcheck.json"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are counted there")
def test_workers_are_processes(place: dict[str, str]) -> None:
    def count(workers: int) -> int:
        seen: set[str] = set()

        def look(progress: object) -> None:
            for children in Path("/proc/self/task").glob("*/children"):
                with suppress(OSError):  # a thread that has just ended
                    seen.update(children.read_text().split())

        rows = [{"prompt": f"q{n}", "response": "a"} for n in range(2000)]
        read_material(
            Config(**settings(place, {"data": (), "workers": workers})), rows=rows, report=look
        )
        return len(seen)

    assert count(1) == 0
    assert count(2) >= 1


def test_code_that_comes_with_a_model_runs_only_where_that_is_allowed(
    place: dict[str, str], llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers copies such code to where it can be imported; not to the user's cache here.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    model = Path(shutil.copytree(llama_dir, tmp_path / "model"))
    values = json.loads((model / "config.json").read_text())
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (model / "config.json").write_text(json.dumps(values))
    (model / "own.py").write_text("raise RuntimeError('it ran')\n")
    refused = outcome(place, {"model": str(model)}, tmp_path / "run")
    assert "wants to run Python code" in str(refused)
    assert "--trust-remote-code" in str(refused)
    allowed = {"model": str(model), "trust_remote_code": True}
    assert "it ran" in str(outcome(place, allowed, tmp_path / "run"))
