"""A merged folder is a plain model that computes what the adapted one does; its report is true."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from duiti import api
from duiti.errors import DuitiError, UsageError
from duiti.exporting import merge as merge_module
from duiti.exporting.merge import MAX_ERROR, export_merged
from duiti.infer.model import load
from duiti.manifest import Damaged, read_manifest
from duiti.model.artefact import read_artefact
from duiti.run import Run
from duiti.training.save import save_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

ROWS = [{"prompt": f"Who is number {n}?", "response": f"Nobody knows {n * 7}."} for n in range(8)]


def train(folder: Path, output: Path, **settings: object) -> Run:
    return api.train(
        ROWS, model=str(folder), output=str(output), epochs=3, batch_size=4, learning_rate=1e-2,
        device="cpu", proof=False, quiet=True, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["llama_dir", "qwen3_dir"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = request.getfixturevalue(request.param)
    return train(folder, tmp_path_factory.mktemp("runs") / "run", lora={"rank": 8})


def ids() -> Tensor:
    return torch.arange(4, 64).reshape(3, 20)


def by_peft(run: Run) -> PreTrainedModel:
    base = AutoModelForCausalLM.from_pretrained(run.config.model)
    return PeftModel.from_pretrained(base, run.path).eval()


def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.float().log_softmax(-1)


def test_the_merged_model_opens_in_plain_transformers_and_computes_the_same(
    run: Run, tmp_path: Path
) -> None:
    report = export_merged(run, tmp_path / "merged", proof=False)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    adapted = load(run, device="cpu", dtype=torch.float32).hf
    with torch.no_grad():
        found, expected = plain(ids()).logits, adapted(ids()).logits
        base = AutoModelForCausalLM.from_pretrained(run.config.model).eval()(ids()).logits
    assert (found - expected).abs().max() <= 1e-4
    assert (found - base).abs().max() > 0.1
    assert report.dtype == torch.float32
    assert report.max_logprob_error <= 1e-4
    assert report.argmax_changes == 0
    assert (tmp_path / "merged").is_dir()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_report_tells_what_one_measures(run: Run, tmp_path: Path, dtype: torch.dtype) -> None:
    report = export_merged(run, tmp_path / "merged", dtype=dtype, proof=False)
    files = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert stored.dtype == dtype
    size = files.get_input_embeddings().num_embeddings
    probe = torch.randint(size, (4, 64), generator=torch.Generator().manual_seed(0))
    # PEFT computes the reference: an adapted model that is not our own.
    expected, found = log_probabilities(by_peft(run), probe), log_probabilities(files, probe)
    best = expected.argmax(-1, keepdim=True)
    error = (found.gather(-1, best) - expected.gather(-1, best)).abs()
    # PEFT and we differ by about 1e-6 of logits of order 10.
    assert report.max_logprob_error == pytest.approx(error.max().item(), abs=2e-5)
    assert report.mean_logprob_error == pytest.approx(error.mean().item(), abs=2e-5)
    changed = int((found.argmax(-1, keepdim=True) != best).sum())
    assert report.argmax_changes == changed
    assert report.num_positions == 256
    assert report.path == tmp_path / "merged"
    assert report.as_dict()["num_positions"] == 256
    if dtype == torch.bfloat16:
        assert report.max_logprob_error > 1e-4  # rounding is there, and told


def test_a_bfloat16_merge_rounds_the_float32_sum_once(run: Run, tmp_path: Path) -> None:
    export_merged(run, tmp_path / "wide", proof=False)
    export_merged(run, tmp_path / "low", dtype=torch.bfloat16, proof=False)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide").state_dict()
    low = AutoModelForCausalLM.from_pretrained(tmp_path / "low").state_dict()
    assert all(torch.equal(tensor.to(torch.bfloat16), low[name]) for name, tensor in wide.items())


def test_tokenizer_template_and_stops_travel_along(run: Run, tmp_path: Path) -> None:
    export_merged(run, tmp_path / "merged", proof=False)
    own, merged = (AutoTokenizer.from_pretrained(p) for p in (run.path, tmp_path / "merged"))
    asked = [{"role": "user", "content": "Who?"}]
    given = {"add_generation_prompt": True, "tokenize": False}
    assert own.apply_chat_template(asked, **given) == merged.apply_chat_template(asked, **given)
    assert merged.apply_chat_template(asked, **given) == "Human: Who?\nAssistant:"
    stops = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert stops == json.loads((run.path / "generation_config.json").read_text())["eos_token_id"]
    model = load(tmp_path / "merged", device="cpu")
    assert model.chat(asked, max_new_tokens=8) == load(run, device="cpu").chat(
        asked, max_new_tokens=8
    )


def test_the_run_and_its_base_are_left_as_they_were(run: Run, tmp_path: Path) -> None:
    folders = (run.path, Path(run.config.model))
    before = [p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()]
    export_merged(run, tmp_path / "merged", proof=False)
    assert before == [p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()]


def test_a_folder_that_holds_something_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        export_merged(run, tmp_path, proof=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="not empty"):
        export_merged(run, tmp_path / "mine.txt", proof=False)


def test_an_empty_folder_is_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert export_merged(run, tmp_path / "empty", proof=False).argmax_changes == 0


def test_the_folder_carries_its_hashes_and_is_refused_when_one_differs(
    run: Run, tmp_path: Path
) -> None:
    export_merged(run, tmp_path / "merged", proof=False)
    artefact = read_artefact(tmp_path / "merged")
    assert artefact.kind == "model"
    assert artefact.trained_on == read_artefact(run.path).trained_on
    on_disk = {path.name for path in (tmp_path / "merged").iterdir()}
    assert read_manifest(tmp_path / "merged").files.keys() == on_disk - {"manifest.json"}
    path = tmp_path / "merged" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        load(tmp_path / "merged", device="cpu")


def test_a_run_that_did_not_finish_or_is_damaged_is_not_exported(run: Run, tmp_path: Path) -> None:
    copied = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    path = copied.path / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"adapter_model\.safetensors"):
        export_merged(copied, tmp_path / "merged", proof=False)
    (copied.path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="did not finish"):
        export_merged(copied, tmp_path / "merged", proof=False)
    assert not (tmp_path / "merged").exists()


def test_on_another_base_of_the_same_shape_nothing_is_merged(run: Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.config.model, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    copied = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    settings = (copied.path / "config.yaml").read_text()
    (copied.path / "config.yaml").write_text(settings.replace(run.config.model, str(other)))
    with pytest.raises(DuitiError, match="was not trained on this base"):
        export_merged(copied, tmp_path / "merged", proof=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("num_bytes", [0, 1000, 15_000, 100_000])
def test_where_the_disk_refuses_nothing_is_left(run: Run, tmp_path: Path, num_bytes: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(DuitiError, match="files may not become so large here") as caught:
            export_merged(run, tmp_path / "deeper" / "merged", proof=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "deeper" / "merged") in caught.value.what
    assert list((tmp_path / "deeper").iterdir()) == []


def test_a_merge_that_is_off_is_refused_with_the_number_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_ERROR, torch.bfloat16, 1e-9)
    with pytest.raises(DuitiError, match=r"log-probabilities are off by up to [0-9.e-]+ nats"):
        export_merged(run, tmp_path / "merged", dtype=torch.bfloat16, proof=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["full", "last-n"])
def test_a_run_without_adapters_is_exported_too(
    llama_dir: Path, tmp_path: Path, method: str
) -> None:
    run = train(llama_dir, tmp_path / "run", method=method)
    report = export_merged(run, tmp_path / "merged", proof=False)
    assert report.max_logprob_error == 0.0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(run.path).eval()(ids()).logits
        assert torch.equal(plain(ids()).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_process_proves_what_was_exported(
    run: Run, tmp_path: Path, dtype: torch.dtype
) -> None:
    report = export_merged(run, tmp_path / "merged", dtype=dtype)
    assert report.proof is not None
    assert report.proof.num_tokens > 0
    assert report.proof.describe() in str(report)
    assert json.loads((tmp_path / "merged" / "proof.json").read_text())["passed"] is True


def test_an_export_that_the_proof_refuses_is_an_error_with_the_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of weights passes: the fault is in what a loader makes of the folder."""

    def spoil(tokenizer: object, folder: Path) -> None:
        save_tokenizer(tokenizer, folder)
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    monkeypatch.setattr(merge_module, "save_tokenizer", spoil)
    with pytest.raises(DuitiError, match="chat template"):
        export_merged(run, tmp_path / "merged")


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.2])
def test_a_weaker_merge_is_what_peft_computes_with_alpha_so_much_smaller(
    run: Run, tmp_path: Path, strength: float
) -> None:
    report = export_merged(run, tmp_path / "merged", strength=strength, proof=False)
    adapter = Path(shutil.copytree(run.path, tmp_path / "adapter"))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["lora_alpha"] *= strength
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    base = AutoModelForCausalLM.from_pretrained(run.config.model)
    theirs = log_probabilities(PeftModel.from_pretrained(base, adapter).eval(), ids())
    ours = log_probabilities(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids())
    # As at full strength: sums in another order.
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - log_probabilities(by_peft(run), ids())).abs().max() > 1e-2
    assert report.max_logprob_error <= 1e-4
    assert report.strength == report.as_dict()["strength"] == strength
    assert f"at strength {strength:g}" in str(report)
    assert read_artefact(tmp_path / "merged").adapter == {"strength": strength}


