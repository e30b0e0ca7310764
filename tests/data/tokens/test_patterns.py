"""What stands next to what in a match is read off a pattern; what is not understood is refused."""

import re
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.tokens.patterns import Unsafe, follow, read, starts, taken

ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", r"\s", "1"])
QUANTIFIERS = st.sampled_from(["", "?", "*", "+", "{2}", "{1,2}", "{0,2}", "*?", "?+"])
PATTERNS = st.recursive(
    st.builds("{}{}".format, ATOMS, QUANTIFIERS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds("(?:{}){}".format, inner, QUANTIFIERS),
    ),
    max_leaves=6,
)
TEXTS = ["".join(letters) for n in range(5) for letters in product("ab1 ", repeat=n)]


@given(PATTERNS)
def test_neighbours_in_a_match_are_neighbours_of_the_pattern(pattern: str) -> None:
    found = follow(read(pattern))
    takes = {
        atom: taken(atom) for atom in found.first | found.last | {a for p in found.pairs for a in p}
    }
    for text in TEXTS:
        if not re.fullmatch(pattern, text):
            continue
        if text == "":
            assert found.is_empty
            continue
        assert any(text[0] in takes[atom] for atom in found.first)
        assert any(text[-1] in takes[atom] for atom in found.last)
        for a, b in pairwise(text):
            assert any(a in takes[p] and b in takes[q] for p, q in found.pairs)


@given(PATTERNS)
def test_a_match_starts_at_a_start_whatever_follows(pattern: str) -> None:
    for letter in starts(read(pattern)) & set("ab1 "):
        for text in TEXTS:
            assert re.match(pattern, letter + text)


def test_a_group_that_ignores_case_takes_both_cases() -> None:
    pairs = follow(read("(?i:'s|ve)")).pairs
    assert {(tuple(taken(a)), tuple(sorted(taken(b)))) for a, b in pairs if "'" in a} == {
        (("'",), ("S", "s"))
    }


def test_a_possessive_start_takes_what_it_does_not_give_back() -> None:
    assert "a" in starts(read("a?a+"))
    assert "a" not in starts(read("a?+a+"))
    assert "b" in starts(read("a?+[ab]"))


@pytest.mark.parametrize(
    "pattern",
    [
        "^a",
        "a$",
        r"\ba",
        r"(?<=a)b",
        r"(?<!a)b",
        r"a(?=b)",
        r"(a)\1",
        "(?<name>a)",
        "(?m:a)",
        "(?i)a",
        "a{2}?",
        "a{2}+",
        "a{,2}",
        "a**",
        "*a",
        "a.b",
        r"\Xa",
        r"\Ra",
        "(a",
        "a)",
        "[a",
        "(?i:ß)",
        r"(?i:\p{L})",
        r"(?!\S)",
        r"\s*(?!\S)",
        r"a(?!\S)",
        r"\s+(?!\S)?a",
        r"\s+(?!ab)",
        r"\s+(?!\S+)",
    ],
)
def test_what_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(Unsafe):
        follow(read(pattern))


def test_a_class_that_the_library_does_not_know_is_refused() -> None:
    with pytest.raises(Unsafe):
        taken(r"\p{Nonsense}")
