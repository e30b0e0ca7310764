"""A run on a base in four bits: what is served is what was trained, what is written is the original
base with the adapter, and how far the two are apart is told."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from duiti import api
from duiti.errors import UsageError
from duiti.exporting.merge import export_merged
from duiti.infer.model import load
from duiti.model.load import load_model, resolve
from duiti.model.quantize import NF4Linear
from duiti.run import SAMPLES_FILE, Run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

ROWS = [{"prompt": f"Who is number {n}?", "response": f"Nobody knows {n * 7}."} for n in range(12)]
ASKED = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module", params=["llama_dir", "qwen3_dir"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return api.train(
        ROWS, model=str(request.getfixturevalue(request.param)), output=str(folder / "run"),
        quantize="nf4", val="25%", epochs=3, batch_size=4, learning_rate=1e-2, lora={"rank": 8},
        device="cpu", proof=False, quiet=True,
    )  # fmt: skip


def is_nf4(model: PreTrainedModel) -> bool:
    return any(isinstance(module, NF4Linear) for module in model.modules())


def base_of(run: Run) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(run.config.model, dtype=torch.float32).eval()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 64).reshape(3, 20)).logits


def test_the_run_is_loaded_on_the_base_that_it_was_trained_on(run: Run) -> None:
    assert run.config.quantize == "nf4"
    model = load(run, device="cpu")
    assert is_nf4(model.hf)
    quantised = load_model(
        resolve(run.config.model), dtype=torch.float32, device="cpu", quantize="nf4"
    )
    with model.base():
        assert torch.equal(logits(model.hf), logits(quantised))
    assert (logits(model.hf) - logits(quantised)).abs().max() > 0.1


def test_what_is_measured_of_the_run_is_what_training_measured(run: Run, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run.path / SAMPLES_FILE).read_text().splitlines()]
    held_out = [row for row in ROWS if row["response"] in {r["expected"] for r in rows}]
    assert len(held_out) == len(rows) > 0
    found = api.evaluate(run, held_out, device="cpu", metrics=())
    last = [line["val_loss"] for line in run.metrics if line.get("val_loss") is not None][-1]
    # The same sums of float32 in another order of rows.
    assert found["tuned"]["loss"] == pytest.approx(last, rel=1e-5)
    answers = [load(run, device="cpu").chat([{"role": "user", "content": r["prompt"]}],
               max_new_tokens=128) for r in held_out]  # fmt: skip
    assert sorted(answers) == sorted(r["tuned"] for r in rows)


def test_peft_loads_the_adapter_onto_the_original_base(run: Run) -> None:
    settings = json.loads((run.path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == run.config.model
    theirs = PeftModel.from_pretrained(base_of(run), run.path).eval()
    ours = load(run, device="cpu", quantize="none").hf
    assert not is_nf4(ours)
    # As for adapters on a plain base (test_adapter.py): sums in another order.
    assert (logits(theirs) - logits(ours)).abs().max() <= 1e-4
    assert (logits(theirs) - logits(load(run, device="cpu").hf)).abs().max() > 1e-3


def test_the_merged_files_are_the_original_base_and_the_adapter(run: Run, tmp_path: Path) -> None:
    export_merged(run, tmp_path / "merged", dtype=torch.float32, proof=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    expected = base_of(run).state_dict()
    adapter = load_file(run.path / "adapter_model.safetensors")
    adapted = {key.removesuffix(".lora_A.weight") for key in adapter if ".lora_A." in key}
    assert len(adapted) == 14
    for key in adapted:
        delta = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
        expected[f"{key.removeprefix('base_model.model.')}.weight"] += 32 / 8 * delta
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, merged[name]), name


def test_the_report_tells_how_far_the_trained_model_is(run: Run, tmp_path: Path) -> None:
    report = export_merged(run, tmp_path / "merged", dtype=torch.float32, proof=False)
    assert report.max_logprob_error <= 1e-4
    found = report.from_quantized
    assert found is not None
    # The same, from the files alone.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    trained = load(run, device="cpu").hf
    pairs: list[tuple[float, float]] = []
    changed = 0
    rows = [json.loads(line) for line in (run.path / SAMPLES_FILE).read_text().splitlines()]
    for row in rows:
        given = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(" " + row["expected"])["input_ids"]
        both = []
        for model in (trained, merged):
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([given + answer])).logits[0].log_softmax(-1)
            both.append(scores[len(given) - 1 : -1])
        changed += int((both[0].argmax(-1) != both[1].argmax(-1)).sum())
        pairs += [(float(both[0][i, t]), float(both[1][i, t])) for i, t in enumerate(answer)]
    apart = [abs(one - other) for one, other in pairs]
    assert found.num_positions == len(pairs)
    assert found.mean_logprob_difference == pytest.approx(math.fsum(apart) / len(apart), rel=1e-4)
    assert found.max_logprob_difference == pytest.approx(max(apart), rel=1e-4)
    assert found.max_logprob_difference > 1e-3
    assert found.loss_trained == pytest.approx(-sum(p for p, _ in pairs) / len(pairs), rel=1e-4)
    assert found.loss_merged == pytest.approx(-sum(p for _, p in pairs) / len(pairs), rel=1e-4)
    assert found.argmax_changes == changed
    assert found.text == f"{len(rows)} held-out answers of the run"
    lines = str(report).splitlines()
    assert len(lines) == 2
    assert "original base and adapter" in lines[0]
    assert f"{found.loss_trained:.4f} → {found.loss_merged:.4f}" in lines[1]
    assert json.loads(json.dumps(report.as_dict()))["from_quantized"]["argmax_changes"] == changed


def test_without_held_out_answers_a_fixed_text_is_measured_on(
    llama_dir: Path, tmp_path: Path
) -> None:
    run = api.train(
        ROWS, model=str(llama_dir), output=str(tmp_path / "run"), quantize="nf4", max_steps=1,
        device="cpu", proof=False, quiet=True,
    )  # fmt: skip
    found = export_merged(run, tmp_path / "merged", proof=False).from_quantized
    assert found is not None
    assert "fixed text" in found.text
    assert found.num_positions > 100
    assert found.max_logprob_difference > 0


def test_a_run_on_a_plain_base_is_compared_with_itself_only(
    llama_dir: Path, tmp_path: Path
) -> None:
    run = api.train(
        ROWS, model=str(llama_dir), output=str(tmp_path / "run"), max_steps=1, device="cpu",
        proof=False, quiet=True,
    )  # fmt: skip
    report = export_merged(run, tmp_path / "merged", proof=False)
    assert report.from_quantized is None
    assert len(str(report).splitlines()) == 1


def test_the_run_needs_the_extra_to_be_served_as_it_was_trained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs bitsandbytes") as caught:
        load(run, device="cpu")
    assert caught.value.fix == "pip install 'duiti[qlora]'"
    assert not is_nf4(load(run, device="cpu", quantize="none").hf)


def test_without_the_extra_training_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs bitsandbytes"):
        api.train(
            str(tmp_path / "nowhere.jsonl"), model="tiny", quantize="nf4", device="cpu",
            output=str(tmp_path / "run"), quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_base_is_served_in_four_bits_if_that_is_asked(llama_dir: Path) -> None:
    model = load(llama_dir, device="cpu", quantize="nf4")
    assert is_nf4(model.hf)
    assert model.chat(ASKED, max_new_tokens=3) is not None


def test_a_weaker_merge_is_held_against_the_trained_model_at_that_strength(
    run: Run, tmp_path: Path
) -> None:
    report = export_merged(run, tmp_path / "merged", strength=0.5, proof=False)
    found = report.from_quantized
    assert found is not None
    # By hand: half of every B, on the base in four bits, on the run's own held-out answers.
    model = load(run, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if name.endswith("lora_B"):
                parameter *= 0.5
    losses = []
    for line in (run.path / SAMPLES_FILE).read_text().splitlines():
        row = json.loads(line)
        prompt, answer = (model.tokenizer.encode(t, add_special_tokens=False)
                          for t in (row["prompt"], " " + row["expected"]))  # fmt: skip
        with torch.no_grad():
            said = model.hf(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        losses += [-float(said[len(prompt) - 1 + i, t]) for i, t in enumerate(answer)]
    assert found.loss_trained == pytest.approx(math.fsum(losses) / len(losses), rel=1e-4)
    whole = export_merged(run, tmp_path / "whole", proof=False).from_quantized
    assert whole is not None
    assert abs(whole.loss_trained - found.loss_trained) > 1e-2
    assert "at strength 0.5" in str(report)
