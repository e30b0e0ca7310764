"""Settings, contents and checkpoints of another run, finished runs, numbers that are not finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.fault import Fault, Trial
from faults.inject import Faults
from faults.place import (
    ADAPTER,
    RUN,
    Place,
    World,
    flip,
    listing,
    must,
    truncate,
)  # fmt: skip
from faults.warm import NO_FAULTS
from safetensors.torch import load_file, save_file

from duiti import tiny


def foreign(world: World) -> Iterator[Trial]:
    """A checkpoint of another run, whole, with a higher step."""

    def trial(flags: list[str]) -> str:
        other = world.begun()
        other.train(NO_FAULTS, *flags).ends(0)
        place = world.stopped()
        shutil.copytree(
            other.run / "checkpoints/step-000018", place.run / "checkpoints/step-000018"
        )
        done = place.resume()
        if done.code == 0:
            done.says("step-000018")
            return f"named, {place.same()}"
        done.ends(1, 2).says("step-000018")
        shutil.rmtree(place.run / "checkpoints/step-000018")
        return f"refused by name (exit {done.code}); without it {place.same_in_the_end()}"

    yield "another learning rate", partial(trial, ["--learning-rate", "0.001"])
    yield "another seed", partial(trial, ["--seed", "7"])


def changed_settings(world: World) -> Iterator[Trial]:
    def trial(key: str, flags: list[str]) -> str:
        place = world.stopped()
        done = place.resume(*flags).ends(2).says(f"{key}:", f"--allow-change {key}")
        must(place.steps() == [6, 9], f"steps {place.steps()}")
        allowed = world.stopped()
        allowed.resume(*flags, "--allow-change", key).ends(0)
        return f"exit {done.code}; allowed: exit 0; left as it was: {place.same_in_the_end()}"

    for key, value in {
        "learning_rate": "0.001", "batch_size": "8", "seed": "1", "max_length": "512",
        "epochs": "3", "schedule": "linear", "weight_decay": "0.1", "max_grad_norm": "0.5",
        "template": "alpaca", "train_on": "all", "lora.dropout": "0.2",
    }.items():  # fmt: skip
        flag = "--" + key.replace("_", "-")
        yield f"{flag} {value}", partial(trial, key, [flag, value])


def changed_content(world: World) -> Iterator[Trial]:
    """Data, base and tokenizer are found by their content, whatever their names are."""

    def copied_base(place: Place) -> Path:
        return Path(shutil.copytree(tiny.model_path(), place.folder / "base"))

    def stopped_on(place: Place) -> None:
        place.train(
            Faults(die_on="mkdir", die_once=world.mkdir_of(12)), "-m", str(place.folder / "base")
        ).ends(-9)

    def data() -> str:
        place = world.begun()
        place.train(Faults(die_on="mkdir", die_once=world.mkdir_of(12))).ends(-9)
        path = place.folder / "data.jsonl"
        whole = path.read_text()
        path.write_text(whole.replace("It was 7.", "It was 8."))
        done = place.resume().ends(2).says("data:", "data.jsonl was changed")
        path.write_text(whole)
        return f"exit {done.code}; put back: {place.same_in_the_end()}"

    def moved() -> str:
        place = world.begun()
        place.train(Faults(die_on="mkdir", die_once=world.mkdir_of(12))).ends(-9)
        (place.folder / "data.jsonl").rename(place.folder / "other.jsonl")
        done = place.resume().ends(2, 3).says("data.jsonl")
        place.does("train", "--resume", RUN, "other.jsonl").ends(0)
        return f"exit {done.code}; named by its new place: {place.same()}"

    def weights() -> str:
        place = world.begun()
        base = copied_base(place) / "model.safetensors"
        stopped_on(place)
        tensors = load_file(base)
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] * 1.01
        save_file(tensors, base, metadata={"format": "pt"})
        done = place.resume().ends(2).says("base:")
        shutil.copy(tiny.model_path() / base.name, base)
        place.resume().ends(0)
        return f"exit {done.code}; put back: exit 0"

    def tokenizer() -> str:
        place = world.begun()
        path = copied_base(place) / "tokenizer.json"
        stopped_on(place)
        values = json.loads(path.read_text())
        merges = values["model"]["merges"]
        merges[-1], merges[-2] = merges[-2], merges[-1]
        path.write_text(json.dumps(values))
        done = place.resume().ends(2).says("tokenizer:")
        return f"exit {done.code}"

    yield "data: a number in one row", data
    yield "data: moved", moved
    yield "base: a tensor scaled by 1.01", weights
    yield "tokenizer: two merges swapped", tokenizer


def finished(world: World) -> Iterator[Trial]:
    def trial(*flags: str) -> str:
        place = world.begun()
        shutil.copytree(world.reference.run, place.run)
        before = listing(place.run)
        done = place.resume(*flags).ends(0).says("nothing left to do")
        must(listing(place.run) == before, "a file was changed")
        return f"exit {done.code}, no file is changed"

    yield "as it is", trial


def finished_and_damaged(world: World) -> Iterator[Trial]:
    """A finished run's adapter is harmed afterwards: it must not be used in silence."""

    def trial(harm: Callable[[Path], object]) -> str:
        place = world.begun()
        shutil.copytree(world.reference.run, place.run)
        harm(place.run / ADAPTER)
        done = place.does("eval", RUN, "data.jsonl", "--device", "cpu").ends(1, 2).says(ADAPTER)
        return f"exit {done.code}, named"

    yield "a bit", partial(trial, flip)
    yield "cut", partial(trial, truncate)


