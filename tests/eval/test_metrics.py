"""Metrics against values by hand, and against sacrebleu where it is installed."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.errors import UsageError
from duiti.eval.metrics import (
    KNOWN,
    MEANS,
    contains,
    exact_match,
    find_metric,
    find_metrics,
    json_valid,
    longest_common_subsequence,
    rouge_l,
    token_f1,
)


def of_rows(name: str, pairs: list[tuple[str, str]]) -> float:
    metric = find_metric(name)
    return float(metric.value(np.array([metric.sums(a, e) for a, e in pairs]).sum(axis=0)))


def test_exact_match_forgives_white_space_around_only() -> None:
    assert exact_match(" Paris.\n", "Paris.") == 1.0
    assert exact_match("paris.", "Paris.") == 0.0
    assert exact_match("Pa ris.", "Paris.") == 0.0


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("It is Paris, of course.", "paris", 1.0),
        ("It is\n  New   York", "new york", 1.0),
        ("答案是：４２，对吗？", "42,对", 1.0),
        ("London", "Paris", 0.0),
        ("anything", "", 0.0),
        (" ", "", 1.0),
    ],
)
def test_contains_looks_past_case_width_and_spaces(
    answer: str, expected: str, score: float
) -> None:
    assert contains(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, 2.5e3, null]}', 1.0),
        (' "text"\n', 1.0),
        ("9" * 10_000, 1.0),
        ("NaN", 0.0),
        ('{"a": Infinity}', 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1} and more', 0.0),
        ("```json\n{}\n```", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_is_valid_as_a_whole_or_not(answer: str, valid: float) -> None:
    assert json_valid(answer, "") == valid


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        # As SQuAD 1.1's own script says: articles and punctuation do not count.
        ("The cat sat, on a mat!", "cat sat on mat", 1.0),
        ("Don't", "dont", 1.0),
        ("the cat", "a dog", 0.0),
        ("cat cat dog", "cat dog dog", 2 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("a b c d", "b c", 2 * (2 / 3) * 1 / (5 / 3)),  # "a" is an article
        ("", "", 1.0),
        ("", "cat", 0.0),
        # 水 的 分 子 | 分 子 式: two of four, two of three
        ("水的分子", "分子式", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("水，是Ｈ２Ｏ。", "水是h2o", 1.0),
        ("用GPT4回答", "用 gpt4 回答！", 1.0),
    ],
)
def test_token_f1_by_hand(answer: str, expected: str, score: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        # rouge-score 0.1.2, RougeScorer(["rougeL"]), fmeasure
        ("the cat sat on the mat", "the cat was on the mat", 0.8333333333333334),
        ("police killed the gunman", "the gunman police killed", 0.5),
        ("A, b; c-d", "c d a b", 0.5),
        ("nothing here", "at all", 0.0),
        # 北 京 在 中 国 | 北 京 是 中 国 首 都: 北京中国 is common
        ("北京在中国", "北京是中国首都", 2 * 4 / (5 + 7)),
    ],
)
def test_rouge_l_by_hand(answer: str, expected: str, score: float) -> None:
    assert rouge_l(answer, expected) == pytest.approx(score)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_longest_common_subsequence_is_that_of_trying_all(one: str, other: str) -> None:
    def is_in(part: tuple[str, ...], text: str) -> bool:
        left = iter(text)
        return all(letter in left for letter in part)

    longest = max(
        length
        for length in range(len(one) + 1)
        if any(is_in(part, other) for part in combinations(one, length))
    )
    assert longest_common_subsequence(list(one), list(other)) == longest


def test_a_regex_is_searched_for_and_named_as_it_was_asked_for() -> None:
    metric = find_metric(r"regex:^\d+$")
    assert metric.name == r"regex:^\d+$"
    assert metric.sums("42", "") == (1.0, 1.0)
    assert metric.sums("42.", "") == (0.0, 1.0)
    assert find_metric("regex:猫").sums("一只猫", "")[0] == 1.0


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="is no pattern"):
        find_metric("regex:(")
    with pytest.raises(UsageError, match="1 to 4096 characters"):
        find_metric("regex:")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$"])
def test_a_pattern_that_does_not_come_to_an_end_is_refused_before_anything_is_measured(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duiti.eval.patterns.LIMIT_S", 0.1)
    with pytest.raises(UsageError, match="does not come to an end"):
        find_metric(f"regex:{pattern}")


def test_a_pattern_that_stumbles_over_an_answer_ends_in_time_and_does_not_quote_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("duiti.eval.patterns.LIMIT_S", 0.1)
    score = find_metric("regex:(z+)+$").sums  # of what is tried, none has a z
    with pytest.raises(UsageError, match="does not come to an end") as caught:
        score("z" * 5000 + "?", "")
    assert "zzz" not in str(caught.value)


SENTENCES = [
    "The cat sat on the mat.",
    "A cat was sitting on that mat, wasn't it?",
    "水的化学式是 H2O。",
    "水的分子式为H2O，对吗？",
    "Nobody knows; everybody asks.",
    "北京是中国的首都",
    "",
]


def draw(seed: int, sentences: list[str]) -> list[tuple[str, str]]:
    drawn = random.Random(seed)
    return [(drawn.choice(sentences), drawn.choice(sentences)) for _ in range(6)]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_is_that_of_sacrebleu_on_the_whole_text(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    english = [s for s in SENTENCES if s.isascii()]
    chinese = [s for s in SENTENCES if not s.isascii()]
    for sentences, how in ((english[:-1], "13a"), (chinese, "zh")):
        pairs = draw(seed, sentences)
        answers, expected = [a for a, _ in pairs], [[e for _, e in pairs]]
        found = sacrebleu.corpus_bleu(answers, expected, tokenize=how).score / 100
        assert of_rows("bleu", pairs) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_chrf_is_that_of_sacrebleu_on_the_whole_text(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = draw(seed, SENTENCES)
    found = sacrebleu.corpus_chrf([a for a, _ in pairs], [[e for _, e in pairs]]).score / 100
    assert of_rows("chrf", pairs) == pytest.approx(found, abs=1e-12)


def test_bleu_of_japanese_is_by_character() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = [("東京は日本の首都です", "東京が日本の首都です")]
    found = sacrebleu.corpus_bleu([pairs[0][0]], [[pairs[0][1]]], tokenize="char").score / 100
    assert 0.5 < found < 1
    assert of_rows("bleu", pairs) == pytest.approx(found)


def test_without_sacrebleu_bleu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    with pytest.raises(UsageError, match="needs sacrebleu") as caught:
        find_metric("bleu")
    assert caught.value.fix == "pip install 'duiti[metrics]'"
    assert find_metric("chrf").name == "chrf"  # it needs none


def own(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(f"def score(answer, expected):\n    {body}\n")
    return f"{path}:score"


def test_a_function_of_the_users_is_a_metric(tmp_path: Path) -> None:
    name = own(tmp_path, "return len(answer) / len(expected)")
    assert of_rows(name, [("ab", "abcd"), ("abc", "a")]) == 1.75
    assert of_rows(own(tmp_path, "return answer == expected"), [("a", "a"), ("b", "a")]) == 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError(answer)", "raised KeyError at .*mine.py:2"),
        ("return None", "returned a value of type NoneType"),
        ("return answer", "returned a value of type str"),
        ("return float('nan')", "returned a number that is not finite"),
    ],
)
def test_a_function_that_fails_is_told_without_the_answer(
    tmp_path: Path, body: str, message: str
) -> None:
    metric = find_metric(own(tmp_path, body))
    with pytest.raises(UsageError, match=message) as caught:
        metric.sums("S3cret", "x")
    assert "S3cret" not in str(caught.value)


def test_a_function_that_is_not_there_is_refused(tmp_path: Path) -> None:
    own(tmp_path, "return 1")
    with pytest.raises(UsageError, match="There is: score"):
        find_metric(f"{tmp_path / 'mine.py'}:other")
    with pytest.raises(UsageError, match="no such file"):
        find_metric("nothing.py:score")


def test_unknown_metrics_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="exact_match") as caught:
        find_metrics(["contains", "exact_mach"])
    assert all(name in caught.value.fix for name in KNOWN)


def test_a_metric_that_is_asked_for_twice_is_measured_once() -> None:
    assert [m.name for m in find_metrics(["chrf", "contains", "chrf"])] == ["chrf", "contains"]


@pytest.mark.parametrize("name", [*MEANS, "chrf"])
def test_an_answer_that_is_the_expected_one_has_the_highest_score(name: str) -> None:
    for text in ('{"a": 1}', '{"问": "猫。"}'):
        assert of_rows(name, [(text, text)]) == 1.0
