"""Data files and weights that are made to harm end in an error, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_faults import in_child

from duiti.data.reading.read import read_rows
from duiti.errors import DuitiError
from duiti.model.load import load_model, resolve

LIMIT_BYTES, LIMIT_S = 2**30, 10


def read(path: Path) -> str:
    found = [type(row).__name__ for row in read_rows(str(path))]
    return f"rows {sorted(set(found))} {len(found)}"


def load(path: Path) -> str:
    load_model(resolve(str(path)), dtype=torch.float32, device="cpu")
    return "loaded"


def limited(work: Callable[[Path], str], path: Path) -> str:
    """What it returns, or its error, in a child that may take a gigabyte more and ten seconds."""
    answer = path.with_name("answer.txt")

    def answered() -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        try:
            text = work(path)
        except DuitiError as error:
            text = str(error)
        answer.write_text(text, encoding="utf-8")

    assert in_child(answered, lambda: None) == 0
    return answer.read_text(encoding="utf-8")


def gzip_bomb(path: Path, piece: bytes) -> None:
    """5 GB in 5 MB, as small as deflate can: a thousandth."""
    with gzip.GzipFile(path, "wb", compresslevel=9, mtime=0) as file:
        for _ in range(16):
            file.write(piece * 2**20)
    member = path.read_bytes()
    with path.open("wb") as out:
        for _ in range(5 * 2**30 // (16 * 2**20 * len(piece))):
            out.write(member)


@pytest.mark.parametrize("piece", [b"\n", b"x", b" "])
def test_a_bomb_in_gzip_ends_the_reading(tmp_path: Path, piece: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    gzip_bomb(path, piece)
    assert "unpacks to more than 200 times its size" in limited(read, path)


def test_a_bomb_in_zstd_ends_the_reading(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    frame = zstandard.ZstdCompressor().compress(b"\n" * 2**26)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(frame * 80)
    assert "unpacks to more than 200 times its size" in limited(read, path)


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deep arrays": ("a.jsonl", lambda: b"[" * 5_000_000),
    "deep objects": ("a.jsonl", lambda: b'{"a":' * 2_000_000),
    "deep elements": ("a.json", lambda: b'[{"a":' + b"[" * 5_000_000),
    "a long number": ("a.jsonl", lambda: b'{"a": ' + b"9" * 20_000_000 + b"}"),
    "many keys": ("a.jsonl", lambda: b"{" + b'"a":1,' * 1_000_000 + b'"b":1}'),
    "no line end": ("a.jsonl", lambda: b"x" * (100 * 2**20)),
    "an open quote": ("a.csv", lambda: b'a,b\n"' + b"x\n" * (40 * 2**20)),
    "quotes": ("a.csv", lambda: b"a,b\n" + b'"' * 5_000_001),
    "many columns": ("a.csv", lambda: b",".join(b"c%d" % n for n in range(500_000)) + b"\n1\n"),
    "no parquet": ("a.parquet", lambda: b"PAR1" + b"\xff" * 4096 + b"PAR1"),
    "a parquet of no end": ("a.parquet", lambda: b"PAR1" + struct.pack("<i", 2**31 - 1) + b"PAR1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_data_ends_in_an_error_within_ten_seconds_and_a_gigabyte(
    tmp_path: Path, name: str
) -> None:
    file, make = DAMAGED[name]
    (tmp_path / file).write_bytes(make())
    found = limited(read, tmp_path / file)
    assert found.startswith("rows ['Rejected']") or file in found, found[:300]


def header(values: object, *, length: int | None = None) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "no header": b"\0" * 8,
    "a header without end": header({}, length=2**63),
    "a long header": header({}, length=2**31),
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a negative offset": header(tensor("F32", [1], [-4, 0])) + b"\0" * 4,
    "offsets the other way": header(tensor("F32", [1], [4, 0])) + b"\0" * 4,
    "beyond the end": header(tensor("F32", [1024], [0, 4096])) + b"\0" * 4,
    "a shape that overflows": header(tensor("F32", [2**40, 2**40], [0, 4])) + b"\0" * 4,
    "a negative shape": header(tensor("F32", [-1], [0, 4])) + b"\0" * 4,
    "no such type": header(tensor("PICKLE", [1], [0, 4])) + b"\0" * 4,
    "a gap": header(tensor("F32", [1], [4, 8])) + b"\0" * 8,
    "overlapping": header(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}
    )
    + b"\0" * 4,
    "a name of no end": header({"x" * 1_000_000: {"dtype": "F32"}}),
    "a pickle": b"\x80\x04\x95" + b"\0" * 64,
    "nothing in it": header({}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_end_in_an_error_within_ten_seconds_and_a_gigabyte(
    llama_dir: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(llama_dir, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    found = limited(load, folder)
    assert found.startswith(str(folder)), found
    assert "why:" in found or "missing in its files" in found
