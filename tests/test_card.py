"""The README of a run: what the hub reads in it is valid, its numbers are those of the files, its
code runs, and no name in it drives Markdown, YAML or HTML."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from duiti.card import code, shown, write_card
from duiti.config import Config
from duiti.front_matter import find_base
from duiti.run import write_config, write_json, write_jsonl
from duiti.sft import finetune
from duiti.training.log import Talk

EVALUATION = {
    "n": 150,
    "supervised_tokens": 1234,
    "base": {"loss": 3.5, "perplexity": 33.1, "token_accuracy": 0.25, "exact_match": 0.0,
             "stop_rate": 0.1, "other_language": None},
    "tuned": {"loss": 1.25, "perplexity": 3.49, "token_accuracy": 0.75, "exact_match": 0.93,
              "stop_rate": 0.99, "other_language": None},
    "change": {"loss": {"mean": -2.25, "low": -2.5, "high": -2.0},
               "exact_match": {"mean": 0.93, "low": 0.88, "high": 0.97}},
}  # fmt: skip
LEDGER = {
    "data": {"rows": 200, "kept": 140, "filtered": 0, "dropped": 3, "val": 50, "leaked": 0,
             "tokens": {"supervised": 1000, "context": 2500},
             "rejected": [{"origin": "a.jsonl:3", "reason": "no prompt"}] * 7,
             "sources": [{"file": "/home/me/a.jsonl", "rows": 200}]},
}  # fmt: skip
HOSTILE = ("a`b|c", "<script>alert(1)</script>", "[x](javascript:alert(1))", "**bold**", "# title",
           "```\nend", "- item", "1. one", "a: b\n---\nlicense: mit", "![i](http://x/y)", "{{x}}",
           "http://example.org", "\x1b[2J", "&lt;", "~~a~~", "<!--")  # fmt: skip


def made(folder: Path, *, evaluation: Any = EVALUATION, **settings: Any) -> Path:
    """A run's small files, as if it had been trained."""
    values = {"data": ("/home/me/a.jsonl",), "model": "Qwen/Qwen3-0.6B", "val": "25%",
              "learning_rate": 2e-4, **settings}  # fmt: skip
    folder.mkdir(parents=True)
    write_config(folder, Config(**values), {"learning_rate": "as asked"})
    write_json(folder / "env.json", {"id": "0" * 16, "duiti": "0.1.0"})
    write_json(folder / "data/ledger.json", LEDGER)
    write_jsonl(folder / "metrics.jsonl", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    if evaluation:
        write_json(folder / "evaluation.json", evaluation)
    return folder


def card_of(folder: Path) -> str:
    write_card(folder)
    return (folder / "README.md").read_text(encoding="utf-8")


def head_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def html_of(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def test_the_hub_reads_base_and_results(tmp_path: Path) -> None:
    text = card_of(made(tmp_path / "my-run"))
    card = ModelCard(text)  # the hub's own reader, and its own checks
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    results = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert results == {"loss": 1.25, "perplexity": 3.49, "accuracy": 0.75, "exact_match": 0.93,
                       "stop_rate": 0.99}  # fmt: skip
    assert {each.dataset_name for each in card.data.eval_results} == {"150 held-out rows"}
    assert "license" not in head_of(text)
    assert "language" not in head_of(text)


def test_numbers_stand_beside_those_of_the_base_with_their_interval(tmp_path: Path) -> None:
    folder = made(tmp_path / "my-run")
    write_json(folder / "verdict.json", {"sentence": "Answers 93 % of held-out questions."})
    write_json(folder / "anchor.json", {"source": "generated", "kl": 0.0321, "nll_change": 0.0123})
    write_json(folder / "proof.json", {"passed": True, "opened_by": "PEFT 0.21.2",
                                       "num_tokens": 55, "saved": {"largest": 1e-6}})  # fmt: skip
    text = card_of(folder)
    assert "\nAnswers 93 % of held-out questions.\n" in text
    assert "| exact match | 0.0% | 93.0% | +93.0 points (+88.0 to +97.0) |" in text
    assert "| loss (nats per token) | 3.5000 | 1.2500 | -2.2500 (-2.5000 to -2.0000) |" in text
    assert "other language" not in text  # nothing was measured
    assert "0.0321 nats per token away from the base, loss +0.0123" in text
    assert "opened by PEFT 0.21.2" in text
    assert "1.0e-06 nats over 55 tokens" in text
    assert "140 of 200 rows of `a.jsonl` were trained on (7 rejected, 3 too long, 50 held" in text
    assert "1,000 tokens trained, 2,500 given" in text


def test_what_was_not_measured_is_not_mentioned(tmp_path: Path) -> None:
    text = card_of(made(tmp_path / "my-run", evaluation=None))
    assert "model-index" not in head_of(text)
    assert "forgetting" not in text
    assert "training loss at the end: 2.0000" in text
    assert "was not proven" in text


def test_a_proof_that_failed_is_said_in_bold(tmp_path: Path) -> None:
    folder = made(tmp_path / "my-run")
    write_json(folder / "proof.json", {"passed": False, "problems": ["x"]})
    assert "**the saved files are not proven" in card_of(folder)


def test_the_same_files_give_the_same_card_and_no_folder_of_the_machine(tmp_path: Path) -> None:
    folder = made(tmp_path / "my-run", output=str(tmp_path / "my-run"), val="/home/me/b.jsonl")
    first = card_of(folder)
    assert card_of(folder) == first
    assert str(tmp_path) not in first
    assert "/home/me" not in first


# The base


def base_folder(folder: Path, config: str = "{}", readme: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "README.md").write_text(readme)
    return folder


def test_a_local_base_is_no_id_and_the_text_says_so(tmp_path: Path) -> None:
    local = base_folder(tmp_path / "my-base")
    text = card_of(made(tmp_path / "run", model=str(local)))
    assert "base_model" not in head_of(text)
    assert "`my-base`, fine-tuned" in text
    assert "so `base_model` is left out" in text
    tiny = card_of(made(tmp_path / "run2", model="tiny"))
    assert "base_model" not in head_of(tiny)
    assert "embedded in duiti" in tiny


@pytest.mark.parametrize(
    ("config", "readme"),
    [
        ('{"_name_or_path": "Qwen/Qwen3-0.6B"}', ""),
        ("{}", "---\nlicense: mit\nbase_model: Qwen/Qwen3-0.6B\n---\n# x\n"),
        ("no json", "---\nbase_model: Qwen/Qwen3-0.6B\n---\n"),
    ],
)
def test_a_local_base_that_names_its_own_is_believed(
    tmp_path: Path, config: str, readme: str
) -> None:
    local = base_folder(tmp_path / "my-base", config, readme)
    text = card_of(made(tmp_path / "run", model=str(local)))
    assert head_of(text)["base_model"] == "Qwen/Qwen3-0.6B"
    assert "license" not in head_of(text)
    assert "whose own files say that it comes from" in text


def test_a_folder_of_the_hubs_cache_is_the_id(tmp_path: Path) -> None:
    local = base_folder(tmp_path / f"models--Qwen--Qwen3-0.6B/snapshots/{'a' * 40}")
    assert find_base(Config(model=str(local))).hub_id == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    "told", ["/home/me/model", "../up", "a/b/c", "x", "a/b.git", "a--b/c", "é/x", "a/b\n", 7, None]
)
def test_what_is_no_id_is_none_whoever_says_it(tmp_path: Path, told: object) -> None:
    import json

    local = base_folder(tmp_path / "my-base", json.dumps({"_name_or_path": told}))
    assert find_base(Config(model=str(local))).hub_id is None


@given(st.from_regex(r"[\w.\-]{1,8}/[\w.\-]{1,8}", fullmatch=True))
def test_an_id_is_one_where_the_hub_says_so(name: str) -> None:
    found = find_base(Config(model=name)).hub_id
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert found is None
    else:
        assert found in (name, None)
        assert found == name or not name.isascii() or re.search(r"(^|/)[-.]|[-.](/|$)", name)


# Hostile names


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is(name: str, tmp_path: Path) -> None:
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    for begin in ("", "before "):
        html = html_of(begin + shown(name))
        inner = re.sub(r"^<p>|</p>\n$", "", html)
        assert not re.search(r"<(?!/?p>)", inner), html
        text = inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
        assert text.replace("&amp;", "&").replace("\u200b", "") == begin + plain
    assert "<script" not in html_of(code(name))


def test_hostile_names_and_findings_break_nothing(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        hostile = {**EVALUATION, "tuned": {name: 0.5, "loss": "<b>"}, "n": name}
        folder = made(tmp_path / f"r{number}", evaluation=hostile, data=(name,))
        write_json(folder / "verdict.json", {"sentence": name})
        write_json(folder / "anchor.json", {"source": name, "kl": 0.1})
        write_json(folder / "strength.json", {"recommended": 0.5, "why": name})
        (folder / "data/ledger.json").unlink()
        write_json(folder / "data/ledger.json", {"data": {"sources": [{"file": name}]}})
        text = card_of(folder)
        head = head_of(text)
        assert head.keys() == {"base_model", "base_model_relation", "library_name", "pipeline_tag",
                               "tags", "model-index"}  # fmt: skip
        ModelCard(text)
        html = html_of(text.split("\n---\n", 1)[1])
        tags = set(re.findall(r"<(\w+)", html))
        assert tags <= {"h1", "h2", "p", "a", "code", "pre", "table", "thead", "tbody", "tr", "th",
                        "td", "ul", "li", "strong"}, (name, tags)  # fmt: skip
        assert re.findall(r'href="([^"]*)"', html) == ["https://huggingface.co/Qwen/Qwen3-0.6B"]
        assert len(re.findall("<h2>", html)) == 4
        assert "\x1b" not in text


def test_a_folder_with_an_odd_name_can_be_named_in_code(tmp_path: Path) -> None:
    text = card_of(made(tmp_path / 'a "b` $(c)'))
    assert "duiti chat 'a \"b` $(c)'" in text
    python = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert python is not None
    assert 'folder = "a \\"b` $(c)"' in python[1]
    compile(python[1], "card", "exec")


# Its code runs


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_code_in_a_real_card_runs(
    method: str, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"prompt": "Say {n}", "response": "It is {n}."}}\n' for n in range(6))
    Path("rows.jsonl").write_text(rows)
    run = finetune(Config(data=("rows.jsonl",), model=str(llama_dir), output="runs/made",
                          method=method, max_steps=1, device="cpu", proof=False,
                          cache=False), talk=Talk(quiet=True))  # fmt: skip
    text = (run.path / "README.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 'folder = "runs/made"' in python
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shutil.which("duiti", path=str(Path(sys.executable).parent)) is not None
    assert head_of(text)["library_name"] == ("peft" if method == "lora" else "transformers")