def not_finite(world: World) -> Iterator[Trial]:
    def rate() -> str:
        place = world.begun()
        flags = ["--learning-rate", "1e30", "--max-grad-norm", "0", "--save-every", "1"]
        done = place.train(NO_FAULTS, *flags).ends(1).says("data.jsonl:", "step")
        must(not (place.run / ADAPTER).exists(), "an adapter was saved")
        for path in place.checkpoints():
            for tensor in load_file(path / "trained.safetensors").values():
                must(tensor.isfinite().all(), f"{path.name} is not finite")
        return f"exit {done.code}, step and rows are named, nothing of it is saved"

    def base() -> str:
        place = world.begun()
        path = Path(shutil.copytree(tiny.model_path(), place.folder / "base")) / "model.safetensors"
        tensors = load_file(path)
        name = sorted(tensors)[3]
        tensors[name].view(-1)[5] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
        done = place.train(NO_FAULTS, "-m", str(path.parent)).ends(1, 2).says(name)
        return f"exit {done.code}, the tensor is named"

    yield "a learning rate of 1e30", rate
    yield "NaN in a base", base


FAULTS = [
    Fault(
        name="foreign", number="F13", what="a whole checkpoint of another run, with a higher step",
        expected="named, and not used", trials=foreign,
    ),
    Fault(
        name="settings", number="F16", what="resumed with other settings",
        expected="exit 2 with both values, unless the key is allowed", trials=changed_settings,
        num_sampled=1,
    ),
    Fault(
        name="content", number="F16, F23", what="resumed with other data, base or tokenizer",
        expected="exit 2, named", trials=changed_content,
    ),
    Fault(
        name="finished", number="F17", what="resumed after it was finished",
        expected="exit 0, no file is changed", trials=finished, num_sampled=1,
    ),
    Fault(
        name="finished-damaged", number="F11", what="a finished run's adapter is damaged",
        expected="it is not used: an error that names the file", trials=finished_and_damaged,
    ),
    Fault(
        name="not-finite", number="F19, F20", what="numbers that are not finite",
        expected="an error that names step and rows, or the tensor; nothing of it is saved",
        trials=not_finite,
    ),
]  # fmt: skip
