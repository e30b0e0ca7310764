"""The READMEs keep their word: their commands run, and the two say the same."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
ROWS = [
    '{"prompt": "What is the capital of France?", "response": "The capital of France is Paris."}',
    '{"prompt": "法国的首都是哪里？", "response": "法国的首都是巴黎。"}',
]


def blocks(name: str, language: str) -> list[str]:
    """Fenced code of one language."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(name: str) -> list[str]:
    """Lines of the shell blocks without their comments."""
    lines = [line for block in blocks(name, "sh") for line in block.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def test_both_readmes_show_the_same_commands() -> None:
    assert commands("README.md") == commands("README.zh-CN.md")


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands("README.md"):
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """With the embedded model in the place of the hub id, and two rows as the file."""
    for name in ("my.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    ran = []
    for command in commands("README.md"):
        if not command.startswith("duiti "):
            continue
        shown = command.replace("Qwen/Qwen3-0.6B", "tiny").replace("my-qwen3-0.6b", "my-tiny")
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(shown)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            input="法国的首都是哪里？\n/both\n/quit\n",
            check=False,
        )
        assert done.returncode == 0, f"{shown}\n{done.stderr}"
        ran.append(shlex.split(shown)[1])
    assert ran == ["check", "check", "train", "train", "chat", "eval", "export"]
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    for file in ("my.jsonl", "test.jsonl"):
        (tmp_path / file).write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    (code,), (chinese,) = (blocks(name, "python") for name in READMES)
    assert code == chinese.replace("法国的首都是哪里？", "What is the capital of France?")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'n': 2" in done.stdout


@pytest.mark.parametrize("name", READMES)
def test_every_link_of_the_readme_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
