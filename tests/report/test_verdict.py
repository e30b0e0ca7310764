"""The sentence and the lights say what was measured, and say so where nothing was."""

from pathlib import Path

import pytest
from made_run import ANCHOR, EVALUATION, PROOF, interval, make_run, metrics

from duiti.report.read import read_report
from duiti.report.verdict import Verdict, verdict_of
from duiti.report.words import percent


def _verdict(folder: Path, **changes: object) -> Verdict:
    return verdict_of(read_report(make_run(folder, **changes)))


def _evaluation(base: dict[str, object], tuned: dict[str, object], **change: object) -> object:
    return {"n": 250, "base": base, "tuned": tuned, "change": change}


def _colour(verdict: Verdict, light: str) -> str:
    return verdict.lights[light].colour


def test_a_good_run_is_told_in_one_sentence(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path)
    assert verdict.sentence == (
        "Answers 99 % of held-out questions (before: 0 %), general text got 3 % worse,"
        " stops by itself, saved model proven identical."
    )
    assert {light.colour for light in verdict.lights.values()} == {"green"}
    assert list(verdict.lights) == ["learned", "forgot", "stops", "same"]


def test_what_was_not_measured_is_grey_and_says_what_would_measure_it(tmp_path: Path) -> None:
    bare = [{"step": n, "loss": 3.0 / n} for n in range(1, 9)]
    verdict = _verdict(tmp_path, evaluation=None, anchor=None, proof=None, metrics=bare)
    assert {light.colour for light in verdict.lights.values()} == {"grey"}
    learned = verdict.lights["learned"].says
    assert "no validation rows; --val 5% measures it" in learned
    assert "3 → 0.375 says nothing of new questions" in learned
    assert verdict.sentence.startswith("Not measured: whether it learned (no validation rows)")


def test_an_empty_folder_has_a_verdict_too(tmp_path: Path) -> None:
    verdict = verdict_of(read_report(tmp_path))
    assert {light.colour for light in verdict.lights.values()} == {"grey"}


def test_what_was_switched_off_is_said(tmp_path: Path) -> None:
    config = "anchor: none\nproof: false\n"
    nothing = [{"step": 1, "loss": 1.0}]
    verdict = _verdict(tmp_path, anchor=None, proof=None, config=config, metrics=nothing)
    assert "(anchor: none)" in verdict.lights["forgot"].says
    assert "(proof: false)" in verdict.lights["same"].says


@pytest.mark.parametrize(
    ("low", "high", "colour"), [(0.01, 0.2, "green"), (-0.01, 0.2, "amber"), (-0.2, -0.01, "red")]
)
def test_learned_means_more_than_chance(
    tmp_path: Path, low: float, high: float, colour: str
) -> None:
    change = {"mean": (low + high) / 2, "low": low, "high": high}
    base, tuned = {"loss": 2.0, "exact_match": 0.5}, {"loss": 2.0, "exact_match": 0.6}
    evaluation = _evaluation(base, tuned, exact_match=change)
    verdict = _verdict(tmp_path, evaluation=evaluation, metrics=[])
    assert _colour(verdict, "learned") == colour


@pytest.mark.parametrize(("after", "colour"), [(0.76, "green"), (1.8, "amber"), (88.0, "red")])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_a_score_cannot_tell_the_loss_does(
    tmp_path: Path, after: float, colour: str, share: float
) -> None:
    base, tuned = {"loss": 1.8, "exact_match": share}, {"loss": after, "exact_match": share}
    evaluation = _evaluation(
        base, tuned, exact_match=interval(0, 0), loss=interval(after - 1.8, 0.2)
    )
    verdict = _verdict(tmp_path, evaluation=evaluation, metrics=[])
    assert _colour(verdict, "learned") == colour
    assert f"held-out questions (before: {100 * share:.0f} %), held-out loss" in verdict.sentence
    assert "by the loss" in verdict.lights["learned"].says


def test_numbers_that_are_none_are_red(tmp_path: Path) -> None:
    ruined = _evaluation({"loss": 1.8}, {"loss": None})
    verdict = _verdict(tmp_path, evaluation=ruined, anchor={"source": "generated"}, metrics=[])
    assert _colour(verdict, "learned") == _colour(verdict, "forgot") == "red"
    assert "Its loss on held-out rows is no number" in verdict.sentence


@pytest.mark.parametrize(("n", "colour"), [(1, "amber"), (4, "amber"), (5, "green")])
def test_a_handful_of_rows_is_no_proof(tmp_path: Path, n: int, colour: str) -> None:
    evaluation = {**EVALUATION, "n": n}
    assert _colour(_verdict(tmp_path, evaluation=evaluation), "learned") == colour


