"""A base's hash is that of the numbers that are loaded, and is computed once."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from duiti.data.templates.template import Template, load_template
from duiti.errors import DuitiError, UsageError
from duiti.infer import digests
from duiti.infer.digests import base_digest, template_digest, tokenizer_digest
from duiti.model.load import ModelSource, resolve


@pytest.fixture
def base(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "base"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUITI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hashes"


def digest(folder: Path) -> digests.BaseDigest:
    return base_digest(resolve(str(folder)))


def old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a change cannot be set: so nothing is too new."""
    monkeypatch.setattr(digests, "SETTLED_S", -1e6)


def test_weights_are_hashed_by_file_and_name(base: Path) -> None:
    by_hand = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    expected = hashlib.sha256(f'{{"model.safetensors":"{by_hand}"}}'.encode()).hexdigest()
    assert digest(base).weights == expected


def test_a_copy_elsewhere_is_the_same_base(base: Path, llama_dir: Path) -> None:
    assert digest(base) == digest(llama_dir)


def test_one_number_more_or_less_is_another_base(base: Path) -> None:
    before = digest(base)
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 2**-20
    save_file(tensors, path, metadata={"format": "pt"})
    assert digest(base).weights != before.weights
    assert digest(base).config == before.config


def test_all_shards_of_the_index_count_and_no_other_file(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="100KB")
    shards = sorted(base.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = digest(base)
    shutil.copy(shards[0], base / "consolidated.safetensors")
    assert digest(base) == before
    changed = bytearray(shards[-1].read_bytes())
    changed[-1] ^= 1
    shards[-1].write_bytes(changed)
    assert digest(base).weights != before.weights
    shards[-1].unlink()
    with pytest.raises(UsageError, match="cannot be loaded"):
        digest(base)


def test_a_config_that_says_the_same_is_the_same(base: Path) -> None:
    before, path = digest(base), base / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "transformers_version": "9.9"}, sort_keys=True))
    assert digest(base) == before
    path.write_text(json.dumps({**values, "rms_norm_eps": 1e-3}))
    assert digest(base).config != before.config
    assert digest(base).weights == before.weights


def test_weights_in_pickles_have_no_hash(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickle|\.bin"):
        digest(base)


def test_a_hub_id_is_what_lies_in_the_local_cache(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as the hub's library does: a commit's folder of links to files."""
    repository = tmp_path / "models--someone--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama_dir / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = ModelSource("someone/small", "someone/small", False)
    assert base_digest(source) == digest(llama_dir)
    with pytest.raises(UsageError, match="not on this machine"):
        base_digest(ModelSource("someone/other", "someone/other", False))


def test_a_file_is_read_once_and_again_when_it_is_another(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_enough(monkeypatch)
    read: list[Path] = []
    own = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: (read.append(path), own(path))[1])
    first = digest(base)
    assert digest(base) == first
    assert len(read) == 1
    path = base / "model.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    times = path.stat()
    path.write_bytes(changed)
    while path.stat().st_ctime_ns == times.st_ctime_ns:  # the file system's clock has to tick
        path.touch()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and rsync leave it
    assert digest(base) != first
    assert len(read) == 2


def test_what_was_written_a_moment_ago_is_not_remembered(base: Path, cache: Path) -> None:
    digest(base)
    assert not cache.exists()


def test_a_memory_that_was_damaged_is_read_anew(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_enough(monkeypatch)
    first = digest(base)
    (remembered,) = cache.iterdir()
    text = remembered.read_text()
    for spoilt in ("", text[:40], text.replace(text[0], "0" if text[0] != "0" else "1", 1)):
        remembered.write_text(spoilt)
        assert digest(base) == first
    (other,) = cache.iterdir()
    assert other.read_text() == text


def test_without_a_cache_that_can_be_written_it_is_hashed_every_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_enough(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DUITI_CACHE", str(tmp_path / "file"))
    assert digest(base) == digest(base)


def test_a_file_that_changes_while_it_is_read_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = digests.file_digest

    def read_and_write(path: Path) -> str:
        found = own(path)
        path.write_bytes(path.read_bytes() + b"\0")
        return found

    monkeypatch.setattr(digests, "file_digest", read_and_write)
    with pytest.raises(DuitiError, match="changed while it was read"):
        digest(base)


def test_a_tokenizer_that_was_saved_and_loaded_has_the_same_hash(
    tokenizer: PreTrainedTokenizerFast,
    bos_tokenizer: PreTrainedTokenizerFast,
    metaspace_tokenizer: PreTrainedTokenizerFast,
    legacy_metaspace_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    known = (tokenizer, bos_tokenizer, metaspace_tokenizer, legacy_metaspace_tokenizer)
    found = set()
    for number, each in enumerate(known):
        each.save_pretrained(tmp_path / str(number))
        again = AutoTokenizer.from_pretrained(tmp_path / str(number))
        found.add(tokenizer_digest(each))
        assert tokenizer_digest(again) == tokenizer_digest(each)
        again.save_pretrained(tmp_path / f"{number}-again")
        third = AutoTokenizer.from_pretrained(tmp_path / f"{number}-again")
        assert tokenizer_digest(third) == tokenizer_digest(each)
    assert len(found) == len(known)


def test_another_special_token_is_another_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|im_end|>"
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


def test_a_template_is_its_source_and_its_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    one = load_template("human-assistant", tokenizer)
    same = Template("another name", one.source, tokenizer, one.declared, one.stop)
    assert template_digest(same) == template_digest(one)
    for source, stop in ((one.source + " ", one.stop), (one.source, None)):
        other = Template(one.name, source, tokenizer, one.declared, stop)
        assert template_digest(other) != template_digest(one)


def test_nothing_is_computed_with_torch(base: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    digest(base)
    assert torch.equal(torch.random.get_rng_state(), before)
