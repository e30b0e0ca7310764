"""Children: whatever happens in one, its owner says what and where, and leaves nothing behind."""

import copy
import gc
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from made import prepared
from made_blocks import same_block
from transformers import PreTrainedTokenizerFast

from duiti.data.chunk import NumberedRow
from duiti.data.jobs import PrepareOptions, make_job, prompt_service
from duiti.data.pool import Job, Pool, PromptService, encode_here
from duiti.data.templates.template import Template, load_template
from duiti.data.worker import message_from_dict, pack, unpack
from duiti.errors import DuitiError, RowError, UsageError
from duiti.types import Message, Origin, Rejected, Row, ToolCall

pytestmark = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="children are counted there"
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% if 'spin' in messages[0]['content'] %}{% for a in range(100000) %}" * 2
HANGS = ENDLESS + "{% endfor %}{% endif %}" * 2 + CHATML
GREEDY = "{% if 'eat' in messages[0]['content'] %}{{ 'x' * 9999999999 }}{% endif %}" + CHATML
EXPLODES = (
    "{% if 'eat' in messages[0]['content'] %}{% for a in range(9000) %}{% for b in range(9000) %}"
    "{{ messages[0]['content'] }}{% endfor %}{% endfor %}{% endif %}" + CHATML
)
ASK = [Message(role="user", content="q")]


def own(tokenizer: PreTrainedTokenizerFast, source: str) -> Template:
    found = copy.deepcopy(tokenizer)
    found.chat_template = source
    return load_template("model", found)


@pytest.fixture(scope="module")
def job(tokenizer: PreTrainedTokenizerFast) -> Job:
    return job_of(own(tokenizer, CHATML))


def job_of(template: Template) -> Job:
    return make_job(template, PrepareOptions(date="2026-01-01"))


def rows(*prompts: str) -> list[NumberedRow]:
    return [
        NumberedRow(Row({"prompt": prompt, "response": "a"}, Origin("f.jsonl", line)), 0)
        for line, prompt in enumerate(prompts, start=1)
    ]


