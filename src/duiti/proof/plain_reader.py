"""What the fresh process runs: open a saved folder with plain transformers and PEFT, and tell.

    python plain_reader.py < request.json > answer.json

It knows nothing of duiti and imports nothing of it: what it reads out of the folder is what anybody
else would. PEFT opens an adapter where it is installed; where it is not, the adapter's own
arithmetic, W + s B A, is done here on the plain model. Nothing is fetched, and nothing is judged:
the answer is log-probabilities, prompts, stop tokens and hashes, and `duiti.proof.prove` compares.

| request | |
|---|---|
| `folder`, `base` | what was saved; the model below it (a folder, a cached hub id, or null) |
| `is_adapter`, `is_quantized` | whether it is an adapter; whether its base is in four bits |
| `dtype`, `device`, `threads` | in which, where, with how many threads to compute |
| `rows` | of each, `ids` and the places `scored` in it whose token is predicted |
| `chats` | of each, `messages` and `tools` to make the prompt of |
| `rounding` | how far embeddings are moved to see what rounding does, and the seeds to do it with |
| `with_peft`, `trust_remote_code` | whether PEFT may be used, and the model's own Python code |
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
AT_ONCE = 64
"""Tokens whose whole distribution, as wide as the vocabulary, is held in float32 at once."""


@torch.no_grad()
def token_logprobs(model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Of each row, the log-probabilities in nats of the tokens at its `scored` places, each given
    all before it. One row at a time, by the model's own forward pass."""
    device = next(model.parameters()).device
    found = []
    for row in rows:
        ids = torch.tensor([row["ids"]], device=device)
        places = torch.tensor(row["scored"], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        own: list[float] = []
        for part in places.split(AT_ONCE):
            logprobs = logits[part - 1].float().log_softmax(-1)
            own += logprobs.gather(-1, ids[0, part, None])[:, 0].tolist()
        found.append(own)
    return found


@contextmanager
def embeddings_moved(model: Any, epsilon: float, seed: int) -> Iterator[None]:
    """As if every embedding had been rounded otherwise: moved by one unit in the last place at
    most, where a number is rounded by `epsilon` of itself."""
    generator = torch.Generator().manual_seed(seed)

    def move(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
        drawn = torch.empty(embedded.shape).uniform_(-1, 1, generator=generator)
        factors = 1 + 2 * epsilon * drawn.to(embedded.device)
        return (embedded.float() * factors).to(embedded.dtype)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


def tensor_hash(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def main() -> None:
    """Answer one request. What goes wrong is an answer too; a text of a row is in none."""
    transformers.utils.logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not disturb the answer
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    stage = ["begin"]
    try:
        answer = read(request, stage)
    except Exception as error:  # of somebody else's code; whoever started this process says it
        lines = str(error).strip().splitlines() or [""]
        reason = "" if stage[0] == "chats" else lines[0][:300]
        answer = {"failed": stage[0], "kind": type(error).__name__, "reason": reason}
    with answers:
        json.dump(answer, answers)


def read(request: Mapping[str, Any], stage: list[str]) -> dict[str, Any]:
    """Everything that is asked for. `stage` holds what is being done."""
    begin = time.perf_counter()
    folder = request["folder"]
    stage[0] = "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=request["trust_remote_code"], local_files_only=True
    )
    stage[0] = "chats"
    prompts = [prompt_of(tokenizer, chat) for chat in request["chats"]]
    date = datetime.date.today().isoformat()  # which templates may ask for
    stage[0] = "generation_config.json"
    stops = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    answer = _read_adapter(request, stage) if request["is_adapter"] else _read_full(request, stage)
    return {
        "prompts": prompts,
        "date": date,
        "stops": stops if isinstance(stops, list) else [] if stops is None else [stops],
        "seconds": time.perf_counter() - begin,
        **answer,
    }


def prompt_of(tokenizer: Any, chat: Mapping[str, Any]) -> list[int] | str:
    """Ids of what serving sends, or the name of the error that the template ends in."""
    try:
        encoded = tokenizer.apply_chat_template(
            chat["messages"],
            tools=chat["tools"] or None,
            add_generation_prompt=True,
            return_dict=True,
        )
    except Exception as error:  # a template is somebody else's program
        return type(error).__name__
    return list(encoded["input_ids"])


def _read_full(request: Mapping[str, Any], stage: list[str]) -> dict[str, Any]:
    stage[0] = "model"
    model = _load(request, request["folder"])
    tuned = token_logprobs(model, request["rows"])
    rounding = _rounded(model, request)
    base = None
    if request["base"] is not None:
        del model
        gc.collect()
        stage[0] = "base"
        base = token_logprobs(_load(request, request["base"]), request["rows"])
    by = f"transformers {transformers.__version__}"
    return {"by": by, "tuned": tuned, "rounding": rounding, "base": base, "merged": None}


def _read_adapter(request: Mapping[str, Any], stage: list[str]) -> dict[str, Any]:
    rows, folder = request["rows"], Path(request["folder"])
    stage[0] = "base"
    not_quantized = ""
    if request["is_quantized"]:
        try:
            model = _load_in_four_bits(request, request["base"])
            base = token_logprobs(model, rows)
        except Exception as error:  # it, bitsandbytes or accelerate cannot, with this model or here
            lines = str(error).strip().splitlines() or [""]
            not_quantized = f"{type(error).__name__}: {lines[0][:200]}"
    if not request["is_quantized"] or not_quantized:
        model = _load(request, request["base"])
        base = token_logprobs(model, rows)
    stage[0] = "adapter"
    hashes = {name: tensor_hash(t) for name, t in load_file(folder / ADAPTER_WEIGHTS).items()}
    by, adapted, scales, merge = _adapt(model, request)
    tuned = token_logprobs(adapted, rows)
    rounding = _rounded(adapted, request)
    stage[0] = "merge"
    merged = None if request["is_quantized"] else token_logprobs(merge(), rows)
    return {
        "by": by,
        "tuned": tuned,
        "rounding": rounding,
        "base": base,
        "merged": merged,
        "scales": scales,
        "hashes": hashes,
        "not_quantized": not_quantized,
    }


def _load(request: Mapping[str, Any], where: str, **more: Any) -> nn.Module:
    """A plain model, in the dtype of the run."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        where,
        trust_remote_code=request["trust_remote_code"],
        local_files_only=True,
        use_safetensors=True,
        **{"dtype": getattr(torch, request["dtype"]), **more},
    )
    if not more:
        nn.Module.to(model, request["device"])
    return model.eval()


def _load_in_four_bits(request: Mapping[str, Any], where: str) -> nn.Module:
    """The same with linear layers in four bits, as transformers makes them: of the files' numbers,
    as in training."""
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, request["dtype"]),
    )
    device_map = {"": request["device"]}
    return _load(request, where, dtype="auto", device_map=device_map, quantization_config=config)


def _rounded(model: nn.Module, request: Mapping[str, Any]) -> list[list[list[float]]]:
    """What the rows' log-probabilities become when the embeddings are rounded otherwise."""
    found = []
    for seed in request["rounding"]["seeds"]:
        with embeddings_moved(model, request["rounding"]["epsilon"], seed):
            found.append(token_logprobs(model, request["rows"]))
    return found


_Adapted = tuple[str, nn.Module, list[float], Callable[[], nn.Module]]
"""By what the adapter was opened, the adapted model, its scales, and how it is merged."""


def _adapt(model: nn.Module, request: Mapping[str, Any]) -> _Adapted:
    if not request["with_peft"]:
        return _adapt_by_arithmetic(model, Path(request["folder"]))
    try:
        import peft
    except ImportError:
        return _adapt_by_arithmetic(model, Path(request["folder"]))
    adapted = peft.PeftModel.from_pretrained(model, request["folder"])
    layers = [m for m in adapted.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    scales = sorted({float(layer.scaling["default"]) for layer in layers})
    return f"PEFT {peft.__version__}", adapted.eval(), scales, adapted.merge_and_unload


def _adapt_by_arithmetic(model: nn.Module, folder: Path) -> _Adapted:
    """LoRA as its paper has it: W x + s B A x by a hook behind the layer, W + s B A when merged."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    root = math.sqrt if config.get("use_rslora") else float
    scale = config["lora_alpha"] / root(config["r"])
    device = next(model.parameters()).device
    stored = {name: t.to(device) for name, t in load_file(folder / ADAPTER_WEIGHTS).items()}
    suffix = ".lora_A.weight"
    names = [n.removeprefix(PREFIX).removesuffix(suffix) for n in stored if n.endswith(suffix)]
    pairs = {
        name: (stored[f"{PREFIX}{name}{suffix}"], stored[f"{PREFIX}{name}.lora_B.weight"])
        for name in names
    }
    hooks = [
        model.get_submodule(name).register_forward_hook(_adding(a, b, scale))
        for name, (a, b) in pairs.items()
    ]

    @torch.no_grad()
    def merge() -> nn.Module:
        for hook in hooks:
            hook.remove()
        for name, (a, b) in pairs.items():
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight")
            delta = scale * (b.float() @ a.float())
            weight.copy_(weight.float() + (delta.T if isinstance(layer, Conv1D) else delta))
        return model

    by = f"transformers {transformers.__version__} and W + s B A"
    return by, model, [scale], merge


def _adding(a: Tensor, b: Tensor, scale: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        update = F.linear(F.linear(inputs[0].to(a.dtype), a), b)
        return (output + scale * update).to(output.dtype)

    return add


if __name__ == "__main__":
    main()
