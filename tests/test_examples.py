"""The examples run as they are shown, do what they say, and leave what they promise."""

import json
import re
import subprocess
import sys
from pathlib import Path

from peft import PeftConfig
from safetensors.torch import load_file

import duiti

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_minimal_loop_learns_and_leaves_an_adapter_that_answers_the_same(
    tmp_path: Path,
) -> None:
    command = [sys.executable, EXAMPLES / "minimal_loop.py", "--steps", "16"]
    done = subprocess.run(
        [*command, "--output", "adapter"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.M)]
    assert len(losses) == 16
    # Rows differ, so the loss goes up and down on its way.
    assert sum(losses[-4:]) / 4 < losses[0] / 2

    folder = tmp_path / "adapter"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
    assert PeftConfig.from_pretrained(folder).peft_type == "LORA"

    (question,) = re.findall(r"^question: (.+)$", done.stdout, re.M)
    (after,) = re.findall(r"^after: (.+)$", done.stdout, re.M)
    model = duiti.load(folder, device="cpu")
    answer = model.chat([{"role": "user", "content": question}], max_new_tokens=32)
    assert answer.strip() == after
