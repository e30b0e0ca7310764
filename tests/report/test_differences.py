"""What is marked in an answer is what differs, and nothing of either text is lost."""

import difflib
import time

from hypothesis import given
from hypothesis import strategies as st

from duiti.report.differences import Piece, _longest, differences

WORDS = st.lists(st.sampled_from(["a", "b", "the", " ", "水", "的", ".", "42", "\n"]), max_size=14)


def test_words_are_compared_as_words() -> None:
    assert differences("It is 42 °C.", expected="It is 40 °C.") == [
        Piece("same", "It is "),
        Piece("missing", "40"),
        Piece("extra", "42"),
        Piece("same", " °C."),
    ]


def test_chinese_is_compared_character_by_character() -> None:
    assert differences("沸点是九十度。", expected="沸点是一百度。") == [
        Piece("same", "沸点是"),
        Piece("missing", "一百"),
        Piece("extra", "九十"),
        Piece("same", "度。"),
    ]


def test_answers_without_common_words_are_not_marked_all_over() -> None:
    assert differences("I do not know that at all", expected="Paris is the capital") is None


def test_an_answer_that_goes_on_and_on_is_marked_from_where_it_does() -> None:
    found = differences("Paris. " + "And so on. " * 40, expected="Paris.")
    assert found is not None
    assert found[0] == Piece("same", "Paris.")
    assert [piece.kind for piece in found] == ["same", "extra"]


@given(answer=WORDS, expected=WORDS)
def test_nothing_is_lost(answer: list[str], expected: list[str]) -> None:
    left, right = "".join(answer), "".join(expected)
    found = differences(left, expected=right)
    if found is not None:
        assert "".join(piece.text for piece in found if piece.kind != "missing") == left
        assert "".join(piece.text for piece in found if piece.kind != "extra") == right


def _length_by_table(left: list[str], right: list[str]) -> int:
    """The textbook's table."""
    row = [0] * (len(right) + 1)
    for one in left:
        before = row
        row = [0]
        for j, other in enumerate(right):
            row.append(before[j] + 1 if one == other else max(before[j + 1], row[j]))
    return row[-1]


@given(left=WORDS, right=WORDS)
def test_the_common_part_is_as_long_as_the_table_of_the_textbook_says(
    left: list[str], right: list[str]
) -> None:
    pairs = _longest(left, right)
    assert all(left[i] == right[j] for i, j in pairs)
    assert pairs == sorted(set(pairs))
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert len(pairs) == _length_by_table(left, right)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    assert len(pairs) >= sum(block.size for block in matcher.get_matching_blocks())


def test_texts_made_to_be_slow_are_compared_at_once() -> None:
    started = time.process_time()
    differences("的是" * 2000, expected="是的的" * 1300)
    assert time.process_time() - started < 20  # a table of 4,000 × 4,000 takes longer in Python
