"""In which script a text is written: enough to see that a model answers in another language.

    script("水的化学式是 H2O。")                         # "Chinese"
    is_other_language("The formula is H2O.", "水的化学式是 H2O。")   # True

Languages that share a script (English and French) are not told apart. No list of words, no model.
"""

from __future__ import annotations

from collections import Counter

from duiti.eval.texts import ALONE, plain, script_of

_KANA_SHARE = 0.1
"""Of Han and Kana together, from which a text is Japanese: in Japanese about half is Kana."""
_MOST = 2000
"""Characters that are looked at."""


def script(text: str) -> str:
    """What most of the text is written in, `Chinese` and `Japanese` told apart; empty: it has no
    letters. A character of a script without spaces weighs as much as a word of one with."""
    counts = _counts(plain(text[:_MOST]))
    together = counts["Han"] + counts["Kana"]
    if together:
        is_japanese = counts["Kana"] >= _KANA_SHARE * together
        del counts["Han"], counts["Kana"]
        counts["Japanese" if is_japanese else "Chinese"] = together
    # Equal counts: the first by name, so that the answer does not depend on their order.
    return min(counts, key=lambda name: (-counts[name], name)) if counts.total() else ""


def is_other_language(answer: str, expected: str) -> bool:
    """Whether the answer is in another script than the expected one; without letters in both of
    them there is nothing to tell."""
    wanted, found = script(expected), script(answer)
    if not wanted or not found or wanted == found:
        return False
    # A few Japanese words may all be Han.
    return {wanted, found} != {"Chinese", "Japanese"} or wanted == "Chinese"


def _counts(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    before = ""
    for character in text:
        here = script_of(character)
        if here and (here in ALONE or here != before):
            counts[here] += 1
        before = here
    return counts
