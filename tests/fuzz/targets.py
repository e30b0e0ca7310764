"""What is fuzzed: a parser each, good inputs to start from, and what may come out of it.

    target = TARGETS["rows-jsonl"]
    target.run(data, folder)                # returns, or raises what is no finding

A target takes bytes and hands them to the parser as a stranger would. Errors of ours (`DuitiError`,
`RowError`, `TemplateFault`) are answers; anything else that comes out is a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from duiti.data.reading.read import read_rows
from duiti.data.templates.render import Renderer, TemplateSpec, limit_time
from duiti.data.templates.sandbox import TemplateFault
from duiti.errors import DuitiError, RowError
from duiti.manifest import check_manifest, write_manifest
from duiti.model.json_files import read_json
from duiti.model.load import load_config, load_tokenizer, resolve
from duiti.model.tokenizer_patterns import screen_patterns
from duiti.model.weight_files import contents, shard_names
from duiti.strict_yaml import parse_yaml
from duiti.training.state import RunState, read_state
from duiti.types import Message

OURS = (DuitiError, RowError, TemplateFault)


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under fire."""

    name: str
    seeds: tuple[bytes, ...]
    """Inputs from which mutations start."""
    words: tuple[bytes, ...]
    """What mutations put in: pieces that mean something to this parser."""
    parse: Callable[[bytes, Path], object]
    is_native: bool = False
    """Whether it needs a process of its own: a crash of a library in C or Rust takes the process
    along, and so does the clock of the templates' sandbox."""

    def run(self, data: bytes, folder: Path) -> None:
        """Parse; what is ours to raise is an answer."""
        try:
            self.parse(data, folder)
        except OURS:
            return


