"""The command line: instant help, results on stdout, errors on stderr, exit codes, and `check`."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from duiti.cli import main
from duiti.config import Config
from duiti.material import read_material

VERBS = ("demo", "check", "train", "chat", "eval", "runs", "export", "doctor")
BAD = '{"prompt": "S3cret"}'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(20)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


@pytest.fixture
def broken(tmp_path: Path, rows: Path) -> Path:
    file = tmp_path / "broken.jsonl"
    file.write_text(f"{rows.read_text()}\n{BAD}\n{{")
    return file


class Ran:
    """What a command line gave."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        self.code = ended.value.code
        self.out, self.err = capsys.readouterr()


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from duiti.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0
heavy = {"torch", "transformers", "tokenizers", "safetensors", "jinja2"} & set(sys.modules)
assert not heavy, heavy
"""
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "duiti", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # The best of three: others may be busy on this machine.
    assert min(seconds() for _ in range(3)) < 0.5


def test_help_names_every_verb_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "--help")
    assert ran.code == 0
    assert all(verb in ran.out for verb in VERBS)
    ran = Ran(capsys, "train", "--help")
    for flag in ("--learning-rate", "--lora.rank", "--micro-batch-tokens", "--seed", "-m", "-o"):
        assert flag in ran.out


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("train", "x.jsonl", "-m", "tiny", "--learnin-rate", "1"), "--learning-rate"),
        (("check", "x.jsonl", "-m", "tiny", "--lora.rnk", "1"), "--lora.rank"),
        (("trian",), "train"),
        (("check", "x.jsonl", "-m", "tiny", "--epochs", "0"), "epochs"),
        (("check", "x.jsonl", "-m", "tiny", "--epochs", "two"), "epochs"),
        (("check", "x.jsonl", "-m", "tiny", "--method", "qlora"), "method"),
        (("check", "x.jsonl"), "no model is given"),
        (("check", "-m", "tiny"), "no data is given"),
        (("check", "nowhere.jsonl", "-m", "tiny"), "no such file: nowhere.jsonl"),
        (("check", "x.jsonl", "-m", "tniy"), 'Did you mean "tiny"?'),
        (("check", "x.jsonl", "-m", "tiny", "--template", "chatlm"), 'Did you mean "chatml"?'),
        (("check", "x.jsonl", "-m", "tiny", "-c", "none.yaml"), "none.yaml"),
        (
            ("check", "x.jsonl", "-m", "tiny", "--method", "full", "--lora.rank", "4"),
            "no effect",
        ),
        (("chat", "no-such-run"), "no-such-run"),
        (("eval", "no-such-run", "x.jsonl"), "no-such-run"),
        (("export", "gguf", "-o", "x"), "merged"),
    ],
)
def test_a_mistake_is_explained_on_stderr_with_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    found: str,
) -> None:
    monkeypatch.chdir(rows.parent)
    rows.rename("x.jsonl")
    ran = Ran(capsys, *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert found in ran.err
    assert "Traceback" not in ran.err


def test_an_interruption_is_said_and_is_no_failure_of_its_own(
    capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "stop.py").write_text("def stop(row):\n    raise KeyboardInterrupt\n")
    ran = Ran(capsys, "check", rows, "-m", "tiny", "--filter", f"{tmp_path}/stop.py:stop")
    assert (ran.code, ran.out, ran.err) == (130, "", "✗ stopped\n")


def test_the_traceback_is_shown_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "check", "nowhere.jsonl", "-m", "tiny", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_check_json_is_one_object_with_the_keys_of_the_contract(
    capsys: pytest.CaptureFixture[str], rows: Path, llama_dir: Path
) -> None:
    ran = Ran(capsys, "check", rows, "-m", llama_dir, "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    keys = {"rows", "kept", "examples", "rejected", "tokens", "template", "warnings"}
    assert keys <= set(report)
    tokens = report["tokens"]
    assert {"total", "supervised", "context", "answers_cut"} <= set(tokens)
    assert (report["rows"], report["kept"], report["examples"]) == (20, 20, 20)
    assert (report["rejected"], report["warnings"]) == ([], [])
    assert report["template"] == "human-assistant"
    assert tokens["total"] == tokens["supervised"] + tokens["context"]


def test_check_of_bad_rows_lists_them_and_exits_with_3(
    capsys: pytest.CaptureFixture[str], broken: Path, llama_dir: Path
) -> None:
    ran = Ran(capsys, "check", broken, "-m", llama_dir, "--json")
    assert ran.code == 3
    report = json.loads(ran.out)
    assert [row["origin"] for row in report["rejected"]] == [f"{broken}:21", f"{broken}:22"]
    assert all(row["reason"] for row in report["rejected"])
    assert report["kept"] == 20
    ran = Ran(capsys, "check", broken, "-m", llama_dir)
    assert ran.code == 3
    assert f"{broken}:21: has" in ran.err
    assert f"{broken}:22: not valid JSON" in ran.err
    assert "S3cret" not in ran.err + ran.out
    assert "Traceback" not in ran.err


def test_check_of_bad_rows_passes_where_they_may_be_dropped(
    capsys: pytest.CaptureFixture[str], broken: Path, llama_dir: Path
) -> None:
    ran = Ran(capsys, "check", broken, "-m", llama_dir, "--on-bad-row", "drop", "--json")
    assert ran.code == 0
    assert len(json.loads(ran.out)["rejected"]) == 2


def test_train_on_bad_rows_stops_before_a_run_is_made(
    capsys: pytest.CaptureFixture[str], broken: Path, llama_dir: Path, tmp_path: Path
) -> None:
    ran = Ran(capsys, "train", broken, "-m", llama_dir, "-o", tmp_path / "run")
    assert ran.code == 3
    assert ran.out == ""
    assert not (tmp_path / "run").exists()


def test_check_shows_the_mask_on_stdout(
    capsys: pytest.CaptureFixture[str], rows: Path, llama_dir: Path
) -> None:
    ran = Ran(capsys, "check", rows, "-m", llama_dir, "--show", "1")
    assert ran.code == 0
    assert "Human: What is 0?⏎Assistant:⟦ It is 0.<|endoftext|>⟧" in ran.out
    assert "What is 1?" not in ran.out
    assert f"duiti train {rows} -m {llama_dir}" in ran.out


@pytest.mark.parametrize(
    "settings",
    [{}, {"template": "chatml"}, {"val": "30%", "seed": 1}],
    ids=["auto", "chatml", "val"],
)
def test_dump_is_exactly_what_training_uses(
    capsys: pytest.CaptureFixture[str],
    rows: Path,
    llama_dir: Path,
    tmp_path: Path,
    settings: dict[str, str | int],
) -> None:
    dump = tmp_path / "dump.jsonl"
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    ran = Ran(capsys, "check", rows, "-m", llama_dir, "--dump", dump, *flags)
    assert ran.code == 0
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    config = Config(data=(str(rows),), model=str(llama_dir), **settings)
    # `finetune` trains on `material.train`, and on nothing else.
    expected = [
        {
            "origin": str(example.origin),
            "input_ids": example.input_ids.tolist(),
            "labels": example.labels.tolist(),
        }
        for example in read_material(config).train
    ]
    assert lines == expected
    assert 0 < len(lines) <= 20
    assert all(set(line) == {"origin", "input_ids", "labels"} for line in lines)


def test_flags_win_over_the_file(
    capsys: pytest.CaptureFixture[str], rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "duiti.yaml"
    file.write_text(f"data: {rows}\nmodel: {llama_dir}\ntemplate: chatml\nmax_length: 100\n")
    report = json.loads(Ran(capsys, "check", "-c", file, "--json").out)
    assert (report["template"], report["max_length"]) == ("chatml", 100)
    ran = Ran(capsys, "check", "-c", file, "--json", "--max-length", "90")
    report = json.loads(ran.out)
    assert (report["template"], report["max_length"]) == ("chatml", 90)


def test_map_is_a_flag(capsys: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "gsm.jsonl"
    file.write_text('{"question": "q", "answer": "a"}')
    mapped = ("--map", "question=prompt,answer=response", "--json")
    assert json.loads(Ran(capsys, "check", file, "-m", llama_dir, *mapped).out)["kept"] == 1
    ran = Ran(capsys, "check", file, "-m", llama_dir)
    assert ran.code == 3
    assert "--map question=prompt" in ran.err


def test_more_than_the_models_positions_is_refused(
    capsys: pytest.CaptureFixture[str], rows: Path, llama_dir: Path
) -> None:
    ran = Ran(capsys, "check", rows, "-m", llama_dir, "--max-length", "513")
    assert ran.code == 2
    assert "512 positions" in ran.err


@pytest.mark.parametrize(("key", "code"), [("\\u001b[2J", 0), ("\\ud800", 3)])
def test_odd_field_names_do_not_reach_the_terminal_or_stop_the_report(
    capsys: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path, key: str, code: int
) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(f'{{"prompt": "q", "response": "a", "{key}": 1}}')
    ran = Ran(capsys, "check", file, "-m", llama_dir)
    assert ran.code == code
    assert "1 row: " in ran.out
    assert "\x1b" not in ran.out + ran.err


def test_without_runs_the_list_is_empty_and_chat_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = Ran(capsys, "runs", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, [])
    ran = Ran(capsys, "chat", "-p", "hi")
    assert ran.code == 2
    assert "there is no run yet" in ran.err
    assert "duiti train" in ran.err