def test_a_run_that_was_stopped_is_said_to_be_unfinished(tmp_path: Path) -> None:
    (make_run(tmp_path) / "adapter_model.safetensors").unlink()
    verdict = verdict_of(read_report(tmp_path))
    assert verdict.sentence.startswith("Not finished: it was stopped after update 600. Answers")


def test_a_loss_that_falls_is_better(tmp_path: Path) -> None:
    fell = _evaluation({"loss": 2.0}, {"loss": 1.0}, loss=interval(-1.0, 0.1))
    verdict = _verdict(tmp_path / "a", evaluation=fell, metrics=[])
    assert _colour(verdict, "learned") == "green"
    assert "Held-out loss 1 (before: 2)" in verdict.sentence
    rose = _evaluation({"loss": 1.0}, {"loss": 2.0}, loss=interval(1.0, 0.1))
    assert _colour(_verdict(tmp_path / "b", evaluation=rose, metrics=[]), "learned") == "red"
    no_interval = _evaluation({"loss": 1.0}, {"loss": 0.995})
    assert (
        _colour(_verdict(tmp_path / "c", evaluation=no_interval, metrics=[]), "learned") == "amber"
    )


def test_held_out_loss_that_rose_again_is_amber(tmp_path: Path) -> None:
    lines = metrics(600)
    for line in lines:
        if "val_loss" in line:
            line["val_loss"] = 0.2 if line["step"] == 240 else 0.3
    verdict = _verdict(tmp_path, metrics=lines)
    assert _colour(verdict, "learned") == "amber"
    assert "lowest at step 240 and rose since" in verdict.lights["learned"].says


def test_few_rows_are_named(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, evaluation={**EVALUATION, "n": 9})
    assert "only 9 rows" in verdict.lights["learned"].says


@pytest.mark.parametrize(
    ("kl", "change", "colour", "says"),
    [
        (0.02, 0.0296, "green", "general text got 3 % worse"),
        (0.02, 0.001, "green", "general text is as good as before"),
        (0.02, -0.0513, "green", "general text got 5 % better"),
        (0.02, 0.06, "amber", "general text got 6 % worse"),
        (0.1, 0.0, "amber", "as good as before, but it expects other words in general text"),
        (0.4, 0.06, "red", "6 % worse, but it expects other words in general text (KL 0.4)"),
        (0.3, None, "red", "it expects other words in general text (KL 0.3)"),
        (0.2, 50.0, "red", "it can no longer read general text"),
        (0.3, 0.3, "red", "general text got 35 % worse"),
        (2.0, 2.0, "red", "general text got 7.39 times as hard for it"),
    ],
)
def test_forgetting_has_thresholds(
    tmp_path: Path, kl: float, change: float | None, colour: str, says: str
) -> None:
    verdict = _verdict(tmp_path, anchor={**ANCHOR, "kl": kl, "nll_change": change})
    assert _colour(verdict, "forgot") == colour
    assert says.lower() in verdict.sentence.lower()


def test_without_a_final_anchor_the_last_measurement_counts(tmp_path: Path) -> None:
    lines = [{"step": 1, "anchor_kl": 0.5, "anchor_nll_change": 0.5},
             {"step": 2, "anchor_kl": 0.01, "anchor_nll_change": 0.02}]  # fmt: skip
    verdict = _verdict(tmp_path, anchor=None, metrics=lines)
    assert _colour(verdict, "forgot") == "green"


@pytest.mark.parametrize(
    ("rate", "colour"), [(1.0, "green"), (0.95, "amber"), (0.5, "red"), (0, "red")]
)
def test_stopping_has_thresholds(tmp_path: Path, rate: float, colour: str) -> None:
    evaluation = {**EVALUATION, "tuned": {**EVALUATION["tuned"], "stop_rate": rate}}
    verdict = _verdict(tmp_path, evaluation=evaluation)
    assert _colour(verdict, "stops") == colour
    assert ("never stops by itself" in verdict.sentence) == (rate == 0)


def test_a_proof_that_failed_is_red_and_says_why(tmp_path: Path) -> None:
    failed = {**PROOF, "passed": False, "problems": ["the saved adapter changes nothing"]}
    verdict = _verdict(tmp_path / "a", proof=failed)
    assert _colour(verdict, "same") == "red"
    assert verdict.lights["same"].says == "The saved adapter changes nothing"
    assert "saved model is NOT what was trained" in verdict.sentence
    other = _verdict(tmp_path / "b", proof={**PROOF, "other_base": "no bitsandbytes there"})
    assert _colour(other, "same") == "amber"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.0004, "< 0.1 %"), (0.99996, "> 99.9 %"), (0.994, "99.4 %"),
     (0.5, "50 %"), (0.005, "0.5 %"), (0.0097, "1 %")],
)  # fmt: skip
def test_only_all_is_a_hundred_percent(share: float, text: str) -> None:
    assert percent(share) == text
