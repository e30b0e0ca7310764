"""Settings that were left open: chosen from the model, the data and the machine, each with its
reason.

config, reasons = settle(config, material)      # no `auto` is left
plan = step_plan(config, num_examples(config, material))
rows = recurring_rows(config, examples, material.val)
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from duiti.config import Config
from duiti.data.batch import epoch_updates
from duiti.data.reading.sources import parse_source
from duiti.data.repeats.split import parse_share
from duiti.data.replay import num_rehearsed
from duiti.data.storage.store import ExampleStore
from duiti.data.templates.template import NAMES
from duiti.eval.anchor import MAX_TOKENS, NUM_TEXTS, TEXT_TOKENS
from duiti.material import Material
from duiti.model.load import choose_device
from duiti.model.precision import choose_dtype
from duiti.quantities import Replay, seconds_in
from duiti.training.optim import CoolDown, RatePlan, cooled_down, default_learning_rate
from duiti.training.state import RunState
from duiti.training.step import StepPlan, is_done
from duiti.types import Progress

CPU_MICRO_BATCH_TOKENS = 2048
CUDA_MICRO_BATCH_TOKENS = 16384
MOST_LOOKS, FEWEST_LOOKS = 10, 2
"""How often a run is measured, if nobody says."""
LOOKING_SHARE = 0.1
"""Of the arithmetic of training, to be spent on that."""
FORWARD_SHARE = 1 / 3
"""Of a token's arithmetic in training: what it takes to measure it."""


WHY_RANK = "rank: from 4 to 64, more of it learns more and forgets more; docs/learning-rate.md"
"""Of the default; measured by `benchmarks/learning_rate.py`."""

Chosen = dict[str, tuple[object, str]]
"""Values and the reasons for them, by key."""


def settle(config: Config, material: Material) -> tuple[Config, dict[str, str]]:
    """Replace every `auto` by a value; say why, by key."""
    found = {
        **_for_the_machine(config, material),
        **_for_the_rows(material),
        **_for_the_run(config, material),
    }
    open_ = {key: chosen for key, chosen in found.items() if getattr(config, key) == "auto"}
    values = {
        "model": material.source.lasting_name,
        **lasting_paths(config),
        **{key: value for key, (value, _) in open_.items()},
    }
    reasons = {key: reason for key, (_, reason) in open_.items()}
    if config.method == "lora" and "rank" not in config.lora.model_fields_set:
        reasons["lora"] = WHY_RANK
    return config.model_copy(update=values), reasons


def _for_the_machine(config: Config, material: Material) -> Chosen:
    device = choose_device(config.device)
    is_cuda = device.startswith("cuda")
    found: Chosen = {
        "device": (device, "the GPU" if is_cuda else "no CUDA device here"),
        "micro_batch_tokens": _micro_batch_tokens(material, is_cuda=is_cuda),
    }
    if config.dtype == "auto":  # it may take a measurement
        found["dtype"] = choose_dtype(device=device, hidden_size=material.width)
    return found


def _for_the_rows(material: Material) -> Chosen:
    return {
        "template": (material.template.name, _why_template(material)),
        "max_length": (material.data.max_length, "what the model's positions allow"),
        "date": (material.options.date, "the day of the run"),
    }


def _for_the_run(config: Config, material: Material) -> Chosen:
    total = total_steps(config, num_examples(config, material))
    warmup_steps = min(100, max(1, round(0.03 * total)))
    found: Chosen = {
        "learning_rate": default_learning_rate(config.method, material.width),
        "warmup_steps": (warmup_steps, f"3 % of {total} updates"),
    }
    if material.val or config.anchor != "none":
        found["eval_every"] = _eval_every(config, material, total)
    return found


def lasting_paths(config: Config) -> dict[str, object]:
    """Paths that lead to the same files from any working folder."""
    found: dict[str, object] = {"data": tuple(_lasting(name) for name in config.data)}
    if config.val is not None and parse_share(config.val) is None:
        found["val"] = _lasting(config.val)
    if config.filter is not None:
        found["filter"] = str(Path(config.filter).absolute())  # the function's name is behind it
    if config.anchor not in ("auto", "none"):
        found["anchor"] = str(Path(config.anchor).absolute())
    if config.replay is not None and (file := Replay.parse(config.replay).file) is not None:
        found["replay"] = f"{config.replay.partition(':')[0]}:{Path(file).absolute()}"
    found["metrics"] = tuple(_lasting_metric(name) for name in config.metrics)
    if config.template not in NAMES:
        found["template"] = str(Path(config.template).absolute())
    return found


def _lasting_metric(name: str) -> str:
    """A function of the user's, by the whole path of its file; others as they are."""
    is_function = ".py:" in name and not name.startswith("regex:")
    return str(Path(name).absolute()) if is_function else name  # the function's name is behind it


