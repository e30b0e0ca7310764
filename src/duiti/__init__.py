"""duiti (对题, "to the point"): supervised fine-tuning that answers what was asked.

    import duiti

    report = duiti.check("my.jsonl", model="Qwen/Qwen3-0.6B")
    run = duiti.train("my.jsonl", model="Qwen/Qwen3-0.6B", epochs=2)
    model = duiti.load(run)
    model.chat([{"role": "user", "content": "Hi"}])
    duiti.evaluate(run, "test.jsonl")
    duiti.export(run, "merged", "my-model")

Names and settings are those of the command line. Nothing heavy is imported until something is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duiti.api import check, evaluate, export, resume, train
    from duiti.checking import Check
    from duiti.config import Config
    from duiti.errors import DuitiError
    from duiti.infer.model import Model, load
    from duiti.run import Run

__version__ = "0.1.0"

__all__ = [
    "Check",
    "Config",
    "DuitiError",
    "Model",
    "Run",
    "check",
    "evaluate",
    "export",
    "load",
    "resume",
    "train",
]

_HOME = {
    "Check": "duiti.checking",
    "Config": "duiti.config",
    "DuitiError": "duiti.errors",
    "Model": "duiti.infer.model",
    "Run": "duiti.run",
    "check": "duiti.api",
    "evaluate": "duiti.api",
    "export": "duiti.api",
    "load": "duiti.infer.model",
    "resume": "duiti.api",
    "train": "duiti.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'duiti' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
