"""Duplicates, contradictions, groups and leaks against their definitions, row by row."""

import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import Row, store_of

from duiti.data.repeats.duplicates import MAX_EXAMPLES, find_duplicates, find_leaks
from duiti.data.repeats.split import split
from duiti.data.storage.store import ExampleStore

# Texts that share nothing, long enough to be near to something.
ORIGINALS = [list(range(100 * n, 100 * n + 60)) for n in range(1, 7)]


def _near(n: int) -> list[int]:
    """53 of 56 shingles are those of the original, which makes 53/59 = 0.9."""
    return [*ORIGINALS[n][:-3], 7, 8, 9]


def _origins(pairs: Sequence[tuple[object, object]]) -> list[tuple[str, str]]:
    return [(str(one), str(other)) for one, other in pairs]


def test_repeated_rows_are_counted_beyond_the_first_of_each() -> None:
    said = ["a", "b", "a", "c", "a", "b"]
    found = find_duplicates(store_of([Row(n, [n] * 3, name) for n, name in enumerate(said, 1)]))
    assert (found.num_rows, found.exact_rows, found.near_rows, found.contradictions) == (6, 3, 0, 0)
    assert _origins(found.exact) == [("f:1", "f:3"), ("f:1", "f:5"), ("f:2", "f:6")]
    assert found.groups.tolist() == [0, 1, 0, 3, 0, 1]


def test_prompts_with_several_answers_are_counted_once_each() -> None:
    rows = [
        Row(1, [1], "a", "q"),
        Row(2, [2], "b", "q"),
        Row(3, [1], "a", "q"),
        Row(4, [3], "c", "q"),
        Row(5, [4], "d", "other"),
        Row(6, [4], "d", "other"),
    ]
    found = find_duplicates(store_of(rows))
    assert (found.exact_rows, found.contradictions) == (2, 1)
    assert _origins(found.contradicting) == [("f:1", "f:2"), ("f:1", "f:4")]
    assert found.groups.tolist() == [0, 0, 0, 0, 4, 4]


def test_near_rows_are_found_and_are_not_exact_ones() -> None:
    rows = [
        Row(1, ORIGINALS[0], "a"),
        Row(2, ORIGINALS[1], "b"),
        Row(3, _near(0), "c"),
        Row(4, _near(0), "c"),
        Row(5, ORIGINALS[2], "d"),
    ]
    found = find_duplicates(store_of(rows))
    assert (found.exact_rows, found.near_rows, found.contradictions) == (1, 1, 0)
    assert _origins(found.near) == [("f:1", "f:3")]
    assert found.groups.tolist() == [0, 1, 0, 0, 4]


def test_groups_connect_over_everything_that_rows_can_have_in_common() -> None:
    rows = [
        Row(1, ORIGINALS[0], "a", "p"),
        Row(2, [1, 2, 3], "b", "p"),  # the prompt of 1
        Row(3, _near(0), "c", "q"),  # near 1
        Row(4, [4, 5], "d", "q"),  # the prompt of 3
        Row(5, [9], "e"),
        Row(5, [8, 9], "e"),  # the same row
        Row(1, [6], "d", "q", file=1),  # the same as 4, in another file
        Row(1, ORIGINALS[0], "a", "p"),  # row 1 again, for its weight
    ]
    found = find_duplicates(store_of(rows))
    assert (found.num_rows, found.exact_rows, found.contradictions) == (6, 1, 2)
    assert _origins(found.exact) == [("f:4", "g:1")]
    assert found.groups.tolist() == [0, 0, 0, 0, 4, 4, 0, 0]


def test_a_row_that_its_weight_repeats_is_no_duplicate() -> None:
    rows = [Row(n, ORIGINALS[n], str(n)) for n in (1, 2, 1, 1, 2, 3)]
    found = find_duplicates(store_of(rows))
    assert (found.num_rows, found.exact_rows, found.near_rows) == (3, 0, 0)
    assert found.groups.tolist() == [0, 1, 0, 0, 1, 5]


def test_a_row_of_several_examples_is_compared_by_its_longest() -> None:
    rows = [
        Row(1, ORIGINALS[0][:20], "a"),
        Row(1, ORIGINALS[0], "a"),
        Row(2, ORIGINALS[1][:20], "b"),
        Row(2, _near(0), "b"),
        Row(3, ORIGINALS[1][:20], "c"),  # as the first of row 2, which does not count
    ]
    found = find_duplicates(store_of(rows))
    assert (found.num_rows, found.near_rows) == (3, 1)
    assert found.groups.tolist() == [0, 0, 0, 0, 4]


def test_a_system_prompt_that_all_rows_have_makes_them_no_duplicates() -> None:
    system = list(range(5000, 5300))
    rows = [Row(n, [*system, *range(30 * n, 30 * n + 30)], str(n)) for n in range(1, 9)]
    assert find_duplicates(store_of(rows)).near_rows == 0
    rows.append(Row(9, [*system, *range(30, 59), 1], "9"))
    found = find_duplicates(store_of(rows))
    assert _origins(found.near) == [("f:1", "f:9")]


