"""How fast rows become tokens and masks: duiti, TRL's own preparation, and the bare encoder.

    python benchmarks/prepare.py --data gsm8k_train.jsonl --map question=prompt,answer=response \
        --tokenizer tokenizer.json --rows 10000,100000 --peer .venv-trl/bin/python --write

The job: prompt/response rows as ChatML, encoded, labels on the answer and its stop token.
Every measurement is a fresh process; the three take turns, several times; medians are shown. A
process is timed from its first row to its last (imports, tokenizer and start-up apart), and its
peak memory counts its children in. The file is the rows of `--data`, repeated.

| who | what is timed |
|---|---|
| duiti | `prepare` without the cache of an earlier run, two worker processes |
| TRL | `SFTTrainer._prepare_dataset` on prompt/completion messages, `dataset_num_proc=2` |
| bare | `tokenizers`' `encode_batch_fast` on the rendered texts, its own threads, nothing else |

The bare encoder is what anything that calls the tokenizers library row by row cannot pass. duiti
passes it where the tokenizer allows the exact fast path (`duiti.data.tokens.pretokens`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "prepare.json"
PAGES = [Path(__file__).parent.parent / "docs" / name for name in ("data.md", "data.zh-CN.md")]
BEGIN, END = "<!-- prepare: made by benchmarks/prepare.py -->", "<!-- /prepare -->"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    """Measure, print, and with `--write` keep the numbers."""
    arguments = _arguments()
    if arguments.child is not None:
        json.dump(CHILDREN[arguments.child](arguments), sys.stdout)
        return
    names = ["duiti", "bare", *(["trl"] if arguments.peer else [])]
    found: dict[str, Any] = {"rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, arguments.rows.split(",")):
            file = Path(folder) / f"rows-{count}.jsonl"
            _repeat(arguments, file, count)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _ in range(arguments.repeats):
                for name in names:
                    if name != "trl" or count <= arguments.peer_limit:
                        runs[name].append(_run(name, file, arguments))
            found["rows"][str(count)] = {
                name: {
                    "rows_per_s": round(count / median(run["seconds"] for run in own)),
                    "peak_gb": round(max(run["peak_bytes"] for run in own) / 1e9, 2),
                    "runs_s": [round(run["seconds"], 2) for run in own],
                }
                for name, own in runs.items()
                if own
            }
            print(count, json.dumps(found["rows"][str(count)]), flush=True)
            file.unlink()
    found["machine"] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "tokenizers": version("tokenizers"),
        "trl": _peer_version(arguments.peer),
    }
    print(_table(found))
    if arguments.write:
        _write(found)


def _write(found: dict[str, Any]) -> None:
    """Keep the numbers, beside those of other row counts on the same machine, and show them."""
    if RESULTS.exists():
        before = json.loads(RESULTS.read_text(encoding="utf-8"))
        if {**before["machine"], "trl": ""} == {**found["machine"], "trl": ""}:
            found["rows"] = {**before["rows"], **found["rows"]}
            found["machine"]["trl"] = found["machine"]["trl"] or before["machine"]["trl"]
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for page in PAGES:
        start, rest = page.read_text(encoding="utf-8").split(BEGIN)
        text = f"{start}{BEGIN}\n{_table(found)}\n{END}{rest.split(END)[1]}"
        page.write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    tiny = Path(__file__).parent.parent / "src" / "duiti" / "tiny" / "assets"
    parser.add_argument("--data", type=Path, default=tiny / "train.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json with ChatML's tokens")
    parser.add_argument("--map", default="")
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--peer", help="a Python with trl and its dependencies")
    parser.add_argument("--peer-limit", type=int, default=100_000, help="most rows for the peer")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _repeat(arguments: argparse.Namespace, file: Path, count: int) -> None:
    names = dict(pair.split("=") for pair in arguments.map.split(",") if pair)
    lines = []
    for line in arguments.data.open(encoding="utf-8"):
        row = {names.get(name, name): value for name, value in json.loads(line).items()}
        pair = {"prompt": row["prompt"], "response": row["response"]}
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    with file.open("w", encoding="utf-8") as out:
        out.writelines(islice(cycle(lines), count))


def _run(name: str, file: Path, arguments: argparse.Namespace) -> dict[str, float]:
    python = arguments.peer if name == "trl" else sys.executable
    command = [python, __file__, "--child", name, "--file", str(file)]
    command += ["--processes", str(arguments.processes)]
    if arguments.tokenizer:
        command += ["--tokenizer", str(arguments.tokenizer)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _tokenizer(arguments: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if arguments.tokenizer is None:
        found = AutoTokenizer.from_pretrained(
            Path(__file__).parent.parent / "src" / "duiti" / "tiny" / "assets"
        )
        found.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        return found
    return PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.tokenizer),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def _measured(started: float) -> dict[str, float]:
    """Seconds since then; the most memory of this process and of the largest of its children."""
    seconds = time.perf_counter() - started
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": seconds, "peak_bytes": 1024 * (own + child)}


def _duiti(arguments: argparse.Namespace) -> dict[str, float]:
    from duiti.data.jobs import PrepareOptions
    from duiti.data.prepare import prepare
    from duiti.data.reading.sources import parse_source
    from duiti.data.templates.template import load_template

    template = load_template("chatml", _tokenizer(arguments))
    options = PrepareOptions(date="2026-01-01", workers=arguments.processes, cache=False)
    started = time.perf_counter()
    found = prepare([parse_source(arguments.file)], template, options)
    measured = _measured(started)
    # Every child has the same share of the work, and so about the same memory.
    child = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    measured["peak_bytes"] += (arguments.processes - 1) * child
    assert len(found.store) == found.account.num_rows
    return measured


def _bare(arguments: argparse.Namespace) -> dict[str, float]:
    core = _tokenizer(arguments).backend_tokenizer
    texts = []
    for line in arguments.file.open(encoding="utf-8"):
        row = json.loads(line)
        texts.append(
            f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            f"{row['response']}<|im_end|>\n"
        )
    started = time.perf_counter()
    for start in range(0, len(texts), 1024):
        core.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False)
    return _measured(started)


def _trl(arguments: argparse.Namespace) -> dict[str, float]:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tokenizer(arguments)
    tokenizer.chat_template = CHATML
    rows = [json.loads(line) for line in arguments.file.open(encoding="utf-8")]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in rows
        ]
    )
    seconds = 0.0

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal seconds
            started = time.perf_counter()
            prepared = super()._prepare_dataset(*args, **kwargs)
            seconds += time.perf_counter() - started
            return prepared

    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            dataset_num_proc=arguments.processes,
            max_length=None,
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        model = LlamaForCausalLM(shape)
        Timed(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    return {**_measured(time.perf_counter()), "seconds": seconds}


CHILDREN = {"duiti": _duiti, "bare": _bare, "trl": _trl}


def _table(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, tokenizers {machine['tokenizers']}, TRL"
        f" {machine['trl']}; medians, two processes each:",
        "",
        "| rows | duiti rows/s | bare encoder | TRL | × bare | × TRL | duiti peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, own in found["rows"].items():
        ours = own["duiti"]["rows_per_s"]
        bare = own["bare"]["rows_per_s"]
        peer = own.get("trl", {}).get("rows_per_s")
        lines.append(
            f"| {int(count):,} | {ours:,} | {bare:,} | {f'{peer:,}' if peer else '–'}"
            f" | {ours / bare:.2f} | {f'{ours / peer:.1f}' if peer else '–'}"
            f" | {own['duiti']['peak_gb']} GB |"
        )
    return "\n".join(lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _peer_version(python: str | None) -> str | None:
    if python is None:
        return None
    code = "import importlib.metadata as m; print(m.version('trl'))"
    return subprocess.run(
        [python, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
