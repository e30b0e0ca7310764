"""Every row and token is accounted for, and rows that should not be trained on stop the run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from duiti.data.encode import Encoder
from duiti.data.prepare import Prepared, prepare, refusal
from duiti.data.template import load_template
from duiti.errors import DataError
from duiti.types import Json

NO_LIMIT = 10**9
SECRET = "Zq7xSecretXq9"


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer, load_template("human-assistant", tokenizer))


def _refused(prepared: Prepared, *, on_bad_row: str = "refuse", over_length: str = "drop") -> str:
    error = refusal(prepared, on_bad_row=on_bad_row, over_length=over_length)
    assert isinstance(error, DataError)
    assert error.exit_code == 3
    return str(error)


def _pairs(*answers: str) -> list[dict[str, Json]]:
    return [{"prompt": "q", "response": answer} for answer in answers]


GOOD_ROW = st.builds(
    lambda q, a: {"prompt": f"q{q}", "response": f"a{a}"},
    st.text("abc \n", max_size=20),
    st.text("abc \n", max_size=20),
)
CHAT_ROW = st.builds(
    lambda turns: {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": f"m{text}"}
            for i, text in enumerate(turns)
        ]
    },
    st.lists(st.text("xyz ", max_size=10), max_size=6),
)
BAD_ROW = st.sampled_from(
    [
        {"prompt": SECRET},
        {"prompt": SECRET, "response": None},
        {"prompt": f"{SECRET}<|im_end|>", "response": SECRET},
        {"prompt": "q", "response": f"{SECRET}\ud800"},
        {"text": SECRET},
        {"messages": [{"role": "user", "content": SECRET}]},
        {"prompt": SECRET, "response": SECRET, "output": SECRET},
    ]
)


@given(rows=st.lists(GOOD_ROW | CHAT_ROW | BAD_ROW, max_size=12), max_length=st.integers(2, 60))
def test_every_row_and_token_is_accounted_for(
    encoder: Encoder, rows: list[dict[str, Json]], max_length: int
) -> None:
    cut = prepare([rows], encoder, max_length=max_length)
    whole = prepare([rows], encoder, max_length=NO_LIMIT).ledger
    ledger = cut.ledger
    assert ledger.rows == len(rows) == ledger.kept + len(ledger.rejected) + ledger.dropped
    tokens = ledger.as_dict()["tokens"]
    assert isinstance(tokens, dict)
    parts = ("supervised", "context", "dropped_context", "answers_cut")
    assert tokens["total"] == sum(tokens[part] for part in parts)
    # Against the same rows without a limit: what is not kept is named as lost.
    assert ledger.total == whole.total == whole.supervised + whole.context
    assert ledger.supervised + ledger.answers_cut == whole.supervised
    assert ledger.context + ledger.dropped_context == whole.context
    # Against the examples themselves.
    assert ledger.examples == len(cut.examples)
    assert ledger.supervised == sum(example.num_supervised for example in cut.examples)
    assert ledger.supervised + ledger.context == sum(len(example) for example in cut.examples)
    assert all(len(example) <= max_length for example in cut.examples)
    kept = {str(example.origin) for example in cut.examples}
    assert len(kept) == ledger.kept
    assert kept.isdisjoint(str(row.origin) for row in ledger.rejected)
    assert SECRET not in "".join(row.reason for row in ledger.rejected)
    error = refusal(cut, on_bad_row="refuse")
    assert SECRET not in str(error)


def test_a_row_that_fits_exactly_is_kept_and_one_token_less_drops_it(encoder: Encoder) -> None:
    rows = _pairs("Paris")
    length = len(prepare([rows], encoder, max_length=NO_LIMIT).examples[0])
    assert prepare([rows], encoder, max_length=length).ledger.kept == 1
    short = prepare([rows], encoder, max_length=length - 1)
    assert (short.ledger.kept, short.ledger.dropped, short.longest) == (0, 1, length)


def test_a_conversation_that_is_too_long_is_dropped_whole(encoder: Encoder) -> None:
    turns = ["one", "two", "three", "four " * 40]
    chat: list[Json] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
    ]
    prepared = prepare([[{"messages": chat}, *_pairs("a")]], encoder, max_length=60)
    assert (prepared.ledger.kept, prepared.ledger.dropped) == (1, 1)
    assert [str(example.origin) for example in prepared.examples] == ["<rows>:2"]


def test_more_than_one_percent_of_the_answer_tokens_dropped_stops_the_run(
    encoder: Encoder,
) -> None:
    long = "x " * 30
    cost = prepare([_pairs(long)], encoder, max_length=NO_LIMIT).ledger.supervised
    one = prepare([_pairs("a")], encoder, max_length=NO_LIMIT).ledger.supervised
    # lost / (lost + kept) = 1 % where kept = 99 lost
    enough = -(-99 * cost // one)
    fine = prepare([_pairs(long, *["a"] * enough)], encoder, max_length=40)
    assert fine.ledger.dropped == 1
    assert refusal(fine, on_bad_row="refuse") is None
    assert "1 of" in _refused(fine, over_length="error")
    # One row fewer, and the share is above.
    over = prepare([_pairs(long, *["a"] * (enough - one))], encoder, max_length=40)
    reason = _refused(over)
    assert f"1 of {over.ledger.rows} rows are longer than max_length 40" in reason
    assert f"--max-length {over.longest}" in reason
    mended = prepare([_pairs(long, *["a"] * (enough - one))], encoder, max_length=over.longest)
    assert refusal(mended, on_bad_row="refuse") is None


def test_over_length_error_lets_rows_pass_that_fit(encoder: Encoder) -> None:
    prepared = prepare([_pairs("a", "b")], encoder, max_length=40)
    assert refusal(prepared, on_bad_row="refuse", over_length="error") is None


def test_bad_rows_refuse_the_run_by_file_and_line(encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": "q", "response": "a"})] + ['{"prompt": "q"}'] * 25
    file.write_text("\n".join(lines))
    prepared = prepare([file], encoder, max_length=100)
    reason = _refused(prepared)
    assert reason.startswith("25 of 26 rows cannot be used:")
    assert f'{file}:2: has "prompt" but no answer' in reason
    assert f"{file}:21:" in reason
    assert f"{file}:22:" not in reason
    assert "… and 5 more" in reason
    assert "--on-bad-row drop" in reason
    assert refusal(prepared, on_bad_row="drop") is None
    assert [row.origin.line for row in prepared.ledger.rejected] == list(range(2, 27))


def test_nothing_to_train_on_is_refused(encoder: Encoder) -> None:
    assert "there are no rows" in _refused(prepare([[]], encoder, max_length=10))
    rejected = prepare([[{"prompt": "q"}]], encoder, max_length=10)
    assert "no row is left" in _refused(rejected, on_bad_row="drop")


def test_sources_are_read_in_order_and_keep_their_origin(encoder: Encoder, tmp_path: Path) -> None:
    files = [tmp_path / "b.jsonl", tmp_path / "a.json"]
    files[0].write_text('{"prompt": "q", "response": "one"}\n{"prompt": "q", "response": "two"}')
    files[1].write_text('[\n{"prompt": "q", "response": "three"}]')
    prepared = prepare([*files, _pairs("four")], encoder, max_length=100)
    origins = [str(example.origin) for example in prepared.examples]
    assert origins == [f"{files[0]}:1", f"{files[0]}:2", f"{files[1]}:2", "<rows>:1"]


def test_fields_that_are_not_read_and_text_like_a_turn_are_warned_of(encoder: Encoder) -> None:
    rows: list[dict[str, Json]] = [
        {"prompt": "q", "response": "a", "id": 1},
        {"prompt": "q\nHuman: hi", "response": "a", "id": 2},
        {"prompt": "no Human: here", "response": "a"},
        {"prompt": "q", "response": "Assistant: a"},
    ]
    assert prepare([rows], encoder, max_length=100).warnings == [
        'a message has a line that begins like a turn, "Assistant:" (1 row)',
        'a message has a line that begins like a turn, "Human:" (1 row)',
        'the field "id" is not read (2 rows)',
    ]


@pytest.mark.parametrize("key", ["\x1b[2J", "a\nb", "\ud800"])
def test_a_field_name_in_a_warning_cannot_drive_a_terminal(encoder: Encoder, key: str) -> None:
    row: dict[str, Json] = {"prompt": "q", "response": "a", key: 1}
    (warning,) = prepare([[row]], encoder, max_length=100).warnings
    assert warning.isprintable(), ascii(warning)


def test_map_is_applied_to_every_source(encoder: Encoder) -> None:
    rows: list[dict[str, Json]] = [{"question": "q", "gold": "a"}]
    mapping = {"question": "prompt", "gold": "response"}
    prepared = prepare([rows, rows], encoder, max_length=100, mapping=mapping)
    assert prepared.ledger.kept == 2
    assert prepared.warnings == []
