"""What fits is chosen in order, with its reason; what cannot fit is refused, with numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import write_rows

from duiti import fit as fit_module
from duiti.config import Config
from duiti.errors import UsageError
from duiti.fit import Fit, first_that_fits, fit_memory, halved, longest_that_fits
from duiti.material import read_material
from duiti.plan import settle
from duiti.quantities import size_in_bytes
from duiti.sft import finetune
from duiti.training import need as need_module
from duiti.training.available import Room
from duiti.training.log import Talk
from duiti.training.need import Circumstances, Need, expected
from duiti.training.shapes import TensorBytes

ROOM = Room(1000, "allowed by max_memory")


def need(peak: int) -> Need:
    return Need(process_bytes=0, weights_bytes=0, trained_bytes=0, activations_bytes=peak,
                elsewhere_bytes=0, num_tokens=1)  # fmt: skip


def tokens_cost(budget: int, is_checkpointed: bool) -> Need:
    return need(budget // 4 if is_checkpointed else budget)


def test_budgets_go_down_to_the_longest_row() -> None:
    assert halved(2048, 300) == [2048, 1024, 512, 300]
    assert halved(2048, 2048) == [2048]


def test_smaller_micro_batches_come_before_checkpointing() -> None:
    assert first_that_fits([900, 450], [False, True], tokens_cost, ROOM) == (900, False)
    assert first_that_fits([1800, 900], [False, True], tokens_cost, ROOM) == (900, False)
    assert first_that_fits([3900, 1950], [False, True], tokens_cost, ROOM) == (3900, True)
    assert first_that_fits([3900, 1950], [False], tokens_cost, ROOM) is None
    assert first_that_fits([3900], [False], tokens_cost, None) == (3900, False)


@given(st.integers(1, 50), st.integers(0, 5), st.integers(100, 4000), st.integers(1, 2_000_000))
def test_the_longest_row_that_is_named_fits(
    slope: int, bend: int, longest: int, limit: int
) -> None:
    def peak(length: int) -> int:
        return 1000 + slope * length + bend * length**2 // 10

    found = longest_that_fits(longest, peak, limit)
    if peak(longest) <= limit:
        return  # then nobody asks
    assert (found is None) == (peak(16) > limit)
    assert found is None or peak(found) <= limit < peak(longest)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("2T", 2 * 10**12)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert size_in_bytes(text) == count


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 bytes", "much"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_memory"):
        Config(max_memory=text)


def test_on_a_gpu_tensors_count_and_nothing_else() -> None:
    tensors = TensorBytes(weights_bytes=100, trained_bytes=20, activations_bytes=300)
    around = Circumstances(is_cpu=False, is_half=True, num_steps=9, process_bytes=10**9,
                           loading_bytes=0)  # fmt: skip
    assert expected(tensors, 5, around).peak_bytes == 420


def test_weights_that_are_widened_while_they_are_read_may_be_the_peak() -> None:
    tensors = TensorBytes(weights_bytes=100, trained_bytes=20, activations_bytes=5)
    around = Circumstances(is_cpu=False, is_half=True, num_steps=9, process_bytes=0,
                           loading_bytes=120)  # fmt: skip
    found = expected(tensors, 5, around)
    assert found.peak_bytes == 220
    assert "while weights are read;" in found.describe()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [{"prompt": f"q {n}", "response": "yes " * (10 + 6 * n)} for n in range(12)]
    return write_rows(tmp_path_factory.mktemp("fit") / "rows.jsonl", pairs)


def fitted(rows: Path, model: Path, **settings: Any) -> tuple[Config, Fit, dict[str, str]]:
    values = {"data": str(rows), "model": str(model), "device": "cpu", "dtype": "float32",
              "batch_size": 12, "workers": 1, **settings}  # fmt: skip
    config = Config(**values)
    material = read_material(config)
    config, reasons = settle(config, material)
    config, fit = fit_memory(config, material, reasons)
    return config, fit, reasons


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_micro_batches_shrink_to_what_fits_and_say_why(
    rows: Path, llama_dir: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "resident_bytes", lambda: 0)  # it grows as tests go on
    longest = int(read_material(Config(data=str(rows), model=str(llama_dir))).train.lengths.max())
    usual = fitted(rows, llama_dir)[1].need
    alone = fitted(rows, llama_dir, micro_batch_tokens=longest)[1].need
    assert usual is not None
    assert alone is not None
    limit = int(alone.peak_bytes + share * (usual.peak_bytes - alone.peak_bytes))
    config, fit, reasons = fitted(rows, llama_dir, max_memory=f"{limit / 1000:.3f}KB")
    assert fit.refusal is None
    assert fit.need is not None
    assert fit.need.peak_bytes <= limit
    assert longest <= int(config.micro_batch_tokens) < 2048
    assert not config.activation_checkpointing
    assert "2,048 do not fit into the" in reasons["micro_batch_tokens"]


def test_then_activations_are_checkpointed_then_a_length_is_named_that_does_fit(
    rows: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "resident_bytes", lambda: 0)
    monkeypatch.setattr(need_module, "LATER_BYTES", 0)
    longest = int(read_material(Config(data=str(rows), model=str(llama_dir))).train.lengths.max())
    peaks = []
    for switch in (False, True):
        need = fitted(rows, llama_dir, micro_batch_tokens=longest,
                      activation_checkpointing=switch)[1].need  # fmt: skip
        assert need is not None
        peaks.append(need.peak_bytes)
    config, fit, reasons = fitted(rows, llama_dir, max_memory=f"{sum(peaks) / 2000:.3f}KB")
    assert fit.refusal is None
    assert config.activation_checkpointing is True
    assert "without, it does not fit" in reasons["activation_checkpointing"]
    limit = f"{0.97 * peaks[1] / 1000:.3f}KB"
    _, fit, _ = fitted(rows, llama_dir, max_memory=limit)
    assert fit.refusal is not None
    named = re.match(r"--max-length (\d+): \d+ of 12 rows are longer", fit.refusal.fix)
    assert named is not None, fit.refusal.fix
    shorter = {"max_length": int(named[1]), "max_lost": 1.0}
    assert fitted(rows, llama_dir, max_memory=limit, **shorter)[1].refusal is None


def test_where_all_fits_nothing_is_changed(rows: Path, llama_dir: Path) -> None:
    config, fit, reasons = fitted(rows, llama_dir)
    assert (config.micro_batch_tokens, config.activation_checkpointing) == (2048, False)
    assert reasons["micro_batch_tokens"] == "usual on a CPU"
    assert reasons["activation_checkpointing"] == "not needed"
    assert fit.refusal is None
    assert fit.as_dict()["fits"] is True


def test_what_cannot_fit_is_refused_with_numbers_and_no_folder_is_left(
    rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    config = Config(data=str(rows), model=str(llama_dir), device="cpu", max_memory="9MB",
                    output=str(tmp_path / "run"))  # fmt: skip
    with pytest.raises(UsageError, match=r"needs .* of memory, and 9\.0 MB is") as caught:
        finetune(config, talk=Talk(quiet=True))
    assert "at the peak" in caught.value.why
    assert caught.value.fix
    assert not (tmp_path / "run").exists()


def test_the_record_of_a_run_has_what_was_expected_and_what_was_rehearsed(
    rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    run = finetune(Config(data=str(rows), model=str(llama_dir), device="cpu", max_steps=1,
                          proof=False, output=str(tmp_path / "run")),
                   talk=Talk(quiet=True))  # fmt: skip
    memory = json.loads((run.path / "env.json").read_text())["memory"]
    assert memory["expected"]["peak_bytes"] > 0
    assert memory["expected_after_rehearsal_bytes"] >= memory["rehearsed_bytes"] > 0
    assert "activation_checkpointing: false" in (run.path / "config.yaml").read_text()


def test_activation_checkpointing_changes_no_byte_of_a_run(
    rows: Path, llama_dir: Path, tmp_path: Path
) -> None:
    found = [
        finetune(
            Config(data=str(rows), model=str(llama_dir), device="cpu", max_steps=2, proof=False,
                   activation_checkpointing=switch, output=str(tmp_path / f"{switch}")),
            talk=Talk(quiet=True),
        )
        for switch in (False, True)
    ]  # fmt: skip
    one, two = ((run.path / "adapter_model.safetensors").read_bytes() for run in found)
    assert one == two
    kept = [json.loads((run.path / "env.json").read_text())["memory"]["expected"] for run in found]
    assert kept[1]["activations_bytes"] < kept[0]["activations_bytes"]
    text = (found[1].path / "config.yaml").read_text()
    assert re.search(r"^activation_checkpointing: true$", text, re.MULTILINE)


def test_a_base_in_four_bits_is_told_of_in_a_fresh_process(tmp_path: Path) -> None:
    """What it needs is imported there for the first time, with nothing fetched and nothing said."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a b", "response": "c d"}] * 2)
    command = [sys.executable, "-m", "duiti", "check", str(rows), "-m", "tiny", "--json"]
    done = subprocess.run(
        [*command, "--quantize", "nf4"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["memory"]["unknown"] is None
    assert "kernels" not in done.stderr