def _sum(a: int, b: int, wording: int) -> list[int]:
    """Tokens of "What is 23+45? … 68", a token per digit, in one of three wordings."""
    one, other, result = ([int(digit) for digit in str(number)] for number in (a, b, a + b))
    words = list(range(100 * (wording + 1), 100 * (wording + 1) + 40))
    return [*words[:20], *one, 11, *other, 12, *words[20:], *one, 11, *other, 13, *result, 14]


@pytest.mark.parametrize("wordings", [1, 3])
@pytest.mark.parametrize("count", [6, 30, 1500])
def test_sums_of_other_numbers_are_no_duplicates(count: int, wordings: int) -> None:
    numbers = [(n % 90 + 10, n // 90 + 10) for n in range(count)]
    sums = [_sum(*own, n % wordings) for n, own in enumerate(numbers)]
    rows = [Row(n, tokens, str(n)) for n, tokens in enumerate(sums, 1)]
    assert find_duplicates(store_of(rows)).near_rows == 0


def test_a_hundred_thousand_times_the_same_row_is_one_group() -> None:
    rows = [Row(n, ORIGINALS[0], "a") for n in range(1, 100_001)]
    found = find_duplicates(store_of(rows))
    assert (found.exact_rows, found.near_rows) == (99_999, 0)
    assert found.groups.max() == 0
    assert len(found.exact) == MAX_EXAMPLES


def test_one_prompt_with_a_hundred_thousand_answers_is_one_group() -> None:
    rows = [Row(n, [1, 2, n], str(n), "q") for n in range(1, 100_001)]
    found = find_duplicates(store_of(rows))
    assert (found.exact_rows, found.near_rows, found.contradictions) == (0, 0, 1)
    assert found.groups.max() == 0


def test_a_chain_of_near_rows_is_one_group() -> None:
    tokens = list(range(1000, 5000))
    rows = [Row(n + 1, tokens[5 * n : 5 * n + 100], str(n)) for n in range(600)]  # 91 of 101
    found = find_duplicates(store_of(rows))
    assert found.near_rows == 599
    assert found.groups.max() == 0


def test_a_report_names_rows_and_quotes_none() -> None:
    rows = [
        Row(1, ORIGINALS[0], "a", "p"),
        Row(2, ORIGINALS[0], "a", "p"),
        Row(3, _near(0), "b", "p"),
    ]
    found = find_duplicates(store_of(rows)).as_dict()
    assert json.loads(json.dumps(found)) == {
        "rows": 3,
        "exact_rows": 1,
        "near_rows": 1,
        "contradictions": 1,
        "exact": [["f:1", "f:2"]],
        "near": [["f:1", "f:3"]],
        "contradicting": [["f:1", "f:3"]],
    }


def test_nothing_has_no_duplicates() -> None:
    found = find_duplicates(ExampleStore())
    assert (found.num_rows, found.exact_rows, found.near_rows, found.contradictions) == (0, 0, 0, 0)
    assert found.groups.shape == (0,)
    leaks = find_leaks(ExampleStore(), ExampleStore())
    assert (leaks.num_rows, leaks.mask.shape) == (0, (0,))


@st.composite
def _rows(draw: st.DrawFn) -> list[Row]:
    """Rows of few texts, in versions that are near each other, with few prompts."""
    rows: list[Row] = []
    for line in range(1, draw(st.integers(1, 25)) + 1):
        text, version = draw(st.integers(0, 4)), draw(st.integers(0, 3))
        tokens = [*ORIGINALS[text][: 60 - version], *range(version)]
        prompt = draw(st.sampled_from(["", "", "p", "q"])) and f"{draw(st.integers(0, 1))}"
        said = f"{text} {version} {prompt}"
        rows += [Row(line, tokens[:cut], said, prompt) for cut in draw(_CUTS)]
    return rows


_CUTS = st.sampled_from([(60,), (60,), (60,), (20, 60), (10, 40, 60)])


def _partition(rows: Sequence[Row], groups: np.ndarray) -> set[frozenset[int]]:
    """Groups as sets of lines."""
    members: dict[int, set[int]] = {}
    for row, group in zip(rows, groups.tolist(), strict=True):
        members.setdefault(group, set()).add(row.line)
    return {frozenset(lines) for lines in members.values()}


def _by_definition(rows: list[Row]) -> set[frozenset[int]]:
    longest = {row.line: row for row in sorted(rows, key=lambda row: len(row.tokens))}
    sets = {
        line: {tuple(row.tokens[i : i + 5]) for i in range(len(row.tokens) - 4)}
        for line, row in longest.items()
    }
    conversations = {row.said: sets[line] for line, row in longest.items()}
    counts: dict[tuple[int, ...], int] = {}
    for own in conversations.values():
        for one in own:
            counts[one] = counts.get(one, 0) + 1
    common = {one for one, count in counts.items() if count >= 5}
    group = {line: {line} for line in longest}
    for a, b in combinations(longest, 2):
        one, other = sets[a] - common, sets[b] - common
        is_near = min(len(one), len(other)) >= 8 and len(one & other) >= 0.8 * len(one | other)
        is_same = longest[a].said == longest[b].said
        if is_same or (longest[a].asked and longest[a].asked == longest[b].asked) or is_near:
            for line in group[a] | group[b]:
                group[line] |= group[a] | group[b]
                group[a] = group[b] = group[line]
            merged = frozenset(group[a])
            for line in merged:
                group[line] = group[a]
    return {frozenset(lines) for lines in group.values()}


@settings(max_examples=200)
@given(rows=_rows(), data=st.data())
def test_groups_are_those_of_the_definition_in_any_order_and_any_cut(
    rows: list[Row], data: st.DataObject
) -> None:
    found = find_duplicates(store_of(rows))
    assert _partition(rows, found.groups) == _by_definition(rows)
    assert (found.groups <= np.arange(len(rows))).all()

    cuts = data.draw(st.lists(st.integers(1, len(rows)), max_size=5))
    again = find_duplicates(store_of(rows, cuts=cuts))
    assert again.as_dict() == found.as_dict()
    assert again.groups.tolist() == found.groups.tolist()

    lines = data.draw(st.permutations(sorted({row.line for row in rows})))
    moved = [row for line in lines for row in rows if row.line == line]
    other = find_duplicates(store_of(moved))
    assert _partition(moved, other.groups) == _partition(rows, found.groups)
    assert other.as_dict() == found.as_dict()


@settings(max_examples=100)
@given(rows=_rows(), share=st.floats(0.1, 0.9), seed=st.integers(0, 2**32))
def test_a_split_by_groups_has_no_leaks(rows: list[Row], share: float, seed: int) -> None:
    store = store_of(rows)
    sides = split(store, share=share, seed=seed, groups=find_duplicates(store).groups)
    train, val = (store.select(indices) for indices in sides)
    assert not find_leaks(train, val).mask.any()


def test_leaks_are_counted_under_the_first_kind_that_applies() -> None:
    train = [
        Row(1, ORIGINALS[0], "a", "p"),  # as it is in val
        Row(2, [1, 2], "b", "p"),  # another answer to a prompt of val
        Row(3, _near(1), "c"),  # near a row of val
        Row(4, ORIGINALS[2], "d"),
        Row(5, [3], "e", "p"),
        Row(5, ORIGINALS[3], "e", "p"),
        Row(6, _near(2), "f"),  # near one of train only
    ]
    val = [
        Row(7, ORIGINALS[1], "g"),
        Row(8, ORIGINALS[0], "a", "p"),
        Row(9, ORIGINALS[0], "a", "p"),
        Row(7, ORIGINALS[4], "h", file=1),
    ]
    leaks = find_leaks(store_of(train), store_of(val, files=("v", "w")))
    assert leaks.mask.tolist() == [True, True, True, False, True, True, False]
    assert (leaks.exact_rows, leaks.prompt_rows, leaks.near_rows, leaks.num_rows) == (1, 2, 1, 4)
    assert json.loads(json.dumps(leaks.as_dict())) == {
        "rows": 4,
        "exact_rows": 1,
        "prompt_rows": 2,
        "near_rows": 1,
        "exact": [["f:1", "v:8"]],
        "prompt": [["f:2", "v:8"], ["f:5", "v:8"]],
        "near": [["f:3", "v:7"]],
    }


def test_all_examples_and_repeats_of_a_row_leak_with_it() -> None:
    train = [
        Row(1, [1], "a"),
        Row(2, _near(0)[:20], "b"),
        Row(2, _near(0), "b"),
        Row(1, [1], "a"),
        Row(2, _near(0), "b"),
        Row(3, _near(0), "b"),
    ]
    leaks = find_leaks(store_of(train), store_of([Row(1, ORIGINALS[0], "v")]))
    assert leaks.mask.tolist() == [False, True, True, False, True, True]
    assert (leaks.near_rows, leaks.num_rows) == (2, 2)


def test_leaks_into_a_side_with_many_alike_rows_are_found() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 1000, (60, 160))

    def version(n: int) -> list[int]:
        tokens = base[n % 60].copy()
        tokens[rng.integers(0, 160)] = 1000 + n  # 146 of 166 shingles in common
        return tokens.tolist()

    train = [Row(n, version(n), f"t{n}") for n in range(1, 3001)]
    val = [Row(n, version(n), f"v{n}") for n in range(1, 3001) if n % 60 < 50]
    leaks = find_leaks(store_of(train), store_of(val))
    assert leaks.mask.tolist() == [n % 60 < 50 for n in range(1, 3001)]
    assert len(leaks.near) == MAX_EXAMPLES
