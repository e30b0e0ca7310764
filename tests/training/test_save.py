"""A finished folder is whole or not finished: killed at any call, on a full disk, begun anew."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from duiti.config import Config, LoraConfig
from duiti.data.templates.template import Template, load_template
from duiti.durable import remove_leftovers
from duiti.errors import DuitiError
from duiti.manifest import read_manifest
from duiti.model.artefact import Artefact, TrainedOn, read_artefact
from duiti.model.load import resolve
from duiti.model.lora import add_lora, find_targets, lora_layers
from duiti.run import Run
from duiti.training.save import save_weights

HASHES = TrainedOn(base="x", weights="1" * 64, config="2" * 64, tokenizer="3" * 64,
                   template="4" * 64)  # fmt: skip
STOPS = [0, 3]


@pytest.fixture
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template("human-assistant", copy.deepcopy(tokenizer))


@pytest.fixture
def model(llama_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llama_dir)


@pytest.fixture
def save(
    llama_dir: Path, model: PreTrainedModel, template: Template
) -> Callable[[Path, str], None]:
    """Saves the same model, as an adapter or whole."""
    config = Config(model=str(llama_dir), lora=LoraConfig(rank=1))  # smaller than the tokenizer

    def saved(folder: Path, method: str) -> None:
        if method == "lora" and not lora_layers(model):
            add_lora(model, find_targets(model, "all-linear"), config.lora, seed=0)
        settings = config.model_copy(update={"method": method})
        save_weights(model, template, folder, settings, resolve(str(llama_dir)),
                     trained_stops=STOPS, trained_on=HASHES).close()  # fmt: skip

    return saved


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()}  # fmt: skip


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a child that does the work: 0, 1 for a DuitiError, or minus the signal."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            work()
            status = 0
        except DuitiError as error:
            print(error, file=sys.stderr)
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


CALLS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def killed_at(number: int, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: dies of SIGKILL before the call of that number that changes the folder."""
    left = [number]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3
        if event not in CALLS and not is_writing:
            return
        if str(folder) not in str(arguments[0]):
            return
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        left[0] -= 1

    return hook


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_before_any_call_it_is_whole_or_not_finished_and_can_be_saved_again(
    save: Callable[[Path, str], None], tmp_path: Path, method: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    save(whole, method)
    expected = contents(whole)
    statuses = []
    for number in range(200):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        (folder / "README.md").write_text("the run's own")

        def work(folder: Path = folder, number: int = number) -> None:
            sys.addaudithook(killed_at(number, folder))
            save(folder, method)

        statuses.append(in_child(work))
        if statuses[-1] == 0:
            break
        assert statuses[-1] == -9
        if Run(folder).is_finished:
            read_artefact(folder)
        remove_leftovers(folder)
        save(folder, method)
        assert contents(folder) == {**expected, "README.md": b"the run's own"}
        shutil.rmtree(folder)
    assert statuses[-1] == 0
    assert len(statuses) > 15  # files, folders, moves: it did count


def test_killed_while_another_is_saved_over_it_it_is_never_taken_for_finished_in_between(
    save: Callable[[Path, str], None], tmp_path: Path, model: PreTrainedModel
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    save(first, "lora")
    with torch.no_grad():
        next(iter(lora_layers(model).values())).lora_B.fill_(1.0)
    statuses = []
    for number in range(200):
        folder = Path(shutil.copytree(first, tmp_path / f"killed-{number}"))

        def work(folder: Path = folder, number: int = number) -> None:
            sys.addaudithook(killed_at(number, folder))
            save(folder, "lora")

        statuses.append(in_child(work))
        if Run(folder).is_finished:
            read_artefact(folder)
        if statuses[-1] == 0:
            break
    assert statuses[-1] == 0
    assert len(statuses) > 15


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("num_bytes", [0, 50, 400, 3000, 10_000, 15_000])
def test_where_the_disk_refuses_it_is_an_error_with_the_path_and_nothing_is_left(
    save: Callable[[Path, str], None], tmp_path: Path, method: str, num_bytes: int
) -> None:
    """As on a full disk, each library says it in its own way; tokenizers in a bare Exception."""
    folder = tmp_path / "run"
    folder.mkdir()
    with files_up_to(num_bytes), pytest.raises(DuitiError) as caught:
        save(folder, method)
    assert str(folder) in caught.value.what
    assert "files may not become so large here" in caught.value.what
    assert contents(folder) == {}
    assert list(folder.iterdir()) == []
    save(folder, method)
    assert read_artefact(folder).trained_on == HASHES


def test_without_room_nothing_is_begun(
    save: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DuitiError, match="not enough space"):
        save(tmp_path, "lora")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_an_error(
    save: Callable[[Path, str], None], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DuitiError, match="permission denied"):
            save(tmp_path, "lora")
    finally:
        tmp_path.chmod(0o700)


def test_the_manifest_tells_what_it_is_and_what_it_was_trained_on(
    save: Callable[[Path, str], None], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "lora").mkdir()
    save(tmp_path / "full", "full")
    save(tmp_path / "lora", "lora")
    assert read_artefact(tmp_path / "full") == Artefact(kind="model", trained_on=HASHES)
    found = read_artefact(tmp_path / "lora")
    assert (found.kind, found.trained_on) == ("adapter", HASHES)
    assert (found.adapter["rank"], found.adapter["alpha"]) == (1, 32.0)
    on_disk = contents(tmp_path / "lora").keys() - {"manifest.json"}
    assert read_manifest(tmp_path / "lora").files.keys() == on_disk


def test_saved_over_an_earlier_one_nothing_of_that_is_left_but_what_is_written_again(
    save: Callable[[Path, str], None], tmp_path: Path, model: PreTrainedModel
) -> None:
    save(tmp_path, "lora")
    before = contents(tmp_path)
    with torch.no_grad():
        next(iter(lora_layers(model).values())).lora_B.fill_(1.0)
    save(tmp_path, "lora")
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"adapter_model.safetensors", "manifest.json"}
    read_artefact(tmp_path)


def test_the_tokenizer_keeps_the_template_that_it_came_with(
    save: Callable[[Path, str], None], tmp_path: Path, template: Template
) -> None:
    save(tmp_path, "lora")
    assert template.tokenizer.chat_template is None
    with files_up_to(15_000), pytest.raises(DuitiError):
        save(tmp_path, "lora")
    assert template.tokenizer.chat_template is None