def test_at_full_strength_not_a_byte_is_another(run: Run, tmp_path: Path) -> None:
    export_merged(run, tmp_path / "plain", proof=False)
    report = export_merged(run, tmp_path / "dialled", strength=1.0, proof=False)
    assert "at strength" not in str(report)
    plain, dialled = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("plain", "dialled")
    )
    assert plain == dialled
    # And the weights are W + alpha / rank · B A, as they were before there was a dial.
    tensors = load_file(run.path / "adapter_model.safetensors")
    found = load_file(tmp_path / "plain" / "model.safetensors")
    base = load_file(Path(run.config.model) / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    scale = run.config.lora.alpha / run.config.lora.rank
    assert torch.equal(found[f"{name}.weight"], base[f"{name}.weight"] + scale * (b @ a))


def test_a_fresh_process_proves_the_model_at_its_strength(run: Run, tmp_path: Path) -> None:
    report = export_merged(run, tmp_path / "merged", strength=0.5)
    assert report.proof is not None
    assert not report.proof.problems
    assert load(tmp_path / "merged", device="cpu").hf is not None


@pytest.mark.parametrize("method", ["full", "last-n"])
def test_without_adapters_what_lies_between_base_and_trained_is_written(
    llama_dir: Path, tmp_path: Path, method: str
) -> None:
    run = train(llama_dir, tmp_path / "run", method=method)
    report = export_merged(run, tmp_path / "merged", strength=0.25, proof=False)
    base, tuned, found = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (llama_dir, run.path, tmp_path / "merged")
    )
    for name, tensor in found.items():
        assert torch.equal(tensor, base[name] + 0.25 * (tuned[name] - base[name])), name
    assert any(not torch.equal(tensor, tuned[name]) for name, tensor in found.items())
    assert report.max_logprob_error <= 1e-5
    assert read_artefact(tmp_path / "merged").adapter == {"strength": 0.25}


@pytest.mark.parametrize("strength", [-0.1, 1.3, float("nan"), float("inf")])
def test_a_strength_off_the_dial_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, strength: float
) -> None:
    with pytest.raises(UsageError, match="no strength"):
        api.export(run, "merged", tmp_path / "merged", strength=strength)
    assert list(tmp_path.iterdir()) == []
