"""What was saved right is proven, whatever was trained and how; every way to spoil it is found, and
told with its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_saved import make

from duiti.proof.verdict import MARGIN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning"),
]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


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
