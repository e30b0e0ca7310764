"""`duiti check`: one run says all that is wrong, quotes nothing, and shows what training visits."""

from __future__ import annotations

import datetime
import gzip
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from made import write_rows
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from duiti import api
from duiti.checking import run_check
from duiti.cli import main
from duiti.config import Config
from duiti.data.batch import collate, epoch_updates
from duiti.errors import DataError, UsageError
from duiti.infer.model import load
from duiti.types import Message

SECRET = "Zq7xSecretXq9"
PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(20)]
CHAT: dict[str, Any] = {"messages": [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First.", "weight": 0.5},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second.", "weight": 2},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Third.", "train": False},
]}  # fmt: skip
DATED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %B %Y') }}.\n" + DATED


class Checked:
    """What `duiti check` gave."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: object) -> None:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, arguments)])
        self.code = ended.value.code
        self.out, self.err = capfd.readouterr()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", PAIRS)


def with_template(llama_dir: Path, folder: Path, template: str) -> Path:
    copied = Path(shutil.copytree(llama_dir, folder))
    (copied / "chat_template.jinja").write_text(template)
    return copied


# What is shown is what is trained


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"template": "chatml", "train_on": "last"},
        {"train_on": "all"},
        {"over_length": "truncate", "max_length": 16, "max_lost": 1},
        {"on_bad_row": "drop", "max_length": 30, "max_lost": 1, "val": "20%"},
    ],
    ids=lambda settings: ",".join(map(str, settings.values())) or "default",
)
def test_training_visits_the_dump_and_nothing_else(
    llama_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Each update's loss is computed from its line of the dump alone, by plain transformers."""
    rows = [*PAIRS[:12], {"prompt": "Long?", "response": "very " * 30 + "long"}]
    chat = CHAT["messages"][:4] if settings.get("train_on") == "last" else CHAT["messages"]
    if settings.get("train_on") != "all":  # which takes no weights
        rows = [rows[0], {"messages": chat}, *rows[1:]]
    if "on_bad_row" in settings:
        rows.insert(3, {"prompt": "no answer"})
    settings = {"model": str(llama_dir), "data": (str(write_rows(tmp_path / "r.jsonl", rows)),),
                **settings}  # fmt: skip
    check = run_check(Config(**settings))
    assert check.refusal is None
    check.dump(tmp_path / "dump.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert len(lines) == len(check.examples) > 5
    run = api.train(
        quiet=True, device="cpu", batch_size=1, epochs=1, method="full", learning_rate=1e-12,
        output=str(tmp_path / "run"), proof=False, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    order = [index for (index,) in epoch_updates(len(lines), 1, seed=0, epoch=0)]
    for index, step in zip(order, run.metrics, strict=True):
        ids, labels = torch.tensor(lines[index]["input_ids"]), torch.tensor(lines[index]["labels"])
        weights = torch.tensor(lines[index].get("weights", [1.0] * len(ids)))[1:]
        with torch.no_grad():
            losses = cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="none")
        trained = labels[1:] != -100
        expected = (losses * weights)[trained].sum() / weights[trained].sum()
        assert step["loss"] == pytest.approx(expected.item(), abs=2e-5)
        assert step["num_tokens"] == len(ids)
        assert step["supervised_tokens"] == int(trained.sum())


def test_weights_of_a_row_reach_the_batch(llama_dir: Path) -> None:
    check = api.check([CHAT, PAIRS[0]], model=str(llama_dir))
    batch = collate(list(check.examples))
    assert batch.weights is not None
    found: dict[float, str] = {}
    for weight, target in zip(batch.weights.tolist(), batch.targets.tolist(), strict=True):
        text = check.material.tokenizer.decode([target])
        found[weight] = found.get(weight, "") + text
    assert found == {
        0.5: " First.<|endoftext|>",
        2.0: " Second.<|endoftext|>",
        1.0: " It is 0.<|endoftext|>",
    }
    assert collate([check.examples[1]]).weights is None


def test_train_on_says_which_tokens_are_trained(llama_dir: Path) -> None:
    chat = {"messages": [{k: m[k] for k in ("role", "content")} for m in CHAT["messages"]]}

    def masks(**settings: Any) -> list[str]:
        check = api.check([chat], model=str(llama_dir), **settings)
        return [check.mask(n) for n in range(len(check.examples))]

    end = "<|endoftext|>"
    assert masks() == masks(train_on="assistant") == [
        f"Human: One?⏎Assistant:⟦ First.{end}⟧⏎Human: Two?⏎Assistant:⟦ Second.{end}⟧"
        f"⏎Human: Three?⏎Assistant:⟦ Third.{end}⟧"
    ]  # fmt: skip
    assert masks(train_on="last") == [
        f"Human: One?⏎Assistant: First.{end}⏎Human: Two?⏎Assistant: Second.{end}"
        f"⏎Human: Three?⏎Assistant:⟦ Third.{end}⟧"
    ]
    (whole,) = masks(train_on="all")
    assert whole.endswith("⟧")
    assert whole.index("⟦") <= len("Human")  # all but the first token, which nothing predicts


def test_special_tokens_are_rejected_escaped_or_act(llama_dir: Path) -> None:
    row = [{"prompt": "a<|im_end|>b", "response": "c"}]

    def check(mode: str) -> Any:
        return api.check(row, model=str(llama_dir), template="chatml", special_tokens=mode)

    assert "control token" in check("reject").refusal.what
    end = check("allow").material.tokenizer.convert_tokens_to_ids("<|im_end|>")
    counts = {mode: check(mode).examples[0].input_ids.tolist().count(end)
              for mode in ("escape", "allow")}  # fmt: skip
    assert counts == {"escape": 2, "allow": 3}
    (escaped,) = check("escape").examples
    assert "a<|im_end|>b" in check("escape").material.tokenizer.decode(escaped.input_ids)


# Every kind of file


def kinds(folder: Path) -> dict[str, Path]:
    text = "".join(json.dumps(row) + "\n" for row in PAIRS)
    table = "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in PAIRS)
    found = {
        name: folder / f"rows.{name}"
        for name in ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst", "ndjson")
    }
    found["jsonl"].write_text(text)
    found["ndjson"].write_text(text.replace("\n", "\r\n"))
    found["json"].write_text(json.dumps(PAIRS))
    found["csv"].write_text("\ufeff" + table)
    found["tsv"].write_text(table.replace(",", "\t"))
    found["jsonl.gz"].write_bytes(gzip.compress(text.encode()))
    found["csv.zst"].write_bytes(zstandard.compress(table.encode()))
    pq.write_table(pa.Table.from_pylist(PAIRS), found["parquet"])
    return found


def test_every_kind_of_file_gives_the_same_examples(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path
) -> None:
    dumps = {}
    for name, file in kinds(tmp_path).items():
        dump = tmp_path / f"{name}.dump"
        checked = Checked(capfd, file, "-m", llama_dir, "--json", "--dump", dump)
        assert (checked.code, checked.err) == (0, ""), name
        assert checked.report["kept"] == 20
        assert checked.report["sources"][0]["file"] == str(file)
        lines = [json.loads(line) for line in dump.read_text().splitlines()]
        dumps[name] = [(line["input_ids"], line["labels"]) for line in lines]
    assert all(found == dumps["jsonl"] for found in dumps.values())


def test_map_and_filter_work_on_tables_too(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "qa.csv"
    file.write_text("Question,Gold,level\n" + "".join(f"q{n},a{n},{n % 3}\n" for n in range(9)))
    (tmp_path / "keep.py").write_text("def easy(row):\n    return row['level'] == '0'\n")
    flags = ("--map", "Question=prompt,Gold=response", "--filter", f"{tmp_path}/keep.py:easy")
    checked = Checked(capfd, file, "-m", llama_dir, "--json", *flags)
    assert checked.code == 0
    report = checked.report
    assert (report["rows"], report["kept"], report["filtered"]) == (9, 3, 6)
    assert report["warnings"] == ['the field "level" is not read (3 rows)']
    table = Checked(capfd, file, "-m", llama_dir, *flags).out
    assert "filtered" in table
    missing = Checked(capfd, file, "-m", llama_dir, "--filter", f"{tmp_path}/keep.py:hard")
    assert missing.code == 2
    assert "easy" in missing.err


def test_rows_come_from_a_generator_and_are_read_once(llama_dir: Path) -> None:
    taken = 0

    def some() -> Iterator[dict[str, str]]:
        nonlocal taken
        for row in PAIRS:
            taken += 1
            yield row

    check = api.check(some(), model=str(llama_dir))
    assert taken == len(check.examples) == 20
    assert [str(example.origin) for example in check.examples][-1] == "<rows>:20"


def test_a_folder_gives_its_train_files_and_validates_with_its_validation_files(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", PAIRS[:14])
    write_rows(folder / "validation.jsonl", PAIRS[14:17])
    write_rows(folder / "test.jsonl", PAIRS[17:])
    report = Checked(capfd, folder, "-m", llama_dir, "--json").report
    assert (report["kept"], report["val_examples"], report["val_data"]["rows"]) == (14, 3, 3)
    said = Checked(capfd, folder, "-m", llama_dir).out
    assert "not read: " in said
    assert "test.jsonl" in said
    own = write_rows(tmp_path / "own.jsonl", PAIRS[17:19])
    report = Checked(capfd, folder, "-m", llama_dir, "--json", "--val", own).report
    assert (report["kept"], report["val_examples"]) == (14, 2)
    report = Checked(capfd, folder, "-m", llama_dir, "--json", "--val", "30%").report
    assert report["kept"] + report["val_examples"] == 14
    run = api.train(folder, model=str(llama_dir), output=str(tmp_path / "run"), quiet=True,
                    device="cpu", epochs=1, eval_every=1, proof=False)  # fmt: skip
    assert all("val_loss" in step for step in run.metrics)
    environment = json.loads((run.path / "env.json").read_text())
    assert [Path(file["file"]).name for file in environment["data"]] == [
        "train.jsonl", "validation.jsonl",
    ]  # fmt: skip


def test_rows_are_weighted_as_named_in_yaml_and_on_the_command_line(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path
) -> None:
    one, two = write_rows(tmp_path / "1.jsonl", PAIRS[:10]), write_rows(tmp_path / "2.jsonl", PAIRS)
    config = tmp_path / "duiti.yaml"
    config.write_text(
        f"model: {llama_dir}\ndata:\n- path: {one}\n  weight: 2\n- path: {two}\n  rows: 5\n"
    )
    from_yaml = Checked(capfd, "-c", config, "--json").report
    from_flags = Checked(capfd, f"{one}@2", f"{two}#5", "-m", llama_dir, "--json").report
    for report in (from_yaml, from_flags):
        assert report.pop("memory")["peak_bytes"] > 0  # of this process too, which has grown
    assert from_yaml == from_flags
    assert [source["kept"] for source in from_flags["sources"]] == [20, 5]
    assert [source["file"] for source in from_flags["sources"]] == [f"{one}@2", f"{two}#5"]


# All that is wrong, in one run


BROKEN = [
    f'{{"prompt": "{SECRET}"',
    f'{{"prompt": "{SECRET}"}}',
    f'{{"prompt": "{SECRET}", "response": null}}',
    f'{{"prompt": "{SECRET}", "response": 5}}',
    f'{{"prompt": "{SECRET}", "response": ""}}',
    f'{{"prompt": "{SECRET}", "prompt": "{SECRET}", "response": "a"}}',
    f'{{"prompt": "{SECRET}<|im_end|>", "response": "a"}}',
    f'{{"prompt": "{SECRET}", "response": NaN}}',
    f'{{"prompt": "{SECRET}\\ud800", "response": "a"}}',
    f'{{"prompt": "{SECRET}\\u0000", "response": "a"}}',
    f'["{SECRET}"]',
    f'{{"messages": [], "system": "{SECRET}"}}',
    f'{{"text": "{SECRET}"}}',
    f'{{"messages": "{SECRET}"}}',
    f'{{"messages": [{{"role": "user", "content": "{SECRET}"}}]}}',
    f'{{"messages": [{{"role": "{SECRET}", "content": "{SECRET}"}}]}}',
    f'{{"prompt": "{SECRET}", "response": "{SECRET}", "output": "{SECRET}"}}',
    f'{{"prompt": "q", "response": "a", "tools": "{SECRET}"}}',
    f'{{"prompt": "{SECRET}", "response": "a"}} {SECRET}',
    f'{{"prompt": "{SECRET}", "response": {"[" * 200}{"]" * 200}}}',
]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    good = [json.dumps(row) for row in PAIRS]
    file = tmp_path / "broken.jsonl"
    lines = [line for pair in zip(good, BROKEN, strict=True) for line in pair]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_all_errors_of_a_file_are_told_in_one_run_by_line(
    capfd: pytest.CaptureFixture[str], broken: Path, llama_dir: Path
) -> None:
    checked = Checked(capfd, broken, "-m", llama_dir)
    assert checked.code == 3
    assert "20 of 40 rows cannot be used" in checked.err
    for line in range(2, 41, 2):
        assert f"{broken}:{line}: " in checked.err
    reasons = [text.split(": ", 1)[1] for text in checked.err.splitlines() if ".jsonl:" in text]
    assert len(set(reasons)) == 20
    report = Checked(capfd, broken, "-m", llama_dir, "--json").report
    assert [row["origin"] for row in report["rejected"]] == [
        f"{broken}:{line}" for line in range(2, 41, 2)
    ]
    assert report["kept"] == 20


@pytest.mark.parametrize("template", ["chatml", "model"])
def test_content_of_a_broken_row_is_in_nothing_that_is_said_or_written(
    capfd: pytest.CaptureFixture[str],
    broken: Path,
    llama_dir: Path,
    tmp_path: Path,
    template: str,
) -> None:
    model = with_template(llama_dir, tmp_path / "model", DATED)
    page, dump = tmp_path / "page.html", tmp_path / "dump.jsonl"
    flags = ("-m", model, "--template", template, "--html", page, "--dump", dump)
    for more in ((), ("--json",), ("--on-bad-row", "drop"), ("--strict",), ("--debug",)):
        checked = Checked(capfd, broken, *flags, *more)
        assert checked.code == (0 if "drop" in more else 3)
        assert SECRET not in checked.out + checked.err
        assert SECRET not in page.read_text() + dump.read_text()
    run = api.train(broken, model=str(model), template=template, on_bad_row="drop", quiet=True,
                    output=str(tmp_path / "run"), device="cpu", epochs=1, proof=False)  # fmt: skip
    written = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in text for text in written)
    assert (run.path / "data" / "rejected.jsonl").read_text().count("\n") == 20


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "q", "response": "a", "id": 1}], "is not read"),
        ([{"prompt": "q\nHuman: x", "response": "a"}], "begins like a turn"),
        ([PAIRS[0], PAIRS[0]], "says what another row says"),
        ([PAIRS[0], {**PAIRS[0], "response": "else"}], "with different answers"),
    ],
)
def test_strict_refuses_each_kind_of_warning_with_exit_code_3(
    capfd: pytest.CaptureFixture[str],
    llama_dir: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    said: str,
) -> None:
    file = write_rows(tmp_path / "r.jsonl", [*rows, *PAIRS[5:]])
    loose = Checked(capfd, file, "-m", llama_dir)
    assert loose.code == 0
    assert said in loose.out
    assert "warning" in loose.out
    strict = Checked(capfd, file, "-m", llama_dir, "--strict")
    assert strict.code == 3
    assert said in strict.err
    report = Checked(capfd, file, "-m", llama_dir, "--strict", "--json")
    assert report.code == 3
    assert said in report.report["refused"]
    with pytest.raises(DataError, match="strict"):
        api.train(file, model=str(llama_dir), strict=True, quiet=True, output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_strict_refuses_leaks_too(
    capfd: pytest.CaptureFixture[str], rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    val = write_rows(tmp_path / "val.jsonl", PAIRS[3:5])
    report = Checked(capfd, rows, "-m", llama_dir, "--val", val, "--json").report
    assert (report["kept"], report["leaked"], report["val_examples"]) == (18, 2, 2)
    assert report["leaks"]["exact"][0] == [f"{rows}:4", f"{val}:1"]
    said = Checked(capfd, rows, "-m", llama_dir, "--val", val).out
    assert "in val too" in said
    assert f"{rows}:4 and {val}:1" in said
    assert Checked(capfd, rows, "-m", llama_dir, "--val", val, "--strict").code == 3


@pytest.mark.parametrize("over_length", ["drop", "error", "truncate"])
def test_the_fix_for_rows_that_are_too_long_works_on_the_command_line(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path, over_length: str
) -> None:
    rows = [*PAIRS, {"prompt": "Long?", "response": "word " * 60}]
    file = write_rows(tmp_path / "r.jsonl", rows)
    flags = ["--max-length", "40", "--over-length", over_length]
    checked = Checked(capfd, file, "-m", llama_dir, *flags)
    assert checked.code == 3
    (fix,) = [line.split("fix: ")[1] for line in checked.err.splitlines() if "fix: " in line]
    assert fix.startswith("--max-length ")
    mended = Checked(capfd, file, "-m", llama_dir, *flags[2:], *fix.split())
    assert mended.code == 0
    lost = Checked(capfd, file, "-m", llama_dir, *flags, "--max-lost", "1")
    assert lost.code == (3 if over_length == "error" else 0)


# The page


def test_the_page_is_written_whole(
    capfd: pytest.CaptureFixture[str], broken: Path, llama_dir: Path, tmp_path: Path
) -> None:
    page = tmp_path / "check.html"
    checked = Checked(capfd, broken, "-m", llama_dir, "--html", page)
    assert checked.code == 3
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "20 of 40 rows cannot be used" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    where = Checked(capfd, broken, "-m", llama_dir, "--html", tmp_path / "no" / "check.html")
    assert where.code == 2
    assert "cannot be written" in where.err


# The date


def test_a_template_that_writes_the_date_gets_that_of_the_run_for_good(
    capfd: pytest.CaptureFixture[str], rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    model = with_template(llama_dir, tmp_path / "model", DATED)
    checked = Checked(capfd, rows, "-m", model, "--date", "2024-02-29", "--show", "1")
    assert checked.code == 0
    assert "Today is 29 February 2024.⏎" in checked.out
    assert "the template writes the date; in this run it is 2024-02-29" in checked.out
    run = api.train(rows, model=str(model), date="2024-02-29", output=str(tmp_path / "run"),
                    quiet=True, device="cpu", epochs=1, proof=False)  # fmt: skip
    assert "date: '2024-02-29'" in (run.path / "config.yaml").read_text()
    assert json.loads((run.path / "env.json").read_text())["date"] == "2024-02-29"
    asked = [Message(role="user", content=PAIRS[0]["prompt"])]
    loaded = load(run, device="cpu")
    assert loaded.prompts.prompt(asked).startswith("Today is 29 February 2024.\n")
    (example, *_) = run_check(run.config).examples
    given = example.input_ids[example.labels == -100].tolist()
    assert loaded.prompts.prompt_ids(asked) == given
    samples = api.evaluate(run, rows, device="cpu", metrics=())
    assert samples["n"] == 20
    loaded.prompts.close()


def test_without_a_date_it_is_that_of_the_day_and_recorded(
    rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    before = datetime.date.today().isoformat()
    run = api.train(rows, model=str(llama_dir), output=str(tmp_path / "run"), quiet=True,
                    device="cpu", epochs=1, proof=False)  # fmt: skip
    assert before <= run.config.date <= datetime.date.today().isoformat()


# Models whose parts do not fit together


def test_a_tokenizer_without_an_end_needs_a_template_that_has_one(
    capfd: pytest.CaptureFixture[str], rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama_dir, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((model / name).read_text())
        values["eos_token_id"] = values["pad_token_id"] = None
        (model / name).write_text(json.dumps(values))
    checked = Checked(capfd, rows, "-m", model)
    assert checked.code == 2
    assert "the tokenizer has no eos token" in checked.err
    assert Checked(capfd, rows, "-m", model, "--template", "chatml").code == 0
    run = api.train(rows, model=str(model), template="chatml", quiet=True, device="cpu", epochs=1,
                    output=str(tmp_path / "run"), proof=False)  # fmt: skip
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    loaded = load(run, device="cpu")
    assert loaded.stop_ids == {end}
    assert isinstance(loaded.chat([{"role": "user", "content": "q"}], max_new_tokens=3), str)
    assert api.evaluate(run, rows, device="cpu")["n"] == 20


def test_tokens_that_the_model_has_no_embedding_for_are_refused_where_they_are_used(
    capfd: pytest.CaptureFixture[str], rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama_dir, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"extra{n}" for n in range(50)])
    tokenizer.save_pretrained(model)
    # A vocabulary that is larger than the embedding is common, and no fault as such.
    assert Checked(capfd, rows, "-m", model).code == 0
    api.train(rows, model=str(model), quiet=True, device="cpu", epochs=1,
              output=str(tmp_path / "run"), proof=False)  # fmt: skip
    bad = write_rows(tmp_path / "bad.jsonl", [*PAIRS, {"prompt": "extra7", "response": "a"}])
    checked = Checked(capfd, bad, "-m", model)
    assert checked.code == 3
    assert "do not belong together" in checked.err
    with pytest.raises(DataError, match="embeddings"):
        api.train(bad, model=str(model), quiet=True, device="cpu", output=str(tmp_path / "none"))


# From one process to the next


def test_the_cache_is_used_by_the_next_process_and_says_nothing(
    rows: Path, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUITI_CACHE", str(tmp_path / "cache"))

    def check(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "duiti", "check", rows, "-m", llama_dir, *more]
        return subprocess.run(command, check=True, capture_output=True, text=True)

    without = check("--no-cache")
    assert not (tmp_path / "cache").exists()
    first = run_check(Config(data=(str(rows),), model=str(llama_dir)))
    assert not first.material.prepared[0].is_from_cache
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    used = entry.stat().st_mtime_ns
    second = check()
    assert entry.stat().st_mtime_ns > used
    first_lines, second_lines = (
        [line for line in done.stdout.splitlines() if not line.startswith("memory")]
        for done in (without, second)
    )
    assert second_lines == [line.replace(" --no-cache", "") for line in first_lines]
    assert second.stderr == without.stderr == ""


def test_validation_needs_rows_where_it_is_to_be_measured(llama_dir: Path, rows: Path) -> None:
    with pytest.raises(UsageError, match="eval_every has no effect without val"):
        api.check(rows, model=str(llama_dir), eval_every=5, anchor="none")
    with pytest.raises(UsageError, match="leaves one side empty"):
        api.check(PAIRS[:2], model=str(llama_dir), val="1%")


def test_the_next_command_that_is_named_runs_as_it_is_written(
    capfd: pytest.CaptureFixture[str], llama_dir: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "my rows.jsonl", [{"q": r["prompt"], "a": r["response"]}
                                                   for r in PAIRS])  # fmt: skip
    flags = ["--map", "q=prompt,a=response", "--no-cache", "--lora.rank", "4", "--strict",
             "--lora.rslora", "--lora.target-modules", "q_proj,v_proj", "--val", "20%",
             "--device", "cpu", "--max-steps", "1", "-o", str(tmp_path / "run")]  # fmt: skip
    flags.append("--no-proof")
    checked = Checked(capfd, file, "-m", llama_dir, *flags)
    assert checked.code == 0, checked.err
    (line,) = [text for text in checked.out.splitlines() if text.startswith("next")]
    _, program, *command = shlex.split(line)
    assert program == "duiti"
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss"])
