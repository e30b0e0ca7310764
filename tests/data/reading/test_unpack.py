"""gzip and zstd are read as what was packed, in constant memory, and damage is told by its line."""

import gzip
import io
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from duiti.data.reading.unpack import unpacked
from duiti.errors import DataError, UsageError

TEXT = b"".join(b"line %d of the text\n" % number for number in range(2000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
PACKINGS = pytest.mark.parametrize("suffix", PACK)


def _open(content: bytes, name: str) -> io.BufferedReader:
    return unpacked(io.BufferedReader(io.BytesIO(content)), name)


def _read_until_damage(content: bytes, name: str) -> tuple[bytes, DataError]:
    lines: list[bytes] = []
    with pytest.raises(DataError) as caught:
        lines.extend(_open(content, name))  # keeps what came before the error
    return b"".join(lines), caught.value


@PACKINGS
@given(parts=st.lists(st.binary(max_size=50) | st.just(TEXT), min_size=1, max_size=5))
def test_members_one_after_the_other_are_one_stream(suffix: str, parts: list[bytes]) -> None:
    packed = b"".join(PACK[suffix](part) for part in parts)
    assert _open(packed, f"a{suffix}").read() == b"".join(parts)
    assert _open(packed, "a").read() == b"".join(parts)


@PACKINGS
def test_what_is_cut_ends_with_the_line_that_is_not_whole(suffix: str) -> None:
    packed = PACK[suffix](TEXT) + PACK[suffix](TEXT)
    for size in range(4, len(packed), 97):
        if size == len(packed) // 2:
            continue  # a whole member
        read, error = _read_until_damage(packed[:size], f"a{suffix}")
        assert (TEXT + TEXT).startswith(read)
        lines = read.count(b"\n")
        place, _, what = error.what.partition(" ")
        assert what.endswith("data ends too early")
        at = int(place.removeprefix(f"a{suffix}:").rstrip(":"))
        assert lines + 1 <= at <= lines + 2  # a line without its end is not handed out
        assert error.exit_code == 3


@PACKINGS
def test_no_damaged_byte_goes_unnoticed_or_raises_anything_else(suffix: str) -> None:
    packed = PACK[suffix](TEXT)
    for place in range(0, len(packed), 41):
        damaged = bytearray(packed)
        damaged[place] ^= 0x15
        try:
            assert _open(bytes(damaged), "a").read() in (TEXT, bytes(damaged))
        except DataError as error:
            assert "damaged" in error.what or "ends too early" in error.what  # noqa: PT017


@PACKINGS
def test_what_follows_the_packed_data_is_refused(suffix: str) -> None:
    read, error = _read_until_damage(PACK[suffix](TEXT) + b"and more\n", f"a{suffix}")
    assert read == TEXT
    assert error.what.startswith(f"a{suffix}:2001: ")
    assert error.what.endswith("data is followed by something else")
    assert "2000 lines before it" in error.why


def test_padding_after_gzip_is_not_data() -> None:
    for padding in (b"\0", b"\0" * 100_000):
        packed = gzip.compress(b"a") + padding + gzip.compress(b"b") + padding
        assert _open(packed, "a.gz").read() == b"ab"


def test_a_zstd_file_may_begin_with_a_frame_to_skip() -> None:
    skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
    assert _open(skipped + PACK[".zst"](TEXT) + skipped, "a.zst").read() == TEXT


@PACKINGS
@pytest.mark.parametrize("content", [b"", b"plain", b"\x1f", gzip.compress(b"a")[:1]])
def test_a_name_that_says_packed_must_be_true(suffix: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"is not|is empty"):
        _open(content, f"a{suffix}")


def test_a_file_packed_otherwise_than_its_name_says_is_refused_with_how() -> None:
    with pytest.raises(UsageError) as caught:
        _open(gzip.compress(b"a"), "a.zst")
    assert caught.value.fix == "it is gzip: rename it"


def _zstd_bomb(num_blocks: int) -> bytes:
    """Blocks of four bytes that mean 128 KiB each."""
    block = ((131072 << 3) | (1 << 1)).to_bytes(3, "little") + b"x"
    last = ((131072 << 3) | (1 << 1) | 1).to_bytes(3, "little") + b"x"
    return b"\x28\xb5\x2f\xfd\x00\x38" + block * (num_blocks - 1) + last


@PACKINGS
def test_a_file_that_unpacks_to_far_too_much_takes_little_memory(suffix: str) -> None:
    size = 800 * 2**17
    packed = _zstd_bomb(800) if suffix == ".zst" else gzip.compress(b"x" * size, 9)
    assert len(packed) < size / 900
    stream = _open(packed, f"a{suffix}")
    tracemalloc.start()
    try:
        total = 0
        while piece := stream.read(2**16):
            total += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == size
    assert peak < 40 * 2**20


def test_without_zstandard_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError) as caught:
        _open(PACK[".zst"](b"a"), "a.zst")
    assert caught.value.fix == "pip install 'duiti[zstd]'"


def test_closing_the_stream_closes_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a"))
    file = (tmp_path / "a.gz").open("rb")
    unpacked(file, "a.gz").close()
    assert file.closed
