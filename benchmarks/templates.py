"""What training makes of each stock template: writes the tables of docs/templates.md and its
Chinese sister.

    python -m benchmarks.templates [--write]

Every template that the package `trl` ships meets every conversation of the suite. The same code
proves the pages in `tests/data/test_oracle.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from benchmarks.oracle.exceptions import EXCEPTIONS
from benchmarks.oracle.stock import AS_TEXT, SUITE, spec_of, stock_names, tokenizer_of, twin_names
from benchmarks.oracle.twins import compare, explain
from duiti.data.tokens.encode import EncodeOptions, Encoder
from duiti.errors import RowError

ROOT = Path(__file__).parent.parent
Language = Literal["en", "zh"]
PAGES: dict[Language, Path] = {
    "en": ROOT / "docs" / "templates.md",
    "zh": ROOT / "docs" / "templates.zh-CN.md",
}
PARTS = ("stock", "twins")
"""Names of the tables; each stands between two marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of the suite under one template."""

    name: str
    proven: int
    """Conversations that can be trained on."""
    unrolled: frozenset[str]
    """Groups of conversations whose turns need contexts of their own."""
    notes: frozenset[str]
    refusals: frozenset[str]
    exceptions: frozenset[str] | None
    """How it differs from its twin; None: it has none."""


def main() -> None:
    """Print the tables, or put them into the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    arguments = parser.parse_args()
    for language, path in PAGES.items():
        text = page(language)
        if arguments.write:
            path.write_text(text, encoding="utf-8")
        else:
            print(text)


def page(language: Language) -> str:
    """A page with its tables as they should be."""
    text = PAGES[language].read_text(encoding="utf-8")
    tables = {"stock": stock_table(language), "twins": twin_table(language)}
    for part in PARTS:
        begin, end = f"<!-- {part}: made by benchmarks/templates.py -->\n", f"<!-- /{part} -->"
        before, _, rest = text.partition(begin)
        header = "\n".join(rest.splitlines()[:2])  # the titles are the page's own language
        after = rest.partition(end)[2]
        text = f"{before}{begin}{header}\n{tables[part]}\n{end}{after}"
    return text


def stock_table(language: Language) -> str:
    """A line for each template."""
    return "\n".join(_line(outcome_of(name), language) for name in stock_names())


def twin_table(language: Language) -> str:
    """A line for each exception: where it occurs, and why ours is right."""
    lines = []
    for exception, reasons in EXCEPTIONS.items():
        names = [name for name in twin_names() if exception in (outcome_of(name).exceptions or ())]
        reason = reasons[1 + ("en", "zh").index(language)].replace("|", r"\|")
        where = _listed(_families(names), language)
        lines.append(f"| {_name(exception, language)} | {where} | {reason} |")
    return "\n".join(lines)


@cache
def outcome_of(name: str) -> Outcome:
    """Train on every conversation of the suite under a template."""
    tokenizer = Tokenizer.from_str(tokenizer_of(name).backend_tokenizer.to_str())
    encoder = Encoder(spec_of(name), tokenizer, EncodeOptions())
    proven = 0
    unrolled, notes, refusals = set(), set(), set()
    for conversation, sample in SUITE.items():
        try:
            encoded = encoder.encode(sample)
        except RowError as error:
            refusals.add(str(error))
            continue
        proven += 1
        notes |= encoded.notes
        if len(encoded.pieces) > 1:
            word = conversation.split()[0]
            unrolled.add(_GROUPS.get(word, word))
    exceptions = None
    if name in twin_names():
        found = [explain(compare(name, conversation)) for conversation in (*SUITE, AS_TEXT)]
        exceptions = frozenset(item for each in found for item in each.exceptions)
    return Outcome(
        name=name,
        proven=proven,
        unrolled=frozenset(unrolled),
        notes=frozenset(notes),
        refusals=frozenset(refusals),
        exceptions=exceptions,
    )


_GROUPS = {"three": "turns", "two": "tools", "call": "tools", "newlines": "white space"}
"""By the first word of a conversation's name; the others by that word."""
_UNROLLED = {
    "turns": ("several turns", "多轮"),
    "thinking": ("thinking", "思考"),
    "white space": ("white space at a border", "边界上的空白"),
    "tools": ("tools", "工具"),
}
_CHANGES = {
    "leaves out the reasoning": ("reasoning left out", "丢掉思考"),
    "strips white space around an answer": ("answers stripped", "裁掉回答首尾空白"),
    "strips white space around a user": ("questions stripped", "裁掉提问首尾空白"),
    "rewrites or leaves out the text": ("answers rewritten", "改写回答"),
    "leaves out a tool call": ("only one call kept", "只留一个调用"),
    "leaves out the tools": ("tools left out", "丢掉工具说明"),
    "lacks the cue": ("no cue behind results", "工具结果后没有引出部分"),
}
_REFUSALS = {
    "cannot write tool calls": ("tool calls", "工具调用"),
    "System role": ("system messages", "system 消息"),
    "does not show the text": ("plain text", "纯文本"),
    "UndefinedError": ("plain text", "纯文本"),
    "single tool-calls": ("two calls at once", "同时两个调用"),
    "closes the thinking": ("thoughts", "思考"),
    "(message 4) differently": ("calls with text", "带文字的调用"),
    "(message 6) differently": ("a second calling turn", "第二轮调用"),
}
"""What the table says of a group, a note or a reason that contains a text."""


def _line(outcome: Outcome, language: Language) -> str:
    if outcome.exceptions is None:
        twin = "–"
    else:
        order = [name for name in EXCEPTIONS if name in outcome.exceptions]
        twin = _listed([_name(exception, language) for exception in order], language, empty="=")
    cells = [
        outcome.name,
        f"{outcome.proven}/{len(SUITE)}",
        _words(_UNROLLED, outcome.unrolled, language),
        _words(_CHANGES, outcome.notes, language),
        _words(_REFUSALS, outcome.refusals, language),
        twin,
    ]
    return f"| {' | '.join(cells)} |"


def _words(
    table: Mapping[str, tuple[str, str]], sentences: frozenset[str], language: Language
) -> str:
    """The short words for some notes or reasons, in the order of their table."""
    known = {item for item in sentences if any(key in item for key in table)}
    assert known == sentences, f"no short word for one of {sorted(sentences - known)}"
    column = ("en", "zh").index(language)
    found = [
        words[column] for key, words in table.items() if any(key in item for item in sentences)
    ]
    return _listed(list(dict.fromkeys(found)), language)


def _listed(words: Sequence[str], language: Language, *, empty: str = "–") -> str:
    return ("、" if language == "zh" else ", ").join(words) or empty


def _name(exception: str, language: Language) -> str:
    return EXCEPTIONS[exception][0] if language == "zh" else exception


def _families(names: list[str]) -> list[str]:
    """`qwen3_*` for all of a family that has more than one."""
    all_twins = twin_names()
    families: dict[str, list[str]] = {}
    for name in all_twins:
        families.setdefault(name.partition("_")[0], []).append(name)
    shown = []
    for family, members in families.items():
        found = [name for name in members if name in names]
        if len(found) == len(members) and len(members) > 1:
            shown.append(f"{family}*")
        else:
            shown += found
    return shown


if __name__ == "__main__":
    main()
