"""The recipe from end to end: twelve rows, every method, tied and untied; PEFT and plain
transformers open what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from made import examples_of, write_rows
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from duiti.config import Config, load_config
from duiti.errors import DataError, DuitiError, UsageError
from duiti.infer.model import load
from duiti.manifest import Damaged
from duiti.run import Run, list_runs, open_run
from duiti.sft import finetune
from duiti.training.log import Talk

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

METHODS = ["lora", "last-n", "full"]
ROWS = [
    {"prompt": f"Who wrote number {n}?" + " Please say." * (n % 4), "response": f"It was {n * 7}."}
    for n in range(12)
]
VAL = [{"prompt": f"Who wrote number {n}?", "response": f"It was {n * 7}."} for n in range(20, 24)]
TIMING = {"tokens_per_s", "peak_memory_bytes"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


@pytest.fixture(scope="session")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "val.jsonl", VAL)


def settings(model: Path, data: Path, output: Path, **more: Any) -> Config:
    values = {
        "data": (str(data),), "model": str(model), "output": str(output), "device": "cpu",
        "epochs": 2, "batch_size": 5, "learning_rate": 1e-2, "proof": False, **more,
    }  # fmt: skip
    return Config(**values)


def train(model: Path, data: Path, output: Path, **more: Any) -> Run:
    return finetune(settings(model, data, output, **more), talk=Talk(quiet=True))


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path
) -> Any:
    """runs(which, method): made once."""

    @cache
    def make(which: str, method: str) -> Run:
        folder = request.getfixturevalue(which)
        output = tmp_path_factory.mktemp("runs") / f"{which}-{method}"
        last = {"last_n": {"layers": 1}} if method == "last-n" else {}
        return train(folder, data, output, method=method, **last)

    return make


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["llama_dir", "qwen3_dir"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ids() -> Tensor:
    return torch.arange(4, 64).reshape(3, 20)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids()).logits


def opened(run: Run) -> PreTrainedModel:
    """As anybody opens it, without duiti."""
    if run.config.method != "lora":
        return AutoModelForCausalLM.from_pretrained(run.path)
    named = json.loads((run.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), run.path)


def weights(run: Run) -> Path:
    name = "adapter_model" if run.config.method == "lora" else "model"
    return run.path / f"{name}.safetensors"


def steady(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in run.metrics]


def assert_same_run(one: Run, two: Run) -> None:
    assert one.path != two.path
    assert weights(one).read_bytes() == weights(two).read_bytes()
    assert steady(one) == steady(two)
    names = {str(p.relative_to(one.path)) for p in one.path.rglob("*")}
    assert names == {str(p.relative_to(two.path)) for p in two.path.rglob("*")}
    for name in names - {"config.yaml", "env.json", "metrics.jsonl", "README.md", "report.html"}:
        if (one.path / name).is_file():
            assert (one.path / name).read_bytes() == (two.path / name).read_bytes(), name


# What a run leaves


def test_a_run_opens_without_duiti_and_computes_the_same(
    runs: Any, which: str, method: str
) -> None:
    run = runs(which, method)
    found, expected = logits(load(run, device="cpu").hf), logits(opened(run))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    base = logits(AutoModelForCausalLM.from_pretrained(run.config.model))
    assert (found - base).abs().max() > 0.1


def test_loading_needs_only_the_path(
    runs: Any, which: str, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = runs(which, method)
    monkeypatch.chdir(tmp_path)
    expected = logits(load(run, device="cpu").hf)
    for name in (run.path, str(run.path)):
        assert torch.equal(logits(load(name, device="cpu").hf), expected)


def test_a_run_on_a_relative_model_path_loads_from_elsewhere(
    llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama_dir.parent)
    run = train(Path(llama_dir.name), data, tmp_path / "run", epochs=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load(run.path, device="cpu")


@pytest.mark.parametrize("method", ["full", "last-n"])
def test_a_whole_model_loads_where_its_base_is_gone(
    llama_dir: Path, data: Path, tmp_path: Path, method: str
) -> None:
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    run = train(base, data, tmp_path / "run", epochs=1, method=method)
    shutil.rmtree(base)
    load(run.path, device="cpu")


def test_the_saved_template_renders_the_prompts_of_training(
    runs: Any, which: str, method: str
) -> None:
    run = runs(which, method)
    plain = AutoTokenizer.from_pretrained(run.path)
    model = load(run, device="cpu")
    examples = examples_of(model.template, ROWS)
    for row, example in zip(ROWS, examples, strict=True):
        served = plain.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        given = int((example.labels == -100).sum())
        assert example.input_ids[:given].tolist() == list(served)


def test_the_generation_config_lists_the_trained_stop(runs: Any, which: str, method: str) -> None:
    run = runs(which, method)
    found = GenerationConfig.from_pretrained(run.path)
    tokenizer = AutoTokenizer.from_pretrained(run.path)
    assert tokenizer.eos_token_id in found.eos_token_id
    assert load(run, device="cpu").stop_ids == set(found.eos_token_id)


def test_a_stop_that_is_not_the_tokenizers_end_is_listed_and_obeyed(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    run = train(llama_dir, data, tmp_path / "run", template="chatml", epochs=30, method="full",
                learning_rate=3e-3)  # fmt: skip
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(run.path), opened_tokenizer(run)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in plain.generation_config.eos_token_id
    assert tokenizer.eos_token_id in plain.generation_config.eos_token_id
    # Plain transformers, without a hint, stops where the answer ends.
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ROWS[3]["prompt"]}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    found = plain.generate(**prompt, do_sample=False, max_new_tokens=60)
    answer = found[0, prompt["input_ids"].shape[1] :].tolist()
    assert answer[-1] == end
    assert len(answer) < 60
    asked = [{"role": "user", "content": ROWS[3]["prompt"]}]
    assert load(run, device="cpu").chat(asked) == tokenizer.decode(answer[:-1])


def opened_tokenizer(run: Run) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(run.path)


def test_a_pad_token_with_id_zero_is_kept(data: Path, llama_dir: Path, tmp_path: Path) -> None:
    """Zero is an id, not a missing one."""
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    assert tokenizer.pad_token_id == 0
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    tokenizer.save_pretrained(base)
    values = json.loads((base / "generation_config.json").read_text())
    values["pad_token_id"] = None
    (base / "generation_config.json").write_text(json.dumps(values))
    run = train(base, data, tmp_path / "run", epochs=1)
    assert GenerationConfig.from_pretrained(run.path).pad_token_id == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_with_a_sloppy_generation_config_still_saves(
    llama_dir: Path, data: Path, tmp_path: Path, method: str
) -> None:
    """Llama 2 ships temperature without do_sample: transformers refuses to save that."""
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    path = base / "generation_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "do_sample": False, "temperature": 0.9, "top_p": 0.6}))
    run = train(base, data, tmp_path / "run", epochs=1, method=method)
    assert load(run, device="cpu").stop_ids


def test_what_a_method_does_not_train_is_bitwise_that_of_the_base(
    runs: Any, which: str, method: str
) -> None:
    run = runs(which, method)
    base = load_file(Path(run.config.model) / "model.safetensors")
    if method == "lora":
        stored = load_file(weights(run))
        assert len(stored) == 28
        assert {t.dtype for t in stored.values()} == {torch.float32}
        for name, parameter in load(run, device="cpu").hf.named_parameters():
            if "lora_" not in name:
                assert torch.equal(parameter, base[name.replace(".base.", ".")])
        return
    found = load_file(weights(run))
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        is_open = method == "full" or name.startswith(("model.layers.1.", "model.norm"))
        assert torch.equal(tensor, base[name]) != is_open, name


def test_the_run_says_what_happened(runs: Any, which: str, method: str) -> None:
    run = runs(which, method)
    assert run.is_finished
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert run.metrics[-1]["epoch"] == 2.0
    model = load(run, device="cpu")
    examples = examples_of(model.template, ROWS)
    assert sum(line["supervised_tokens"] for line in run.metrics) == 2 * sum(
        example.num_supervised for example in examples
    )
    assert sum(line["num_tokens"] for line in run.metrics) == 2 * sum(map(len, examples))
    ledger = json.loads((run.path / "data" / "ledger.json").read_text())["data"]
    assert ledger["rows"] == ledger["kept"] == 12
    assert (run.path / "README.md").read_text().count("duiti") >= 2
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]


# The first loss


def test_the_first_loss_is_that_of_a_page_of_plain_transformers(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    run = train(llama_dir, data, tmp_path / "run", batch_size=12, epochs=1)
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    model = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    total, count = 0.0, 0
    for row in ROWS:
        prompt = tokenizer.encode(f"Human: {row['prompt']}\nAssistant:")
        answer = [*tokenizer.encode(f" {row['response']}"), tokenizer.eos_token_id]
        with torch.no_grad():
            out = model(torch.tensor([prompt + answer])).logits[0]
        predicted = out[len(prompt) - 1 : -1]
        total += cross_entropy(predicted, torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    assert run.metrics[0]["supervised_tokens"] == count
    assert run.metrics[0]["loss"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT
@pytest.mark.parametrize("method", METHODS)
def test_an_architecture_with_conv1d_layers_is_trained_by_every_method(
    llama_dir: Path, data: Path, tmp_path: Path, method: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    run = train(tmp_path / "gpt2", data, tmp_path / "run", batch_size=12, epochs=3, method=method)
    found, expected = logits(load(run, device="cpu").hf), logits(opened(run))
    # PEFT adds what an adapter gives in another order than ours: a few roundings.
    tolerance = 1e-5 if method == "lora" else 0.0
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]


def test_an_adapter_on_an_untied_head_is_trained_or_refused(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    try:
        run = train(
            llama_dir, data, tmp_path / "run", lora={"target_modules": ("lm_head", "q_proj")}
        )
    except UsageError:
        return
    stored = load_file(weights(run))
    assert all(bool(t.any()) for name, t in stored.items() if "lora_B" in name)
    found, expected = logits(load(run, device="cpu").hf), logits(opened(run))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# The same again


def test_the_same_command_twice_gives_the_same_bytes(
    runs: Any, which: str, method: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    last = {"last_n": {"layers": 1}} if method == "last-n" else {}
    folder = request.getfixturevalue(which)
    torch.manual_seed(12345)  # what was drawn before must not matter
    assert_same_run(
        runs(which, method), train(folder, data, tmp_path / "again", method=method, **last)
    )


def test_dropout_too_is_a_function_of_the_seed(llama_dir: Path, data: Path, tmp_path: Path) -> None:
    found = [
        train(llama_dir, data, tmp_path / f"{n}", lora={"dropout": 0.3}, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert_same_run(found[0], found[1])
    assert weights(found[0]).read_bytes() != weights(found[2]).read_bytes()


def test_the_config_of_a_run_repeats_it(runs: Any, which: str, method: str, tmp_path: Path) -> None:
    run = runs(which, method)
    config = load_config(run.path / "config.yaml", {"output": str(tmp_path / "again")})
    open_ = {key for key, value in config.model_dump().items() if value == "auto"}
    assert open_ == {"anchor", "max_memory", "workers"}  # without effect on the result here
    assert_same_run(run, finetune(config, talk=Talk(quiet=True)))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_split_into_micro_batches_does_not_change_the_first_update(
    llama_dir: Path, data: Path, tmp_path: Path, method: str
) -> None:
    one, two = (
        train(llama_dir, data, tmp_path / f"{tokens}", method=method, micro_batch_tokens=tokens)
        for tokens in (1, 4096)
    )
    assert one.metrics[0]["loss"] == pytest.approx(two.metrics[0]["loss"], rel=1e-6)
    assert one.metrics[0]["grad_norm"] == pytest.approx(two.metrics[0]["grad_norm"], rel=1e-5)
    assert [line["supervised_tokens"] for line in one.metrics] == [
        line["supervised_tokens"] for line in two.metrics
    ]


@pytest.mark.parametrize("method", METHODS)
def test_validation_leaves_no_trace(
    llama_dir: Path, data: Path, val: Path, tmp_path: Path, method: str
) -> None:
    more: dict[str, Any] = {"lora": {"dropout": 0.2}} if method == "lora" else {}
    more["eval_every"] = 1  # forgetting is measured in both
    without = train(llama_dir, data, tmp_path / "off", method=method, **more)
    with_ = train(llama_dir, data, tmp_path / "on", method=method, val=str(val), **more)
    assert weights(without).read_bytes() == weights(with_).read_bytes()
    measured = steady(with_)
    losses = [line.pop("val_loss") for line in measured]
    assert measured == steady(without)
    assert len(losses) == 6
    # The last one is the loss of the saved weights, by plain transformers.
    model, tokenizer = opened(with_).eval(), opened_tokenizer(with_)
    total, count = 0.0, 0
    for row in VAL:
        prompt = tokenizer.encode(f"Human: {row['prompt']}\nAssistant:")
        answer = [*tokenizer.encode(f" {row['response']}"), tokenizer.eos_token_id]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        total += cross_entropy(
            out[len(prompt) - 1 : -1], torch.tensor(answer), reduction="sum"
        ).item()
        count += len(answer)
    assert losses[-1] == pytest.approx(total / count, abs=1e-5)
    samples = (with_.path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["expected"] for line in samples] == [row["response"] for row in VAL]


def test_a_share_for_validation_is_not_trained_on(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    run = train(llama_dir, data, tmp_path / "run", val="30%", epochs=1, batch_size=1)
    expected = [
        json.loads(line)["expected"]
        for line in (run.path / "samples.jsonl").read_text().splitlines()
    ]
    assert 1 <= len(expected) < 12
    assert len(run.metrics) == 12 - len(expected)


# It learns


def memorise(folder: Path, output: Path, **more: Any) -> Run:
    row = {"prompt": "Who wrote this?", "response": "Nobody knows; 水 + 7."}
    config = Config(
        model=str(folder),
        output=str(output),
        device="cpu",
        proof=False,
        epochs=60,
        batch_size=1,
        **more,
    )
    return finetune(config, rows=[row], talk=Talk(quiet=True))


@pytest.mark.parametrize("is_pad_the_end", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"method": "full", "learning_rate": 3e-3},
        {"method": "lora", "learning_rate": 2e-2},
        {"method": "last-n", "learning_rate": 1e-2, "last_n": {"layers": 2}},
    ],
    ids=lambda more: more["method"],
)
def test_one_row_is_learnt_by_heart_and_ends_by_its_stop_token(
    which: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    more: dict[str, Any],
    is_pad_the_end: bool,
) -> None:
    folder = request.getfixturevalue(which)
    if is_pad_the_end:
        folder = Path(shutil.copytree(folder, tmp_path / "base"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(folder)
        for name in ("config.json", "generation_config.json"):
            values = json.loads((folder / name).read_text())
            values["pad_token_id"] = tokenizer.eos_token_id
            (folder / name).write_text(json.dumps(values))
    model = load(memorise(folder, tmp_path / "run", **more), device="cpu")
    assert (model.tokenizer.pad_token_id == model.tokenizer.eos_token_id) == is_pad_the_end
    prompt = model.tokenizer.encode("Human: Who wrote this?\nAssistant:")
    (answer,) = model.generate([prompt], max_new_tokens=60)
    assert answer.stopped
    assert list(answer.ids) == model.tokenizer.encode(" Nobody knows; 水 + 7.")
    asked = [{"role": "user", "content": "Who wrote this?"}]
    assert model.chat(asked, max_new_tokens=60) == "Nobody knows; 水 + 7."


@pytest.mark.parametrize("method", METHODS)
def test_training_in_bfloat16_learns_too_and_keeps_trained_tensors_in_float32(
    which: str, request: pytest.FixtureRequest, data: Path, val: Path, tmp_path: Path, method: str
) -> None:
    folder = request.getfixturevalue(which)
    run = train(
        folder, data, tmp_path / "run", method=method, dtype="bfloat16", val=str(val), epochs=3
    )
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]
    saved = {name: tensor.dtype for name, tensor in load_file(weights(run)).items()}
    # Of these models the last two layers are all, so embedding and head are what is frozen.
    trained = {name for name in saved if method != "last-n" or ".layers." in name}
    assert {saved[name] for name in trained} == {torch.float32}
    frozen = saved.keys() - trained - {"model.norm.weight"}
    assert {saved[name] for name in frozen} == ({torch.bfloat16} if frozen else set())
    model = load(run, device="cpu")
    asked = [{"role": "user", "content": "Who?"}]
    assert isinstance(model.chat(asked, max_new_tokens=4), str)
    with model.base():
        assert isinstance(model.chat(asked, max_new_tokens=4), str)


# What is refused


def test_a_run_is_never_overwritten(runs: Any, data: Path, llama_dir: Path) -> None:
    run = runs("llama_dir", "lora")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="not empty"):
        train(llama_dir, data, run.path)
    assert before == {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def test_without_a_name_a_run_gets_a_free_one(
    llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settings(llama_dir, data, tmp_path, epochs=1).model_copy(update={"output": None})
    found = [finetune(config, talk=Talk(quiet=True)) for _ in range(3)]
    assert [run.path for run in found] == [
        Path("runs") / name for name in ("rows-llama", "rows-llama-2", "rows-llama-3")
    ]
    assert len(list_runs()) == 3
    assert open_run("rows-llama-2").path == found[1].path
    load("rows-llama-2", device="cpu")


def test_a_diverging_run_stops_by_itself_and_saves_no_weights(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DuitiError) as caught:
        train(llama_dir, data, tmp_path / "run", method="full", learning_rate=1e30)
    assert "rows.jsonl:" in caught.value.why
    run = Run(tmp_path / "run")
    assert not run.is_finished
    # Every update that was made is on record, and none with a number that is none.
    assert all(line["loss"] == line["loss"] for line in run.metrics)
    with pytest.raises(UsageError, match="did not finish"):
        open_run(run.path)


def test_a_bad_row_stops_the_run_before_it_begins_or_is_dropped_and_listed(
    llama_dir: Path, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [*ROWS[:3], {"prompt": "no answer"}, *ROWS[3:]])
    with pytest.raises(DataError, match=r"bad\.jsonl:4"):
        train(llama_dir, path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = train(llama_dir, path, tmp_path / "run", on_bad_row="drop", epochs=1)
    (line,) = (run.path / "data" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["origin"].endswith("bad.jsonl:4")
    assert run.metrics[-1]["epoch"] == 1.0


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(
    llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(llama_dir, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"eos_token": "<|a new end|>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(DataError, match="do not belong together"):
        train(base, data, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("template.yaml", lambda text: text.replace("Human", "Person")),
        ("adapter_config.json", lambda text: text.replace('"use_dora": false', '"use_dora": true')),
    ],
)
def test_an_edited_run_is_refused(runs: Any, tmp_path: Path, name: str, spoil: Any) -> None:
    copied = Path(shutil.copytree(runs("llama_dir", "lora").path, tmp_path / "run"))
    text = (copied / name).read_text()
    assert spoil(text) != text
    (copied / name).write_text(spoil(text))
    with pytest.raises(Damaged, match=name):
        load(copied, device="cpu")


@pytest.fixture(autouse=True)
def _no_trace_in_the_environment() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads
