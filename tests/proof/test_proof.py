"""What was saved right is proven, whatever was trained and how; every way to spoil it is found, and
told with its number."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_saved import ROWS, Saved, make, retouched
from peft import PeftModel
from safetensors.torch import load_file, save_file

from duiti.errors import DuitiError
from duiti.model.load import load_model, resolve
from duiti.proof import plain_reader
from duiti.proof.expected import expectations
from duiti.proof.prove import FILE, prove
from duiti.proof.verdict import MARGIN, judge

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "last-n", "full"])
@pytest.mark.parametrize("base", ["llama_dir", "qwen3_dir", "gpt2_dir"])
def test_what_was_saved_is_what_was_trained(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, method: str, dtype: str
) -> None:
    saved = make(tmp_path, request.getfixturevalue(base), method, dtype)
    proof, _ = saved.looked_at()
    assert proof.problems == ()
    assert proof.change is not None
    assert proof.change.mean > MARGIN * proof.rounding.mean
    # The margin is derived from this: what is right is apart by about one rounding.
    assert proof.saved.is_within(proof.rounding, margin=1.5)
    if method == "lora":
        assert proof.merged is not None
        assert proof.merged.is_within(proof.rounding, margin=1.5)
    if dtype == "float32":
        assert proof.rounding.largest < 2e-5


@pytest.fixture(scope="module")
def lora(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make(tmp_path_factory.mktemp("lora"), llama_dir)


@pytest.fixture(scope="module")
def full(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make(tmp_path_factory.mktemp("full"), qwen3_dir, "full")


def test_where_peft_is_not_installed_its_arithmetic_is_done(
    lora: Saved, gpt2_dir: Path, tmp_path: Path
) -> None:
    rslora = {"rank": 4, "rslora": True}
    for saved in (lora, make(tmp_path, gpt2_dir, lora=rslora)):
        by_peft, found = saved.looked_at()
        proof, again = saved.looked_at(with_peft=False)
        assert by_peft.opened_by.startswith("PEFT 0.")
        assert proof.opened_by.endswith("and W + s B A")
        assert by_peft.problems == proof.problems == ()
        assert found["scales"] == again["scales"]


def test_the_prompts_are_those_of_rows_too(
    lora: Saved, own_template_dir: Path, tmp_path: Path
) -> None:
    for saved in (lora, make(tmp_path, own_template_dir)):
        proof, _ = saved.looked_at()
        assert proof.problems == ()
        assert proof.num_row_chats == 4
        assert proof.num_chats >= 7


def test_rounding_in_half_precision_hides_what_a_short_training_changed(
    llama_dir: Path, tmp_path: Path
) -> None:
    """It is told, and no failure; in float32 nothing hides, and nothing was trained."""
    proof, _ = make(tmp_path, llama_dir, dtype="bfloat16", strength=1e-6).looked_at()
    assert proof.problems == ()
    assert "which is no more than rounding does" in proof.describe()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_that_changed_nothing_is_told(
    llama_dir: Path, tmp_path: Path, method: str
) -> None:
    assert (
        "training changed nothing: log-probabilities are those of the base to 0.0e+00"
        in make(tmp_path, llama_dir, method, strength=0.0).problems()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", ["llama_dir", "qwen3_dir"])
def test_on_a_base_in_four_bits_it_is_held_against_that_of_transformers(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, dtype: str
) -> None:
    saved = make(tmp_path, request.getfixturevalue(base), dtype=dtype, quantize="nf4")
    assert saved.expected.is_quantized
    proof, _ = saved.looked_at()
    assert (proof.problems, proof.other_base, proof.merged) == ((), "", None)
    whole, _ = replace(saved, expected=replace(saved.expected, is_quantized=False)).looked_at()
    assert whole.base is not None
    assert proof.base is not None
    assert whole.base.mean > 3 * proof.base.mean
    assert "the base is not the one that was trained on" in whole.problems[0]
    problems = spoiled(saved, tmp_path, with_tensors(b_is_zero)).problems()
    assert "adapter changes nothing" in problems


def test_where_transformers_cannot_make_four_bits_it_is_said_what_was_compared(
    gpt2_dir: Path, tmp_path: Path
) -> None:
    """Its Conv1D, of these widths."""
    saved = make(tmp_path, gpt2_dir, quantize="nf4")
    proof, _ = saved.looked_at()
    assert proof.problems == ()
    assert "has the tensors and the scale that were trained; its base in four" in proof.describe()
    assert "nats away on average" in proof.describe()
    problems = spoiled(saved, tmp_path, with_tensors(one_bit_flips)).problems()
    assert problems.startswith("1 of ")


def test_a_merged_model_is_proven_as_any_other(lora: Saved, tmp_path: Path) -> None:
    """As `duiti export merged` writes it: without a base to compare it with, in any dtype."""
    model = load_model(resolve(lora.base), dtype=torch.float32, device="cpu")
    model = PeftModel.from_pretrained(model, lora.folder).merge_and_unload().to(torch.bfloat16)
    shutil.copytree(lora.folder, tmp_path / "merged")
    for path in (tmp_path / "merged").glob("adapter_*"):
        path.unlink()
    model.save_pretrained(tmp_path / "merged")
    rows, chats, stops = lora.expected.rows, lora.expected.chats, lora.expected.stops
    expected = expectations(model, rows, chats, dtype=torch.bfloat16, stops=stops)
    saved = Saved(tmp_path / "merged", lora.base, expected)
    proof, _ = saved.looked_at(base=None)
    assert (proof.problems, proof.change, proof.is_adapter) == ((), None, False)
    assert proof.saved.is_within(proof.rounding)
    problems = spoiled(saved, tmp_path, template_has_a_space_more).problems(base=None)
    assert "another prompt" in problems


# What is spoiled is found.


def spoiled(saved: Saved, where: Path, change: Callable[[Path], None]) -> Saved:
    """The same, of a copy of the folder in which something was changed."""
    shutil.copytree(saved.folder, where / "spoiled")
    change(where / "spoiled")
    return Saved(where / "spoiled", saved.base, saved.expected)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return changed


def with_json(name: str, **values: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return changed


def b_is_zero(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def layers_are_swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, other = (f"base_model.model.model.layers.{n}.mlp.up_proj.lora_A.weight" for n in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


def one_bit_flips(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(torch.int32)[0, 0] ^= 1


def a_norm_is_off(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] *= 1.001


def template_has_a_space_more(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def template_refuses(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")


def tokenizer_has_merges_less(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["merges"] = values["model"]["merges"][:20]
    path.write_text(json.dumps(values))


LORA_FAULTS: list[tuple[Callable[[Path], None], list[str]]] = [
    (
        with_json("adapter_config.json", lora_alpha=64),
        ["adapter is not what was trained: log-prob", "multiplied by 16, in training it was by 8"],
    ),
    (
        with_json("adapter_config.json", use_rslora=True),
        ["adapter is not what was trained: log-prob", "multiplied by 16, in training it was by 8"],
    ),
    (with_json("adapter_config.json", lora_alpha=32.0001), ["multiplied by 8.00"]),
    (
        with_tensors(b_is_zero),
        ["adapter changes nothing: log-probabilities are those of the base to 0.0e+00 nats, and"
         " training had moved them by", "14 of 28 tensors"],
    ),
    (
        with_tensors(layers_are_swapped),
        ["adapter is not what was trained: log-probabilities are off by", "2 of 28 tensors"],
    ),
    (with_tensors(one_bit_flips), ["1 of 28 tensors of the adapter are not those that were"]),
    (template_has_a_space_more, ["another prompt", "from token"]),
    (template_refuses, ["no prompt: it ends in TemplateError"]),
    (tokenizer_has_merges_less, ["another prompt", "the first one differs from token"]),
    (
        with_json("generation_config.json", eos_token_id=3),
        ["does not name the trained stop token 0 (eos_token_id: 3)"],
    ),
    (
        with_json("generation_config.json", eos_token_id=None),
        ["does not name the trained stop token 0 (eos_token_id: none)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), LORA_FAULTS)
@pytest.mark.parametrize("with_peft", [True, False])
def test_a_spoiled_adapter_is_found(
    lora: Saved,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: list[str],
    with_peft: bool,
) -> None:
    problems = spoiled(lora, tmp_path, change).problems(with_peft=with_peft)
    assert [part for part in said if part not in problems] == []


def test_another_base_is_found(lora: Saved, tmp_path: Path) -> None:
    """One with the same shapes, to which the adapter fits."""
    other = retouched(lora.base, tmp_path / "other", lambda p: p.mul_(1.01))
    first, *_ = lora.looked_at(base=str(other))[0].problems
    assert "the base is not the one that was trained on: without the adapter, log-prob" in first


def test_a_merge_that_is_off_is_found(lora: Saved, tmp_path: Path) -> None:
    _, found = lora.looked_at()
    change = with_json("adapter_config.json", lora_alpha=33)
    _, other = spoiled(lora, tmp_path, change).looked_at()
    proof = judge(lora.expected, found | {"merged": other["merged"]}, seconds=0.0)
    (problem,) = proof.problems
    assert "the adapter, merged, is not what was trained: log-probabilities are off by" in problem


def test_a_proof_at_midnight_judges_no_prompt_that_holds_the_date(lora: Saved) -> None:
    _, found = lora.looked_at()
    chats = [replace(chat, date="2001-02-03", prompt_ids=[1]) for chat in lora.expected.chats]
    expected = replace(lora.expected, chats=[*chats[1:], lora.expected.chats[0]])
    found["prompts"] = [*found["prompts"][1:], found["prompts"][0]]
    proof = judge(expected, found, seconds=0.0)
    assert (proof.problems, proof.num_chats) == ((), 1)
    assert (
        "another prompt" in judge(expected, found | {"date": "2001-02-03"}, seconds=0.0).problems[0]
    )


def test_a_number_that_is_none_is_found(lora: Saved) -> None:
    _, found = lora.looked_at()
    found["tuned"][0][0] = math.nan
    for epsilon in (2**-24, 2**-9):
        expected = replace(lora.expected, epsilon=epsilon)
        (problem,) = judge(expected, found, seconds=0.0).problems
        assert "is not what was trained: log-probabilities are off by nan nats" in problem


def test_a_process_that_does_not_agree_with_itself_is_no_excuse(lora: Saved) -> None:
    _, found = lora.looked_at()
    found["rounding"] = [[[p + 1 for p in row] for row in rows] for rows in found["rounding"]]
    assert judge(lora.expected, found, seconds=0.0).rounding.largest < 1e-4
    found["tuned"] = found["rounding"][0]
    assert "is not what was trained" in judge(lora.expected, found, seconds=0.0).problems[0]


def test_half_precision_may_send_a_token_elsewhere_but_not_many(lora: Saved) -> None:
    """As a mixture of experts does."""
    _, found = lora.looked_at()
    half = replace(lora.expected, epsilon=2**-9)
    found["tuned"][0][0] += 1.0
    assert judge(half, found, seconds=0.0).problems == ()
    assert "is not what was trained" in judge(lora.expected, found, seconds=0.0).problems[0]
    for row in found["tuned"]:
        row[1] += 1.0
    assert "is not what was trained" in judge(half, found, seconds=0.0).problems[0]


def test_a_spoiled_model_is_found(full: Saved, tmp_path: Path) -> None:
    problems = spoiled(full, tmp_path, with_tensors(a_norm_is_off)).problems()
    assert "the saved model is not what was trained: log-probabilities are off by" in problems


def test_a_base_that_was_saved_as_the_trained_model_is_found(full: Saved, tmp_path: Path) -> None:
    def untrained(folder: Path) -> None:
        base = load_model(resolve(full.base), dtype=torch.float32, device="cpu")
        base.save_pretrained(folder)

    problems = spoiled(full, tmp_path, untrained).problems()
    assert "the saved model changes nothing: log-probabilities are those of the base" in problems


def test_half_precision_finds_what_it_can_tell_and_the_files_are_exact(
    llama_dir: Path, tmp_path: Path
) -> None:
    saved = make(tmp_path, llama_dir, dtype="bfloat16")
    problems = spoiled(saved, tmp_path, with_tensors(layers_are_swapped)).problems()
    assert "adapter is not what was trained" in problems
    shutil.rmtree(tmp_path / "spoiled")
    problems = spoiled(saved, tmp_path, with_tensors(one_bit_flips)).problems()
    assert problems.startswith("1 of 28 tensors")


# The process itself.


def test_a_fresh_process_proves_it_and_leaves_the_proof(lora: Saved, tmp_path: Path) -> None:
    saved = spoiled(lora, tmp_path, lambda folder: None)
    before = {path.name: path.read_bytes() for path in saved.folder.iterdir()}
    proof = prove(saved.folder, saved.expected, base=saved.base)
    line = proof.describe()
    assert line.startswith("the saved adapter, opened by PEFT 0.")
    assert "in a fresh process, gives the same log-probabilities (largest difference" in line
    kept = json.loads((saved.folder / FILE).read_text())
    assert kept["passed"] is True
    assert kept["num_tokens"] == saved.expected.num_tokens > 50
    assert kept["saved"]["largest"] <= MARGIN * kept["rounding"]["largest"]
    after = {path.name: path.read_bytes() for path in saved.folder.iterdir() if path.name != FILE}
    assert after == before


def test_a_failure_is_an_error_with_the_number_and_the_weights_stay(
    full: Saved, tmp_path: Path
) -> None:
    saved = spoiled(full, tmp_path, with_tensors(a_norm_is_off))
    with pytest.raises(DuitiError, match=r"is not what was trained: log-prob.* off by") as caught:
        prove(saved.folder, saved.expected, base=saved.base)
    assert caught.value.exit_code == 1
    assert (saved.folder / "model.safetensors").is_file()
    text = (saved.folder / FILE).read_text()
    assert json.loads(text)["passed"] is False
    for row in ROWS:  # what rows say is in neither
        assert row["prompt"] not in text + str(caught.value)
        assert row["response"] not in text + str(caught.value)


def test_what_cannot_be_opened_is_told_with_the_reason(lora: Saved, tmp_path: Path) -> None:
    saved = spoiled(lora, tmp_path, lambda folder: os.truncate(folder / WEIGHTS, 1000))
    with pytest.raises(
        DuitiError, match=r"cannot be opened by a fresh process: adapter: Safetensor"
    ):
        prove(saved.folder, saved.expected, base=saved.base)


def test_what_the_fresh_process_runs_knows_nothing_of_duiti() -> None:
    tree = ast.parse(Path(plain_reader.__file__).read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert "duiti" not in imported
    assert {"torch", "transformers", "safetensors", "peft"} <= imported
