"""The embedded base model `tiny` and the data about its little world. No torch here.

`model_path()` is a plain transformers directory (2.2 M parameters, Qwen3): a base model that
continues text about a small invented world in English and Chinese, and has no chat template.
`data_path(name)` is one of its files:

- `train`: prompt/response pairs about 60 % of the entities;
- `heldout`: the other 40 %, met as running text alone, in the trained phrasings;
- `unseen`: the same 40 % in phrasings that no training pair has;
- `control`: entities that are nowhere in the running text, so nobody can know the answers;
- `running_text`: fresh text like the pretraining text, a paragraph a line, to measure forgetting.

`examples/tiny_world` in the repository makes all of it.
"""

from pathlib import Path
from typing import Literal

__all__ = ["DataName", "data_path", "model_path"]

DataName = Literal["train", "heldout", "unseen", "control", "running_text"]

_ASSETS = Path(__file__).parent / "assets"


def model_path() -> Path:
    """The directory to load the model and the tokenizer from."""
    return _ASSETS


def data_path(name: DataName) -> Path:
    """A data file: JSON lines of `prompt` and `response`, or `running_text`, a paragraph a line."""
    return _ASSETS / (f"{name}.txt" if name == "running_text" else f"{name}.jsonl")
