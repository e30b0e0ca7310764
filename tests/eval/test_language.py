"""Which script a text is in, and texts made comparable."""

from __future__ import annotations

import pytest

from duiti.eval.language import is_other_language, script
from duiti.eval.texts import plain, squad_words, words

TEXTS = {
    "Latin": "The chemical formula of water is H2O.",
    "Chinese": "水的化学式是 H2O，由 hydrogen 和 oxygen 组成。",
    "Japanese": "水の化学式は H2O です。",
    "Hangul": "물의 화학식은 H2O입니다.",
    "Cyrillic": "Формула воды — H2O.",
    "Arabic": "الصيغة الكيميائية للماء هي H2O.",
    "Greek": "Ο τύπος του νερού",
    "Devanagari": "पानी का सूत्र",
    "Thai": "สูตรของน้ำ",
    "Hebrew": "הנוסחה של מים",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_script_of_a_text_is_told(name: str) -> None:
    assert script(TEXTS[name]) == name


def test_texts_without_letters_have_none() -> None:
    assert script("") == script("42 + 1 = 43 (！)") == ""


def test_full_width_letters_are_latin() -> None:
    assert script("Ｈｅｌｌｏ") == "Latin"


@pytest.mark.parametrize(
    ("answer", "expected", "is_other"),
    [
        (TEXTS["Latin"], TEXTS["Chinese"], True),
        (TEXTS["Chinese"], TEXTS["Latin"], True),
        (TEXTS["Japanese"], TEXTS["Chinese"], True),
        ("東京", TEXTS["Japanese"], False),  # Japanese too
        ("La formule de l'eau", TEXTS["Latin"], False),  # not told apart
        ("42", TEXTS["Chinese"], False),
        (TEXTS["Chinese"], "42", False),
        ("", TEXTS["Chinese"], False),
        ("用 Python 的 print 函数", "使用 print", False),
    ],
)
def test_an_answer_in_another_language_is_seen(answer: str, expected: str, is_other: bool) -> None:
    assert is_other_language(answer, expected) is is_other


def test_typographic_signs_are_as_ascii_has_them() -> None:
    assert plain("Ｈ２Ｏ，是“水”。（对！）") == 'H2O,是"水".(对!)'


def test_words_are_words_and_characters_where_there_are_no_spaces() -> None:
    assert words("H2O 是水，Paris-Orly 也 是") == ["h2o", "是", "水", "paris", "orly", "也", "是"]
    assert words("naïve Straße") == ["naïve", "straße"]
    assert squad_words("The 3.5 cats, a dog's 猫！") == ["35", "cats", "dogs", "猫"]
