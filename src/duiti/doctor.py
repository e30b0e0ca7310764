"""What this machine has, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from duiti.model.precision import MIN_GAIN, bf16_gain

PACKAGES = ("duiti", "torch", "transformers", "safetensors", "tokenizers", "pydantic", "numpy",
            "bitsandbytes")  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, devices, speed and free disk."""
    gain = bf16_gain()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [
            torch.cuda.get_device_properties(i).name for i in range(torch.cuda.device_count())
        ],
        "torch_built_for_cuda": torch.version.cuda,
        "cpu_bfloat16_gain": round(gain, 2),
        "cpu_dtype": "bfloat16" if gain >= MIN_GAIN else "float32",
        "free_disk_bytes": shutil.disk_usage(".").free,
    }


def print_findings(found: dict[str, Any]) -> None:
    """The same for people, with advice."""
    print(f"python     {found['python']} on {found['system']}")
    print("packages   " + ", ".join(f"{k} {v}" for k, v in found["packages"].items()))
    print(f"cpu        {found['cores']} cores, torch uses {found['threads']} threads")
    faster = f"bfloat16 is {found['cpu_bfloat16_gain']}x as fast as float32"
    print(f"           {faster}, so wide models compute in {found['cpu_dtype']}")
    print(f"gpu        {', '.join(found['cuda']) or 'none'}")
    if not found["cuda"] and found["torch_built_for_cuda"]:
        print(
            f"           torch is built for CUDA {found['torch_built_for_cuda']} but sees no GPU:"
        )
        print("           is the driver installed, and the device visible to this process?")
    elif not found["cuda"]:
        print("           this torch is built for the CPU; for a GPU, install its CUDA build")
    print(f"disk       {found['free_disk_bytes'] / 1e9:.1f} GB free here")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
