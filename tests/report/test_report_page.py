"""A report is one small file that loads nothing, and no text in it becomes markup."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import CONFIG, EVALUATION, answers, make_run, rows, sample, write_json

from duiti.report.next_steps import next_steps
from duiti.report.page import MAX_BYTES, write_report
from duiti.report.read import read_report
from duiti.report.verdict import verdict_of
from duiti.report.watched import MAX_MOMENTS

EVIL = (
    "</script></title></style><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"> '\" {{ 7*7 }} & &amp; \u202e\u2066\x00\u2028 🙂"
)
VOID = {"meta", "input"}


class Found(HTMLParser):
    """Tags, attributes and text of a page, as a plain parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append("data" if ("id", "data") in attrs else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()
        assert opened == tag or (opened, tag) == ("data", "script")

    def handle_data(self, data: str) -> None:
        place = self._open[-1] if self._open else ""
        place = place if place in ("style", "script", "data") else "text"
        self.texts[place] = self.texts.get(place, "") + data


def _html(folder: Path, **changes: object) -> str:
    return write_report(make_run(folder, **changes)).read_text(encoding="utf-8")


def evil_run(folder: Path) -> Path:
    """Everything that a row, a name or a file can bring."""
    hostile = sample(1, prompt=EVIL, text=EVIL)
    hostile |= {"base": EVIL[:40], "tuned": EVIL}
    hostile["tokens"] = [{"text": EVIL, "before": 1.0, "after": 0.1}]
    table = rows(3)
    table["rows"] = [{**row, "origin": f"{EVIL}:1", "kind": EVIL, "why": EVIL}
                     for row in table["rows"]]  # fmt: skip
    table["counts"] = {EVIL: 3}
    scores = {"loss": 1.0, EVIL: 0.5}
    return make_run(
        folder,
        samples=[hostile, hostile],
        answers=[answers(1, prompt=EVIL, text=EVIL), answers(2, prompt=EVIL, text=EVIL)],
        rows=table,
        evaluation={**EVALUATION, "base": scores, "tuned": scores, "change": {}},
        metrics=[{"step": 1, "loss": 1.0, f"val_{EVIL}": 0.5}],
        config=f"model: {json.dumps(EVIL)}\n# {EVIL.splitlines()[0]}\nepochs: 3\n",
        anchor={"source": EVIL, "num_tokens": 5, "kl": 0.1},
        proof={"passed": False, "problems": [EVIL]},
        ledger={"data": {"sources": [{"file": EVIL, "rows": 1, "kept": 1}]}, "warnings": [EVIL]},
        env={"command": ["duiti", EVIL], EVIL: EVIL},
        strength={"points": [{"strength": 0, "val_loss": 1}, {"strength": 1, "val_loss": 2}],
                  "why": EVIL},
        more_data={"points": [{"share": s, "rows": 10, "val_loss": 1} for s in (1, 2)],
                   "says": EVIL},
    )  # fmt: skip


def test_a_report_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    html = _html(tmp_path)
    found = Found(html)
    names = {name for _, name, _ in found.attributes}
    assert not names & {"src", "srcset", "data", "action", "formaction", "ping", "style", "href"}
    assert not {name for name in names if name.startswith("on")}
    assert not {"link", "img", "iframe", "object", "embed", "base", "a"} & set(found.tags)
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg", "", html)  # SVG's name, no address
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {"#cut-hatch", "#dropped-hatch"}
    assert len(found.ids) == len(set(found.ids))


def test_the_policy_allows_its_own_style_and_script_only(tmp_path: Path) -> None:
    found = Found(_html(tmp_path))
    (policy,) = [v for _, name, v in found.attributes if name == "content" and "default" in v]
    style, script = (
        base64.b64encode(hashlib.sha256(found.texts[place].encode()).digest()).decode()
        for place in ("style", "script")
    )
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    html = write_report(evil_run(tmp_path / "evil")).read_text(encoding="utf-8")
    found, harmless = Found(html), Found(_html(tmp_path / "plain"))
    assert found.tags["script"] == 2
    assert found.tags["img"] == 0
    assert found.tags["title"] == 1
    assert found.texts["script"] == harmless.texts["script"]
    assert found.texts["text"].count("onerror=") >= 20  # it is there, as text
    assert "{{ 7*7 }}" in found.texts["text"]
    assert all(line.isprintable() for line in html.split("\n"))
    assert isinstance(json.loads(found.texts["data"]), list)


def test_everything_that_was_measured_is_on_the_page(tmp_path: Path) -> None:
    text = Found(_html(tmp_path)).texts["text"]
    for part in (
        *("Answers 99 % of held-out questions (before: 0 %)", "Did it learn?", "hardly"),
        *("+98.8", "+97.6 … +100.0", "Learning rate", "Gradient norm", "tokens per second"),
        *("水在标准大气压下的沸点是一百摄氏度。", "Recommended: 0.9", "rivers.jsonl:31"),
        *("never learned", "Twice the rows took a third off the loss", "131,000"),
        *("usual for adapters on a model of this width", "2.13.0"),
        *("duiti train rivers.jsonl -m tiny --val 5%", "--strength 0.9"),
        "12 rows are longer than 512 tokens and were dropped",
    ):
        assert part in text, part


def test_answers_are_shown_as_they_changed(tmp_path: Path) -> None:
    text = Found(_html(tmp_path)).texts["text"]
    assert text.count("at update 600 it says this") == 2
    assert text.count("A river?") == 1


def test_of_many_measurements_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    text = Found(_html(tmp_path, answers=[answers(n) for n in range(1, 101)])).texts["text"]
    assert text.count("it says this") == 2 * MAX_MOMENTS
    assert "at update 1 it" in text
    assert "at update 100 it" in text


def test_a_run_that_was_stopped_at_once_shows_what_there_is(tmp_path: Path) -> None:
    text = Found(_html(tmp_path, answers=[answers(7, text="just this")])).texts["text"]
    assert text.count("just this") == 2


def test_a_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    text = Found(write_report(tmp_path).read_text(encoding="utf-8")).texts["text"]
    assert "not measured" in text


def test_a_damaged_file_is_named_in_the_report(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "strength.json").write_text("{", encoding="utf-8")
    text = Found(write_report(tmp_path).read_text(encoding="utf-8")).texts["text"]
    assert "strength.json could not be read: it is not JSON" in text


def test_the_verdict_lies_beside_the_report(tmp_path: Path) -> None:
    assert write_report(make_run(tmp_path)) == tmp_path / "report.html"
    verdict = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert set(verdict["lights"]) == {"learned", "forgot", "stops", "same"}
    assert verdict["lights"]["same"]["colour"] == "green"


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(make_run(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_a_report_stays_small_whatever_is_in_the_folder(tmp_path: Path) -> None:
    long = sample(1, prompt="问" * 20_000, text="答案" * 10_000)
    long["tuned"] = "the answer <b> & " * 1200
    long["tokens"] = [{"text": "答", "before": 5.0, "after": 1.0}] * 600
    steps = [{"step": n, "loss": 1 + n % 7, "grad_norm": n % 11} for n in range(1, 100_001)]
    path = write_report(
        make_run(
            tmp_path,
            metrics=steps,
            samples=[long] * 110,
            answers=[answers(n, prompt="问" * 20_000, text="<i>" * 20_000) for n in range(1, 301)],
            rows=rows(1000),
            config=CONFIG + f"filter: {'x' * 100_000}\n",
            env={f"key{n}": "v" * 1000 for n in range(1000)},
            ledger={"data": {"sources": [{"file": "f" * 1000, "rows": 1, "kept": 1}] * 5000},
                    "warnings": ["w" * 1000] * 5000},
        )
    )  # fmt: skip
    assert path.stat().st_size < MAX_BYTES
    text = Found(path.read_text(encoding="utf-8")).texts["text"]
    assert "more in samples.jsonl" in text
    assert "more characters" in text
    assert "… and 4,900 more" in text


def test_lists_are_cut_shorter_until_a_report_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path, rows=rows(200))
    assert "more in rows.json" not in write_report(folder).read_text(encoding="utf-8")
    monkeypatch.setattr("duiti.report.page.MAX_BYTES", 160_000)
    path = write_report(folder)
    assert path.stat().st_size < 160_000
    assert "more in rows.json" in path.read_text(encoding="utf-8")


def test_curves_can_be_seen_without_scripts(tmp_path: Path) -> None:
    html = _html(tmp_path)
    paths = re.findall(r'<path class="raw [^"]*" d="(M[^"]+)"', html)
    assert len(paths) >= 8
    assert all(path.count("L") >= 2 for path in paths)
    assert "training goes from" in html


@pytest.mark.parametrize("colour", ["green", "amber", "red", "grey"])
def test_a_light_has_a_shape_and_a_word_of_its_own(tmp_path: Path, colour: str) -> None:
    rate = {"green": 1.0, "amber": 0.95, "red": 0.1, "grey": None}
    tuned = {**EVALUATION["tuned"], "stop_rate": rate[colour]}
    html = _html(tmp_path, evaluation={**EVALUATION, "tuned": tuned})
    words = {"green": "yes", "amber": "mostly", "red": "too seldom", "grey": "not measured"}
    assert f"Does it stop? <b>{words[colour]}</b>" in html
    shapes = {"green": "M6.5 12.5", "amber": "M12 1.5", "red": "M7.4 1", "grey": "M8 12h8"}
    begin = html.index(f'<svg class="light {colour}"')
    assert shapes[colour] in html[begin : html.index("</svg>", begin)]


def test_next_steps_follow_from_the_verdict(tmp_path: Path) -> None:
    bare = _html(tmp_path / "a", evaluation=None, metrics=[{"step": 1, "loss": 1.0}], rows=None)
    assert "--val 5% --metrics exact_match" in bare
    assert "--replay" not in bare
    anchor = {"source": "generated", "kl": 0.4, "nll_change": 0.4}
    assert "--replay 5% --max-drift" in _html(tmp_path / "b", anchor=anchor)
    assert "--rows --clean cleaned.jsonl" in _html(tmp_path / "c")
    write_json(tmp_path / "c" / "rows.json", {"rows": [], "counts": {"learned": 5}})
    again = write_report(tmp_path / "c").read_text(encoding="utf-8")
    assert "--clean" not in again


def _commands(folder: Path, **changes: object) -> list[str]:
    data = read_report(make_run(folder, **changes))
    return [step.command for step in next_steps(data, verdict_of(data))]


def test_what_was_not_trained_is_not_to_be_used(tmp_path: Path) -> None:
    failed = _commands(tmp_path / "a", proof={"passed": False, "problems": ["it changes nothing"]})
    assert not [command for command in failed if " chat " in command or " export " in command]
    (make_run(tmp_path / "b") / "adapter_model.safetensors").unlink()
    data = read_report(tmp_path / "b")
    assert [step.command for step in next_steps(data, verdict_of(data))] == [
        f"duiti train --resume {tmp_path / 'b'}"
    ]


def test_a_run_that_ended_too_early_is_to_be_longer(tmp_path: Path) -> None:
    losses = [(10, 3.0), (20, 2.0), (30, 1.5)]
    falling = [{"step": step, "loss": 1.0, "val_loss": loss} for step, loss in losses]
    assert any("--epochs 4" in each for each in _commands(tmp_path / "a", metrics=falling))
    done = [{**line, "val_loss": 1.5 + 1 / line["step"] ** 3} for line in falling]
    assert not any("--epochs" in each for each in _commands(tmp_path / "b", metrics=done))


def test_commands_are_those_that_duiti_takes(tmp_path: Path) -> None:
    """Settings of the run stand in its file; a rate that is found must be left open there."""
    unsure = {**EVALUATION, "change": {}, "base": EVALUATION["tuned"]}
    table = {**rows(), "rows": [{"origin": "rivers.jsonl:7", "kind": "contradictory"}]}
    config = CONFIG.replace("- /data/rivers.jsonl", "- /data/rivers.jsonl@0.5")
    config += "map: {q: prompt}\n"
    commands = _commands(tmp_path, evaluation=unsure, rows=table, config=config, find_lr=None)
    assert any("--learning-rate auto --find-lr" in command for command in commands)
    (clean,) = (command for command in commands if "--clean" in command)
    assert clean == (
        f"duiti eval {tmp_path} /data/rivers.jsonl --rows --map q=prompt --clean cleaned.jsonl"
    )
