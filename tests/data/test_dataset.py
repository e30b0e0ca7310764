"""What is trained and what is measured on: lengths, splits, leaks, and errors whose fix works."""

import copy
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import NO_LIMIT, prepared, settled, write_rows
from transformers import PreTrainedTokenizerFast

from duiti.data.dataset import (
    DataSet,
    Limits,
    OverLength,
    refusal,
    rows_refusal,
    settle_data,
    short_enough,
)
from duiti.data.templates.template import Template, load_template
from duiti.errors import DataError

SECRET = "Zq7xSecretXq9"
LIMITS = Limits(max_length=NO_LIMIT, positions=NO_LIMIT)


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("human-assistant", tokenizer)


def pairs(*answers: str) -> list[dict[str, Any]]:
    """Rows that ask different things, briefly."""
    return [{"prompt": f"{n}", "response": answer} for n, answer in enumerate(answers)]


def refused(data: DataSet, limits: Limits = LIMITS, **settings: Any) -> DataError:
    error = refusal(data, limits, **{"on_bad_row": "refuse", **settings})
    assert isinstance(error, DataError)
    assert error.exit_code == 3
    return error


# Length


def test_a_row_that_fits_exactly_is_kept_and_one_token_less_drops_it(template: Template) -> None:
    length = settled(template, pairs("Paris")).longest
    assert settled(template, pairs("Paris"), max_length=length).ledger.total.kept == 1
    short = settled(template, pairs("Paris"), max_length=length - 1)
    assert (short.ledger.total.kept, short.ledger.total.dropped) == (0, 1)
    assert (short.longest, short.max_length) == (length, length - 1)


def test_a_conversation_that_is_too_long_is_dropped_whole(template: Template) -> None:
    turns = ["one", "two", "three", "four " * 40]
    chat = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    data = settled(template, [{"messages": chat}, *pairs("a")], max_length=60)
    assert (data.ledger.total.kept, data.ledger.total.dropped) == (1, 1)
    assert [str(example.origin) for example in data.train] == ["<rows>:2"]


