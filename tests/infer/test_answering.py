"""Model and Chat: what a user sees of an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from duiti.config import Config
from duiti.data.jobs import prompt_service
from duiti.data.templates.template import Declared, declare, load_template
from duiti.errors import DuitiError
from duiti.infer.chat import Chat, chat_loop
from duiti.infer.generate import Sampling
from duiti.infer.model import Model, load
from duiti.run import Run
from duiti.sft import finetune
from duiti.training.log import Talk
from duiti.types import Message

ASK = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "水的化学式是 H2O 🙂, nobody knows."
SPELLED = """\
user: "Q: {content}\\n"
assistant: "The answer reads: {content}"
"""


def overfit(folder: Path, output: Path, **settings: object) -> Run:
    row = {"prompt": ASK[0]["content"], "response": ANSWER}
    config = Config(
        model=str(folder), output=str(output), epochs=60, batch_size=1, method="full",
        learning_rate=3e-3, device="cpu", proof=False, **settings,
    )  # fmt: skip
    return finetune(config, rows=[row], talk=Talk(quiet=True))


@pytest.fixture(scope="module")
def run(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return overfit(llama_dir, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return load(run, device="cpu")


def test_chat_is_the_text_of_what_is_generated(model: Model) -> None:
    prompt = model.tokenizer.encode(f"Human: {ASK[0]['content']}\nAssistant:")
    (answer,) = model.generate([prompt], max_new_tokens=100)
    assert answer.stopped
    assert model.text(answer.ids) == model.chat(ASK, max_new_tokens=100) == ANSWER


def test_pieces_never_cut_a_character_in_two(model: Model) -> None:
    pieces = list(model.chat_stream(ASK, max_new_tokens=100))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_cut_by_the_limit_is_still_shown_whole(model: Model) -> None:
    for limit in range(1, 20):
        ids = model.generate([model.prompts.prompt_ids(messages())], max_new_tokens=limit)[0].ids
        assert model.chat(ASK, max_new_tokens=limit) == model.text(ids)


def test_what_the_template_writes_before_an_answer_is_not_part_of_it_however_long(
    llama_dir: Path, tmp_path: Path
) -> None:
    """Its prefix is several tokens: in a stream it must not leak, nor eat from the answer."""
    path = tmp_path / "spelled.yaml"
    path.write_text(SPELLED)
    model = load(overfit(llama_dir, tmp_path / "run", template=str(path)), device="cpu")
    (answer,) = model.generate([model.prompts.prompt_ids(messages())], max_new_tokens=200)
    assert model.text(answer.ids) == ANSWER
    assert model.chat(ASK, max_new_tokens=200) == ANSWER


@pytest.mark.parametrize(
    ("name", "prefix"), [("human-assistant", " "), ("instruction-response", ""), ("alpaca", "")]
)
def test_the_prefix_of_an_answer_is_found(
    tokenizer: PreTrainedTokenizerFast, name: str, prefix: str
) -> None:
    assert prompt_service(load_template(name, tokenizer)).answer_prefix() == prefix


def test_the_prefix_of_a_declared_answer_is_found(tokenizer: PreTrainedTokenizerFast) -> None:
    spec = Declared(user="Q: {content}\n", assistant="A: {content}!")
    assert prompt_service(declare("x", spec, tokenizer)).answer_prefix() == "A: "


def test_base_is_the_model_before_training(model: Model, llama_dir: Path) -> None:
    plain = load(llama_dir, device="cpu")
    expected = plain.chat(ASK, max_new_tokens=12)
    with model.base():
        assert model.chat(ASK, max_new_tokens=12) == expected
    assert model.chat(ASK, max_new_tokens=100) == ANSWER
    assert model.is_tuned
    assert not plain.is_tuned


def test_a_base_model_answers_as_base_too(llama_dir: Path) -> None:
    plain = load(llama_dir, device="cpu")
    with plain.base():
        assert plain.chat(ASK, max_new_tokens=5) == plain.chat(ASK, max_new_tokens=5)


def test_sampled_chat_is_seeded(llama_dir: Path) -> None:
    plain = load(llama_dir, device="cpu")
    one, two = (
        [
            plain.chat(ASK, max_new_tokens=20, sampling=Sampling(temperature=1.0, seed=seed))
            for seed in (0, 0, 1)
        ]
        for _ in range(2)
    )
    assert one == two
    assert one[0] == one[1] != one[2]


def test_a_conversation_keeps_one_history_for_each_voice(model: Model) -> None:
    chat = Chat(model, max_new_tokens=8)
    tuned = "".join(chat.ask("Who?", "tuned"))
    base = "".join(chat.ask("Who?", "base"))
    asked = {"role": "user", "content": "Who?"}
    again = {"role": "user", "content": "And?"}
    said = {"role": "assistant", "content": tuned}
    expected = model.chat([asked, said, again], max_new_tokens=8)
    assert "".join(chat.ask("And?", "tuned")) == expected
    with model.base():
        said = {"role": "assistant", "content": base}
        expected = model.chat([asked, said, again], max_new_tokens=8)
    assert "".join(chat.ask("And?", "base")) == expected
    chat.reset()
    assert "".join(chat.ask("Who?", "tuned")) == tuned


def test_the_loop_answers_and_obeys_commands(model: Model) -> None:
    lines = iter([
        ASK[0]["content"], "/both", "/reset", ASK[0]["content"],
        "/system Be brief.", "", "/nonsense", "/quit",
    ])  # fmt: skip
    said: list[str] = []
    chat = Chat(model, max_new_tokens=100)
    chat_loop(chat, read=lambda prompt: next(lines), write=said.append)
    text = "".join(said)
    assert text.count(ANSWER) == 2
    assert "[base] " in text
    assert "[tuned] " in text
    assert chat.system == "Be brief."
    assert "/reset" in text  # help for what is no command


def test_the_loop_ends_with_the_input_and_survives_a_refusal(model: Model, tmp_path: Path) -> None:
    def read(_: str) -> str:
        raise EOFError

    chat_loop(Chat(model), read=read, write=lambda text: None)

    spec = Declared(user="Q: {content}\n")  # no place for a system message
    bound = declare("plain", spec, model.tokenizer)
    other = Model(model.hf, bound, stop_ids=model.stop_ids, name="other")
    lines = iter(["/system Be brief.", "Who?", "/quit"])
    said: list[str] = []
    chat_loop(Chat(other), read=lambda prompt: next(lines), write=said.append)
    assert "system message" in "".join(said)


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": "userr", "content": "x"}],
        [],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    ],
)
def test_messages_that_are_no_conversation_are_refused(
    model: Model, messages: list[dict[str, str]]
) -> None:
    with pytest.raises(DuitiError):
        model.chat(messages, max_new_tokens=2)


def messages() -> tuple[Message, ...]:
    return (Message(role="user", content=ASK[0]["content"]),)