def _lasting(name: str) -> str:
    """`a.jsonl@0.1` → `/data/a.jsonl@0.1`."""
    file = parse_source(name).name
    return f"{Path(file).absolute()}{name.removeprefix(file)}"


def _why_template(material: Material) -> str:
    has_own = material.template.name == "model"
    return "the model's own" if has_own else "the model has no chat template of its own"


def _micro_batch_tokens(material: Material, *, is_cuda: bool) -> tuple[int, str]:
    usual = CUDA_MICRO_BATCH_TOKENS if is_cuda else CPU_MICRO_BATCH_TOKENS
    longest = max(int(s.lengths.max()) for s in (material.train, material.val) if len(s))
    if longest > usual:
        return longest, "the longest row"
    return usual, f"usual on {'a GPU' if is_cuda else 'a CPU'}"


def _eval_every(config: Config, material: Material, total: int) -> tuple[int, str]:
    """So rarely that it costs little beside training; a short run has at least two figures."""
    trained = total * config.batch_size * float(material.train.lengths.mean())
    measured = float(material.val.lengths.sum()) if material.val else 0.0
    if config.anchor != "none":
        measured += NUM_TEXTS * TEXT_TOKENS if config.anchor == "auto" else MAX_TOKENS
    looks = int(LOOKING_SHARE * trained / (FORWARD_SHARE * measured))
    why = f"{MOST_LOOKS} times over the run"
    if looks < MOST_LOOKS:
        why = f"{max(looks, FEWEST_LOOKS)} times over the run: each measures {measured:,.0f} tokens"
    # Rounded up, so that the last of them is that at the end.
    return math.ceil(total / min(max(looks, FEWEST_LOOKS), MOST_LOOKS)), why


def num_examples(config: Config, material: Material) -> int:
    """Of an epoch, with those that are rehearsed."""
    count = len(material.train)
    if config.replay is not None:
        count += num_rehearsed(count, share=Replay.parse(config.replay).share)
    return count


def total_steps(config: Config, count: int, start: Progress | None = None) -> int:
    """Updates of the whole run; `count` examples make an epoch.

    Args:
        start: where it goes on from, perhaps with another batch size than it began with.
    """
    start = start or Progress()
    epoch, done = divmod(start.cursor, count)
    left = (config.epochs - epoch) * math.ceil(count / config.batch_size)
    steps = start.step + max(0, left - done // config.batch_size)
    return min(steps, config.max_steps or steps)


def step_plan(config: Config, count: int, state: RunState | None = None) -> StepPlan:
    """What the loop will do. `config` must be settled.

    Args:
        count: examples of an epoch.
        state: where the run goes on from.
    """
    assert config.learning_rate != "auto"
    assert config.warmup_steps != "auto"
    assert config.micro_batch_tokens != "auto"
    rate = RatePlan(
        peak=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps(config, count, None if state is None else state.progress),
        budget_s=None if config.budget is None else seconds_in(config.budget),
    )
    if state is not None and state.cool_down is not None:
        rate = cooled_down(rate, state.cool_down)
    return StepPlan(
        rate=rate,
        batch_size=config.batch_size,
        micro_batch_tokens=config.micro_batch_tokens if state is None else state.micro_batch_tokens,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        skip_bad_steps=config.skip_bad_steps,
    )


def cooling(state: RunState, num_steps: int) -> RunState:
    """The state of a run that ends in so many updates, its rate falling from where it stands."""
    assert state.last is not None  # a checkpoint is made behind an update
    cool_down = CoolDown(start_step=state.progress.step, num_steps=num_steps, rate=state.last.lr)
    return replace(state, cool_down=cool_down)


def recurring_rows(config: Config, train: ExampleStore, val: ExampleStore) -> list[ExampleStore]:
    """Rows that go through the model more than once, each set in the order of their first time."""
    num_train, found = len(train), []
    if total_steps(config, num_train) > math.ceil(num_train / config.batch_size):
        updates = epoch_updates(num_train, config.batch_size, seed=config.seed, epoch=0)
        found.append(train.select([row for update in updates for row in update]))
    if val:  # measured before training and at its end, at least
        found.append(val)
    return found


def is_look_due(progress: Progress, config: Config, plan: StepPlan) -> bool:
    """Whether the model is measured here: every so often, and at the end."""
    if config.eval_every == "auto":  # there is nothing to measure on
        return False
    return progress.step % config.eval_every == 0 or is_done(progress, plan)


def is_out_of_patience(state: RunState, config: Config) -> bool:
    """Whether so many measurements in a row have found nothing better than the best."""
    if config.patience is None or state.best is None:
        return False
    assert config.eval_every != "auto"  # there are validation rows
    return state.progress.step - state.best.step >= config.patience * config.eval_every