def test_an_unrolled_conversation_is_dropped_whole_and_its_copies_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A template that rewrites history makes an example of each turn; a weight repeats them."""
    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}…{% else %}{{ m['content'] }}"
        "{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def chat(last: str) -> dict[str, Any]:
        texts = ["q", "first answer", "q", last]
        roles = ("user", "assistant", "user", "assistant")
        return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]}

    file = write_rows(tmp_path / "a.jsonl", [chat("short"), chat("long " * 60), chat("brief")])
    data = settled(load_template("model", rewriting), f"{file}@2", cache=False, max_length=80)
    assert [example.origin.line for example in data.train] == [1] * 4 + [3] * 4
    total = data.ledger.total
    assert (total.rows, total.kept, total.dropped, total.examples) == (6, 4, 2, 8)


def test_more_than_the_allowed_share_of_the_answer_tokens_lost_stops_the_run(
    template: Template,
) -> None:
    long = "x " * 30
    cost = settled(template, pairs(long)).ledger.total.supervised
    one = settled(template, pairs("a")).ledger.total.supervised
    # lost / (lost + kept) = 1 % where kept = 99 lost
    enough = -(-99 * cost // one)
    limits = Limits(max_length=40, positions=512)
    fine = settled(template, pairs(long, *["a"] * enough), max_length=40)
    assert fine.ledger.total.dropped == 1
    assert refusal(fine, limits, on_bad_row="refuse") is None
    assert refused(fine, replace(limits, over_length="error"))
    assert refused(fine, replace(limits, max_lost=0.0))
    over = settled(template, pairs(long, *["a"] * (enough - one)), max_length=40)
    error = refused(over, limits)
    assert f"1 of {over.ledger.total.rows} rows are longer than max_length 40" in error.what
    assert error.fix == f"--max-length {over.longest}"
    assert refusal(over, replace(limits, max_lost=0.02), on_bad_row="refuse") is None


def test_the_share_that_is_lost_does_not_depend_on_validation(template: Template) -> None:
    long = {"prompt": "q", "response": " ".join(["word"] * 60)}
    rows = [{"prompt": f"q{n}", "response": f"a {n}"} for n in range(40)] + [long]
    found = prepared(template, rows)
    length = int(np.sort(found.store.lengths)[-2])
    plain = settle_data(found, max_length=length).ledger.total
    half = settle_data(found, 0.5, max_length=length).ledger.total
    assert half.val > 0
    assert (plain.answers, plain.answers_cut) == (half.answers, half.answers_cut)


def test_over_length_error_lets_rows_pass_that_fit(template: Template) -> None:
    data = settled(template, pairs("a", "b"), max_length=40)
    limits = Limits(max_length=40, positions=512, over_length="error")
    assert refusal(data, limits, on_bad_row="refuse") is None


@pytest.mark.parametrize("over_length", ["drop", "error", "truncate"])
@pytest.mark.parametrize("max_length", [20, 60, 100])
@pytest.mark.parametrize("words", [10, 40, 90])
def test_each_fix_that_is_named_works_as_it_is_written(
    template: Template, over_length: OverLength, max_length: int, words: int
) -> None:
    """Followed one after the other, the first setting of each leads to data that is accepted."""
    rows = [*pairs(*["a b c"] * 20), {"prompt": "long", "response": "x " * words}]
    limits = Limits(max_length=max_length, positions=100, over_length=over_length)
    for _ in range(4):
        cut_to = limits.max_length if limits.over_length == "truncate" else None
        data = settled(template, rows, truncate_to=cut_to, max_length=limits.max_length)
        error = refusal(data, limits, on_bad_row="refuse")
        if error is None:
            return
        flags = re.findall(r"--[a-z-]+ [\w.]+(?: --[a-z-]+ [\w.]+)*", error.fix)
        assert flags, error.fix
        for accepting in flags[1:]:  # each of them, not only the first
            assert refusal(*applied(template, rows, limits, accepting), on_bad_row="refuse") is None
        _, limits = applied(template, rows, limits, flags[0])
    pytest.fail(f"no end: {error}")


def applied(
    template: Template, rows: list[dict[str, Any]], limits: Limits, flags: str
) -> tuple[DataSet, Limits]:
    words = shlex.split(flags)
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        kind = {"max_length": int, "max_lost": float, "over_length": str}[name]
        limits = replace(limits, **{name: kind(value)})
    cut_to = limits.max_length if limits.over_length == "truncate" else None
    data = settled(template, rows, truncate_to=cut_to, max_length=limits.max_length)
    return data, limits


@given(words=st.lists(st.integers(1, 30), min_size=1, max_size=8), limit=st.integers(8, 60))
def test_truncating_keeps_the_longest_beginning_that_teaches_something(
    template: Template, words: list[int], limit: int
) -> None:
    rows = pairs(*("w " * n for n in words))
    whole = prepared(template, rows).store
    data = settled(template, rows, truncate_to=limit, max_length=limit)
    by_line = {example.origin.line: example for example in data.train}
    end = template.tokenizer.eos_token_id
    for example in whole:
        kept = by_line.get(example.origin.line)
        start = int(np.flatnonzero(example.labels != -100)[0])
        if start >= limit:
            assert kept is None
            continue
        assert kept is not None
        assert len(kept) == min(len(example), limit)
        assert kept.input_ids.tolist() == example.input_ids[: len(kept)].tolist()
        assert (kept.labels[-1] == end) == (len(kept) == len(example))


# Rows that cannot be used


def test_bad_rows_refuse_the_run_by_file_and_line(template: Template, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": "q", "response": "a"})] + [f'{{"prompt": "{SECRET}"}}'] * 25
    file.write_text("\n".join(lines))
    data = settled(template, file, cache=False)
    error = refused(data)
    assert error.what.startswith("25 of 26 rows cannot be used:")
    assert f'{file}:2: has "prompt" but no answer' in error.what
    assert f"{file}:21:" in error.what
    assert f"{file}:22:" not in error.what
    assert "… and 5 more" in error.what
    assert "--on-bad-row drop" in error.fix
    assert SECRET not in str(error)
    assert refusal(data, LIMITS, on_bad_row="drop") is None
    assert [row.origin.line for row in data.ledger.rejected] == list(range(2, 27))


def test_nothing_to_train_on_is_refused(template: Template) -> None:
    assert refused(settled(template, [])).what == "there are no rows"
    rejected = settled(template, [{"prompt": "q"}])
    assert "no row is left to train on" in refused(rejected, on_bad_row="drop").what


def test_a_fault_that_hides_the_rest_of_a_file_is_refused_whatever_may_be_dropped(
    template: Template, tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,response\nq,a\n"never closed,a\nq,a\n')
    data = settled(template, file, cache=False)
    assert "a.csv:3" in refused(data, on_bad_row="drop").what


def test_rows_to_measure_on_are_refused_for_what_they_are(template: Template) -> None:
    found = prepared(
        template, [*pairs("a"), {"prompt": "q"}, {"prompt": "q", "response": "x " * 90}]
    )
    kept, ledger = short_enough(found, 60)
    assert len(kept) == 1
    error = rows_refusal(ledger, Limits(max_length=60, positions=60), on_bad_row="refuse")
    assert error is not None
    assert "1 of 3 rows cannot be used" in error.what
    limits = Limits(max_length=60, positions=60)
    error = rows_refusal(ledger, limits, on_bad_row="drop")
    assert error is not None
    assert error.fix == "split them, or leave them out: --on-bad-row drop"


# Validation rows


def numbered(count: int) -> list[dict[str, Any]]:
    words = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "heron", "iris"]
    rows = []
    for n in range(count):
        said = " ".join(words[(n * 7 + k * (n % 5 + 1)) % 9] + str(n * 13 + k) for k in range(6))
        rows.append({"prompt": f"tell {n * 37} {said}", "response": f"{said} {n}"})
    return rows


@given(data=st.data())
def test_a_share_never_separates_what_belongs_together(
    template: Template, data: st.DataObject
) -> None:
    rows = numbered(30)
    for _ in range(data.draw(st.integers(1, 12))):
        row = dict(rows[data.draw(st.integers(0, 29))])
        change = data.draw(st.sampled_from(["same", "other answer", "chat", "nearly"]))
        if change == "other answer":
            row["response"] = f"something else {len(rows)}"
        elif change == "chat":
            row = {"messages": [{"role": "user", "content": row["prompt"]},
                                {"role": "assistant", "content": row["response"]}]}  # fmt: skip
        elif change == "nearly":
            row["response"] += "!"
        rows.append(row)
    order = data.draw(st.permutations(range(len(rows))))
    seed = data.draw(st.integers(0, 3))
    found = settle_data(prepared(template, rows), 0.3, max_length=NO_LIMIT, seed=seed)
    asked = [
        {bytes(each) for each in store.digests()[:, 2:].copy(order="C")}
        for store in (found.train, found.val)
    ]
    assert asked[0].isdisjoint(asked[1])
    assert len(found.train) + len(found.val) == len(rows)
    total = found.ledger.total
    assert (total.kept, total.val) == (len(found.train), len(found.val))
    # Stable where rows are put into another order.
    again = settle_data(
        prepared(template, [rows[i] for i in order]), 0.3, max_length=NO_LIMIT, seed=seed
    )
    texts = [
        sorted(template.tokenizer.decode(example.input_ids) for example in each.val)
        for each in (found, again)
    ]
    assert texts[0] == texts[1]


def test_rows_of_the_validation_file_are_left_out_of_training_counted_and_listed(
    template: Template, tmp_path: Path
) -> None:
    rows = numbered(12)
    val = write_rows(tmp_path / "val.jsonl", [
        rows[3],
        {**rows[5], "response": "another answer"},
        {**rows[7], "prompt": rows[7]["prompt"], "response": rows[7]["response"]},
        *numbered(20)[15:18],
    ])  # fmt: skip
    train = write_rows(tmp_path / "train.jsonl", [*rows, rows[3]])
    held = prepared(template, val, cache=False)
    data = settle_data(prepared(template, train, cache=False), held, max_length=NO_LIMIT)
    assert sorted(set(range(1, 14)) - {e.origin.line for e in data.train}) == [4, 6, 8, 13]
    assert len(data.val) == 6
    assert data.ledger.total.leaked == 4
    assert data.ledger.total.leaked_tokens > 0
    assert data.leaks is not None
    assert (data.leaks.exact_rows, data.leaks.prompt_rows) == (3, 1)
    assert (str(data.leaks.exact[0][0]), str(data.leaks.exact[0][1])) == (
        f"{train}:4", f"{val}:1",
    )  # fmt: skip
    (warning,) = [line for line in data.warnings if "validation data" in line]
    assert warning.startswith("4 rows are in the validation data as well")
    assert f"{train}:4 and {val}:1" in warning
    assert refusal(data, LIMITS, on_bad_row="refuse") is None
    assert warning in refused(data, is_strict=True).what


def test_a_validation_file_is_read_by_the_same_rules(template: Template) -> None:
    rows = numbered(4)
    held = prepared(template, [*numbered(8)[6:], {"prompt": SECRET}])
    data = settle_data(prepared(template, rows), held, max_length=NO_LIMIT)
    assert data.val_ledger is not None
    assert "<rows>:3" in refused(data).what
    assert refusal(data, LIMITS, on_bad_row="drop") is None
    nothing = settle_data(prepared(template, rows), prepared(template, []), max_length=NO_LIMIT)
    assert refused(nothing).what == "there are no rows"


# Warnings


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "q", "response": "a", "id": 1}, *pairs("b")], 'the field "id" is not read'),
        (
            [{"prompt": "q\nHuman: x", "response": "a"}, *pairs("b")],
            'begins like a turn, "Human:" (1 row)',
        ),
        ([*pairs("a"), *pairs("a")], "1 row says what another row says, such as <rows>:1 and"),
        (
            [{"prompt": "q", "response": "a"}, {"prompt": "q", "response": "b"}],
            "1 prompt with different answers, such as <rows>:1 and <rows>:2",
        ),
        (
            [*numbered(9), {**numbered(1)[0], "response": numbered(1)[0]["response"] + "!"}],
            "1 row says nearly what another row says",
        ),
    ],
)
def test_each_warning_is_a_refusal_where_that_is_asked_for(
    template: Template, rows: list[dict[str, Any]], said: str
) -> None:
    data = settled(template, rows)
    assert refusal(data, LIMITS, on_bad_row="refuse") is None
    assert any(said in line for line in data.warnings), data.warnings
    error = refused(data, is_strict=True)
    assert said in error.what
    assert "--strict" in error.fix
    held = settle_data(prepared(template, numbered(9)[6:]), prepared(template, rows),
                       max_length=NO_LIMIT)  # fmt: skip
    if "not read" in said or "turn" in said:
        assert any(line.startswith("val: ") and said in line for line in held.warnings)


def test_clean_data_passes_the_strictest(template: Template) -> None:
    data = settled(template, numbered(10))
    assert data.warnings == ()
    assert refusal(data, LIMITS, on_bad_row="refuse", is_strict=True) is None