def mutated(seed: bytes, words: tuple[bytes, ...], rng: random.Random) -> bytes:
    """A seed with a few changes: bits, bytes, pieces left out, doubled, moved and put in."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice((1, 2, 4, 16, 64)))
        match rng.randrange(7):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[rng.randrange(len(data))] = rng.choice(b"\0\xff\n\"'{}[],:0-")
            case 2:
                del data[place:end]
            case 3:
                data[place:place] = data[place:end] * rng.choice((1, 2, 50))
            case 4:
                data[place:end] = rng.randbytes(end - place)
            case 5:
                del data[place:]
            case _:
                data[place:place] = rng.choice(words)
    return bytes(data)


def _rows(name: str) -> Callable[[bytes, Path], object]:
    def parse(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return [type(row) for row in read_rows(path)]

    return parse


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"prompt": ["a", "b", None], "n": [1, 2, 3], "m": [[{"x": "y"}], [], None]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _template(data: bytes, folder: Path) -> object:
    limit_time()
    source = data.decode("utf-8", "replace")
    spec = TemplateSpec(name="fuzzed", source=source, special_tokens={}, date="2026-01-01")
    renderer = Renderer(spec)
    messages = [Message(role="user", content="q"), Message(role="assistant", content="a")]
    return renderer.transcript(messages), renderer.prompt(messages[:1])


def _config(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_bytes(data)
    return load_config(resolve(str(folder)))


def _tokenizer(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_bytes(data)
    screen_patterns(folder, "fuzzed")
    return load_tokenizer(resolve(str(folder)))


def _tokenizer_config(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_bytes(_TOKENIZER)
    (folder / "tokenizer_config.json").write_bytes(data)
    return load_tokenizer(resolve(str(folder)))


def _weights(data: bytes, folder: Path) -> object:
    (folder / "model.safetensors").write_bytes(data)
    return contents([folder / "model.safetensors"], "fuzzed")


def _index(data: bytes, folder: Path) -> object:
    (folder / "model.safetensors.index.json").write_bytes(data)
    for name in shard_names(folder, "fuzzed"):
        assert (folder / name).resolve().parent == folder.resolve(), name
    return read_json(folder, "model.safetensors.index.json", "fuzzed")


def _manifest(data: bytes, folder: Path) -> object:
    for name in ("manifest.json", "state.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "state.json").write_text("{}")
    (folder / "manifest.json").write_bytes(data)
    return check_manifest(folder)


def _state(data: bytes, folder: Path) -> object:
    (folder / "state.json").write_bytes(data)
    return read_state(folder)


def manifest_seed(folder: Path) -> bytes:
    """A good manifest of `state.json`."""
    (folder / "state.json").write_text("{}")
    write_manifest(folder, {"step": 3}, ["state.json"])
    return (folder / "manifest.json").read_bytes()


def _yaml(data: bytes, folder: Path) -> object:
    return parse_yaml(data.decode("utf-8", "replace"), source="fuzzed")


_TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 3, "content": "<e>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True,
                          "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True,
                    "trim_offsets": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }
).encode()  # fmt: skip
_STATE = json.dumps(
    {"version": 1, "optimizer_steps": 0, "state": asdict(RunState(micro_batch_tokens=64))}
).encode()
_ROWS = (
    b'{"prompt": "q", "response": "a"}\n{"messages": [{"role": "user", "content": "\\u00e9"}]}\n'
)
_JSON_WORDS = (
    b'{"a":', b"[", b"]", b"}", b"null", b"NaN", b"1e999", b"-0", b"9" * 5000, b'"', b"\\ud800",
    b"\\u0000", b"\0", b"\xef\xbb\xbf", b"\xff", b"[" * 3000, b'{"a":' * 3000, b"true", b",",
)  # fmt: skip
_CONFIG_WORDS = (
    *_JSON_WORDS, b'"auto_map": {"AutoConfig": "a--b.C"},', b'"num_hidden_layers": 1000000000,',
    b'"model_type": "detr",', b'"model_type": "rag",', b'"dtype": "load",', b"1000000000000000",
    b'"_attn_implementation": "x/y",', b'"rope_scaling": {"rope_type": "yarn"},', b"-1", b"0",
)  # fmt: skip
_CHATML = (
    b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
    b"{% if add_generation_prompt %}<|a|>{% endif %}"
)
_LLAMA = json.dumps(
    {
        "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32,
        "num_attention_heads": 2, "intermediate_size": 16, "rope_theta": 10000.0,
        "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "eos_token_id": 2,
    }
).encode()  # fmt: skip

TARGETS = {
    target.name: target
    for target in (
        Target("rows-jsonl", (_ROWS, b""), _JSON_WORDS, _rows("rows.jsonl")),
        Target("rows-json", (b'[{"prompt": "q"}, {"b": [1, 2]}]',), _JSON_WORDS,
               _rows("rows.json")),
        Target("rows-csv", (b'prompt,response\nq,"a\n""b"""\n1,2\n',),
               (b'"', b",", b"\r", b"\n", b"\0", b"\xff", b'""' * 3000, b";"), _rows("rows.csv")),
        Target("rows-gz", (gzip.compress(_ROWS * 50, mtime=0),),
               (b"\x1f\x8b", b"\0" * 64), _rows("rows.jsonl.gz")),
        Target("rows-parquet", (_parquet(),), (b"PAR1", b"\xff" * 8, b"\0" * 8),
               _rows("rows.parquet"), is_native=True),
        Target("yaml", (b"a: 1\nb: [x, {c: 'd'}]\ne: |\n  text\n",),
               (b"&a ", b"*a", b"!!int ", b"<<: ", b"[" * 3000, b"- " * 3000, b"? ", b"%YAML 1.1\n",
                b"1:2:3", b"0x", b"---\n", b"\0", b"\x85", b".inf", b"2024-01-01"), _yaml),
        Target("template", (_CHATML,),
               (b"{{", b"}}", b"{%", b"%}", b"range(10**9)", b"'a' * 10**9", b"__class__",
                b"|tojson", b"{% set x = x ~ x %}", b"|attr('mro')", b"{% include 'x' %}",
                b"(" * 3000,
                b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"cycler", b"namespace(a=1)",
                b"{% for a in range(99999) %}{% for b in range(99999) %}x"), _template,
               is_native=True),
        Target("config", (_LLAMA,), _CONFIG_WORDS, _config),
        Target("tokenizer", (_TOKENIZER,), (*_JSON_WORDS, b'{"Regex": "(a+)+$"}', b"-1"),
               _tokenizer, is_native=True),
        Target("tokenizer-config", (b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": '
                                    b'"<e>", "model_max_length": 512, "chat_template": "x"}',),
               (*_JSON_WORDS, b'"vocab_file": "/etc/passwd",', b'"tokenizer_class": "Trainer",'),
               _tokenizer_config),
        Target("weights", (save({"a": torch.zeros(3, 4), "b": torch.ones(2)}),),
               (b"\xff" * 8, b"\0" * 8, b'"shape":[', b"99999999999999999999", b"-1"), _weights,
               is_native=True),
        Target("index", (b'{"metadata": {}, "weight_map": {"a": "m-1.safetensors"}}',),
               (*_JSON_WORDS, b"../", b"/etc/", b".safetensors", b"\\u0000"), _index),
        Target("state", (_STATE,), (*_JSON_WORDS, b'"step": 3,', b"-1", b"1.5", b"true"), _state),
        Target("manifest", (), (*_JSON_WORDS, b"../", b"/etc/passwd", b'"bytes": -1'), _manifest),
    )
}  # fmt: skip