def children() -> set[int]:
    """Processes of this one, the dead that nobody has waited for included."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            if int(status.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before, files = children(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) <= files


def test_chunks_come_back_in_order_however_many_children_work(job: Job) -> None:
    chunks = [rows(*(f"{number} " * (40 if number % 3 else 1) for _ in range(3)))
              for number in range(30)]  # fmt: skip
    with Pool(job, count=1) as pool:
        expected = list(pool.encode(chunks))
    with Pool(job, count=3) as pool:
        found = list(pool.encode(chunks))
    assert len(found) == 30
    for one, two in zip(found, expected, strict=True):
        assert same_block(one.block, two.block)
        assert one.account == two.account


def test_a_child_and_this_process_make_the_same_of_a_chunk(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    job = job_of(load_template("chatml", tokenizer))
    chunk = [
        *rows("one", "two"),
        NumberedRow(Rejected(Origin("f.jsonl", 3), "not JSON"), 0),
        NumberedRow(None, 0),
        NumberedRow(Row({"prompt": "x"}, Origin("g.jsonl", 1)), 1),
        NumberedRow(Rejected(Origin("g.jsonl", 2), "not JSON"), 1),
        *rows("three"),
    ]
    (expected,) = encode_here(job, [chunk])
    with Pool(job, count=1) as pool:
        (found,) = pool.encode([chunk])
    assert same_block(found.block, expected.block)
    assert found.account == expected.account
    assert [line[:2] for line in found.account.rejected] == [(0, 3), (1, 1), (1, 2)]


def test_a_chunk_is_packed_and_unpacked_unchanged(tokenizer: PreTrainedTokenizerFast) -> None:
    (chunk,) = encode_here(job_of(load_template("chatml", tokenizer)), [rows("one", "two")])
    values, payload = pack(chunk)
    assert same_block(unpack(values, payload), chunk.block)
    (empty,) = encode_here(job_of(load_template("chatml", tokenizer)), [[]])
    assert len(unpack(*pack(empty))) == 0


def test_a_message_is_sent_and_received_unchanged() -> None:
    call = ToolCall(name="f", arguments={"a": [1, None]}, id="7")
    message = Message(role="assistant", content="", tool_calls=(call,), reasoning="r", weight=0.5)
    assert message_from_dict(asdict(message)) == message


def test_few_chunks_are_read_ahead(job: Job) -> None:
    read = 0

    def chunks() -> Iterator[list[NumberedRow]]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield rows("q")

    with Pool(job, count=2) as pool:
        found = pool.encode(chunks())
        next(found)
        assert read <= 8
        found.close()


@pytest.mark.parametrize(
    ("source", "prompt", "said"),
    [
        (HANGS, "spin", "does not come to an end"),
        (GREEDY, "eat", "writes more than memory holds"),
        (EXPLODES, "eat the whole text, again and again, as often as it says", "without bound"),
    ],
    ids=["hangs", "greedy", "explodes"],
)
def test_a_template_that_runs_away_is_stopped_within_ten_seconds_and_named_with_the_row(
    tokenizer: PreTrainedTokenizerFast, source: str, prompt: str, said: str
) -> None:
    started = time.monotonic()
    with (
        Pool(job_of(own(tokenizer, source)), count=1) as pool,
        pytest.raises(UsageError, match=r"the template model .*f\.jsonl:3") as caught,
    ):
        list(pool.encode([rows("fine", "fine", prompt, "fine")]))
    assert said in caught.value.what or "does not come to an end" in caught.value.what
    assert time.monotonic() - started < 10


def test_a_child_that_is_killed_is_reported_with_its_row(job: Job) -> None:
    with Pool(job, count=1) as pool:
        found = pool.encode([rows("one", "two")] * 50)
        next(found)
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(DuitiError, match=r"died.*SIGKILL") as caught:
            list(found)
    assert caught.value.exit_code == 1
    assert "goes on from there" in caught.value.fix


def test_children_end_when_the_reader_fails(job: Job) -> None:
    def chunks() -> Iterator[list[NumberedRow]]:
        yield from [rows("q")] * 20
        raise ConnectionError("gone")

    with Pool(job, count=2) as pool, pytest.raises(ConnectionError, match="gone"):
        list(pool.encode(chunks()))


def test_a_pool_that_is_never_used_starts_nothing(job: Job) -> None:
    before = children()
    with Pool(job, count=4):
        assert children() == before


# Prompts


@pytest.mark.parametrize("source", ["chatml", "child"])
def test_a_service_renders_what_the_template_says(
    tokenizer: PreTrainedTokenizerFast, job: Job, source: str
) -> None:
    job = job if source == "child" else job_of(load_template("chatml", tokenizer))
    service = PromptService(job)
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert service.prompt(ASK) == text
    assert service.prompt_ids(ASK) == tokenizer.encode(text)
    answered = [*ASK, Message(role="assistant", content="a")]
    assert service.transcript(answered).startswith(f"{text}a<|im_end|>")
    assert service.answer_prefix() == ""
    service.close()
    assert service.prompt(ASK) == text  # it may be asked again
    service.close()


def test_a_service_that_is_forgotten_ends_its_child(job: Job) -> None:
    service = PromptService(job)
    before = children()
    service.prompt(ASK)
    assert len(children() - before) == 1
    del service
    gc.collect()
    assert children() == before


def test_a_service_survives_a_refusal_and_a_dead_child(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    )
    service = prompt_service(own(tokenizer, refuses + CHATML))
    with pytest.raises(RowError, match="No system"):
        service.prompt([Message(role="system", content="s"), *ASK])
    before = service.prompt(ASK)
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(DuitiError, match="died"):
        service.prompt(ASK)
    assert service.prompt(ASK) == before
    service.close()


def test_a_template_that_hangs_on_a_chat_is_stopped_too(tokenizer: PreTrainedTokenizerFast) -> None:
    service = prompt_service(own(tokenizer, HANGS))
    assert service.prompt(ASK)
    with pytest.raises(UsageError, match="does not come to an end"):
        service.prompt([Message(role="user", content="spin")])
    service.close()


def test_a_control_token_in_a_chat_is_ordinary_text(tokenizer: PreTrainedTokenizerFast) -> None:
    service = prompt_service(load_template("chatml", tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = service.prompt_ids([Message(role="user", content="a<|im_end|>b")])
    assert ids.count(end) == 1
    assert tokenizer.decode(ids).count("<|im_end|>") == 2


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_child_does_not_need_of_the_environment_it_does_not_get(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with Pool(job_of(own(tokenizer, CHATML)), count=count) as pool:
        list(pool.encode([rows("q")]))
        (child,) = children()
        environment = Path(f"/proc/{child}/environ").read_bytes()
    assert b"hunter2" not in environment
    assert b"PYTHONPATH" in environment


def test_few_rows_need_one_child(tokenizer: PreTrainedTokenizerFast) -> None:
    seen: set[int] = set()

    def some() -> Iterator[dict[str, Any]]:
        for number in range(4):
            seen.update(children())
            yield {"prompt": f"q{number}", "response": "a"}

    before = children()
    prepared(own(tokenizer, CHATML), some(), workers=8)
    assert len(seen - before) <= 1
