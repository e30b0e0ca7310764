"""A search before a run finds what is there to be found, and leaves no trace in the run."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import write_rows
from made_models import document

from duiti import sft
from duiti.cli import main
from duiti.config import Config
from duiti.data.storage.store import ExampleStore
from duiti.errors import DuitiError, UsageError
from duiti.eval.evaluate import held_out_loss
from duiti.fit import Fit
from duiti.material import read_material
from duiti.plan import settle
from duiti.record import write_start
from duiti.run import Run
from duiti.searching import attempt as attempting
from duiti.searching import learning_rate as searching
from duiti.searching import more_data as more
from duiti.searching.as_found import as_found
from duiti.searching.attempt import Abandoned, Attempt
from duiti.searching.held_out import FEWEST, RowLosses, apart, row_losses, with_rehearsed
from duiti.searching.learning_rate import Point, choose, find_learning_rate, sweep
from duiti.searching.more_data import more_data, says, shares_of
from duiti.searching.search import Search
from duiti.training.log import Talk
from duiti.training.optim import RatePlan
from duiti.training.signals import Interrupted
from duiti.training.step import StepPlan, train_steps
from duiti.workshop import Job, Workshop, set_up

QUIET = Talk(quiet=True)
ROWS = [{"prompt": f"Who wrote number {n}?", "response": f"It was {n * 7}."} for n in range(40)]
VAL = [{"prompt": f"Who wrote number {n}?", "response": f"It was {n * 7}."} for n in range(60, 76)]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.2}},
    "last-n": {"last_n": {"layers": 1}},
    "full": {},
}


@pytest.fixture(autouse=True)
def _few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rates of four updates, and one rate more at an edge."""
    monkeypatch.setattr(searching, "EACH_WAY", 1)
    monkeypatch.setattr(searching, "MOST_FURTHER", 1)
    monkeypatch.setattr(searching, "FEWEST_UPDATES", 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_rows(folder / "rows.jsonl", ROWS), write_rows(folder / "val.jsonl", VAL)


def job(
    model: Path, files: tuple[Path, Path], folder: Path, *, val: bool = True, **more: Any
) -> Job:
    """A run that has not begun."""
    given: dict[str, Any] = {
        "data": (str(files[0]),), "model": str(model), "device": "cpu", "dtype": "float32",
        "epochs": 1, "batch_size": 8, "cache": False, "micro_batch_tokens": 256,
        "activation_checkpointing": False, **more,
    }  # fmt: skip
    if val:
        given["val"] = str(files[1])
    config = Config(**given)
    material = read_material(config)
    config, reasons = settle(config, material)
    folder.mkdir()
    write_start(folder, config, reasons, material)
    fit = Fit(unknown="is not asked here")
    return Job(config=config, reasons=reasons, fit=fit, material=material, folder=folder)


def trained(job: Job, shop: Workshop) -> tuple[list[float], dict[str, torch.Tensor]]:
    """All losses of the run, and all that is in the model and the optimizer behind it."""
    losses = [
        m.loss for m, _ in train_steps(shop.sft, shop.optimizer, job.material.train, shop.plan)
    ]
    return losses, everything(shop)


def everything(shop: Workshop) -> dict[str, torch.Tensor]:
    found = {name: tensor.detach().clone() for name, tensor in shop.sft.state_dict().items()}
    found |= {f"buffer {name}": b.detach().clone() for name, b in shop.sft.named_buffers()}
    for name, parameter in shop.trained.parameters.items():
        moments = shop.optimizer.state[parameter]
        found |= {f"{name} {kind}": tensor.clone() for kind, tensor in moments.items()}
    return found


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


# No trace


@pytest.mark.parametrize("method", METHODS)
def test_the_run_behind_a_search_is_bit_for_bit_the_run_that_was_given_the_rate(
    method: str, llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = {"method": method, **METHODS[method]}
    searched = job(llama_dir, files, tmp_path / "searched", **settings)
    shop = set_up(searched, QUIET)
    before = everything(shop)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    shop = Search(find_lr=True, more_data=True).look(searched, shop, QUIET)
    assert_same(before, everything(shop))
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(p.grad is None for p in shop.sft.parameters())
    rate = shop.config.learning_rate
    given = job(llama_dir, files, tmp_path / "given", learning_rate=rate, **settings)
    direct = set_up(given, QUIET)
    assert shop.plan == direct.plan
    assert shop.config == direct.config
    found, expected = trained(searched, shop), trained(given, direct)
    assert found[0] == expected[0]
    assert_same(found[1], expected[1])
    assert found[1].keys() == before.keys()
    assert any(not torch.equal(before[name], found[1][name]) for name in before)  # it was trained


def test_without_validation_rows_a_search_leaves_no_trace_either(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    searched = job(llama_dir, files, tmp_path / "searched", val=False, lora={"rank": 4})
    shop = Search(find_lr=True).look(searched, set_up(searched, QUIET), QUIET)
    rate = shop.config.learning_rate
    given = job(
        llama_dir, files, tmp_path / "given", val=False, lora={"rank": 4}, learning_rate=rate
    )
    assert_same(trained(searched, shop)[1], trained(given, set_up(given, QUIET))[1])


def test_every_attempt_begins_at_the_same_start(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    given = job(llama_dir, files, tmp_path / "run", method="full", learning_rate=1e-2)
    shop = set_up(given, QUIET)
    parameters = list(shop.trained.parameters.values())
    found = []
    with as_found(shop.sft, parameters, shop.optimizer) as begin_again:
        for _ in range(2):
            begin_again()
            found.append(trained(given, shop))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])
    assert_same(trained(given, shop)[1], found[0][1])  # and so does the run


def test_a_buffer_that_training_moves_or_replaces_is_put_back(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    shop = set_up(job(llama_dir, files, tmp_path / "run", lora={"rank": 2}), QUIET)
    norm = shop.sft.model.model.norm
    norm.register_buffer("seen", torch.zeros(3))
    norm.register_buffer("kept", torch.ones(3), persistent=False)
    kept = norm.kept
    parameters = list(shop.trained.parameters.values())
    with as_found(shop.sft, parameters, shop.optimizer):
        norm.seen += 1
        norm.kept = torch.full((3,), 5.0)
    assert norm.seen.tolist() == [0, 0, 0]
    assert norm.kept is kept
    assert kept.tolist() == [1, 1, 1]


# What is found


def test_what_was_found_is_written_said_and_given_as_the_reason(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = job(llama_dir, files, tmp_path / "run", lora={"rank": 4})
    default = given.config.learning_rate
    shop, found = find_learning_rate(given, set_up(given, QUIET), Talk(plain=True))
    written = json.loads((given.folder / "find_lr.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.as_dict()))
    assert written["chosen"] == found.chosen == shop.config.learning_rate == shop.plan.rate.peak
    rates = [point["learning_rate"] for point in written["points"]]
    assert rates == sorted(rates)
    assert default in rates
    assert 3 <= len(rates) <= 4
    assert [len(point["curve"]) for point in written["points"]] == [4] * len(rates)
    assert written["held_out"]["rows"] == len(VAL)
    said = capsys.readouterr().err
    for point in written["points"]:
        assert f"{point['learning_rate']:.1e}: val {point['val_loss']:.4f}" in said
    run = Run(given.folder)
    assert run.config.learning_rate == found.chosen  # a checkpoint gets it from the workshop
    text = (given.folder / "config.yaml").read_text(encoding="utf-8")
    assert f"# found by --find-lr: {found.why}\nlearning_rate: {found.chosen}" in text


def test_the_held_out_loss_of_a_point_is_that_of_a_run_that_trains_so_long(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    searched = job(llama_dir, files, tmp_path / "searched", lora={"rank": 4})
    _, found = find_learning_rate(searched, set_up(searched, QUIET), QUIET)
    point = found.points[1]
    given = job(llama_dir, files, tmp_path / "given", lora={"rank": 4}, max_steps=4,
                warmup_steps=1, learning_rate=point.learning_rate)  # fmt: skip
    shop = set_up(given, QUIET)
    losses, _ = trained(given, shop)
    assert list(point.attempt.curve) == losses
    held_out = held_out_loss(shop.sft, given.material.val)
    assert point.attempt.held_out_loss == pytest.approx(held_out, rel=1e-6)


def test_a_rate_that_diverges_is_a_result(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    given = job(llama_dir, files, tmp_path / "run", method="full", max_grad_norm=0)
    shop = set_up(given, QUIET)
    before = everything(shop)
    shop = replace(shop, plan=searching.at_rate(shop.plan, 1e37))
    with pytest.raises(DuitiError, match="no learning rate could be tried") as caught:
        find_learning_rate(given, shop, QUIET)
    assert "diverged" in str(caught.value.why)
    assert_same(before, everything(shop))


def test_memory_that_runs_out_is_a_result(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job(llama_dir, files, tmp_path / "run", lora={"rank": 4})
    shop = set_up(given, QUIET)
    real = attempting.train_steps

    def train_steps(sft: Any, optimizer: Any, rows: Any, plan: Any, **more: Any) -> Any:
        for metrics, progress in real(sft, optimizer, rows, plan, **more):
            if plan.rate.peak > shop.plan.rate.peak and metrics.step == 3:
                raise DuitiError("step 3: out of memory, even with one row at a time")
            yield metrics, progress

    monkeypatch.setattr(attempting, "train_steps", train_steps)
    _, found = find_learning_rate(given, shop, QUIET)
    (problem,) = [p.attempt.problem for p in found.points if p.attempt.problem]
    assert problem == "step 3: out of memory, even with one row at a time"
    assert len(found.points[-1].attempt.curve) == 2
    assert found.chosen <= shop.plan.rate.peak
    written = json.loads((given.folder / "find_lr.json").read_text(encoding="utf-8"))
    assert written["points"][-1]["val_loss"] is None


def test_a_signal_ends_a_search_and_puts_all_back(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job(llama_dir, files, tmp_path / "run", method="full")
    shop = set_up(given, QUIET)
    before, handler = everything(shop), signal.getsignal(signal.SIGTERM)
    real, seen = attempting.train_steps, []

    def train_steps(*arguments: Any, **more: Any) -> Any:
        for metrics, progress in real(*arguments, **more):
            seen.append(metrics.step)
            if len(seen) == 6:
                signal.raise_signal(signal.SIGTERM)
            yield metrics, progress

    monkeypatch.setattr(attempting, "train_steps", train_steps)
    with pytest.raises(Abandoned, match="SIGTERM") as caught:
        find_learning_rate(given, shop, QUIET)
    assert caught.value.exit_code == 130
    assert len(seen) == 6  # in the second attempt, behind the update that was under way
    assert_same(before, everything(shop))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (given.folder / "find_lr.json").exists()


@pytest.mark.parametrize(
    ("total", "expected"), [(4, 4), (15, 10), (100, 10), (170, 17), (300, 30), (9000, 30)]
)
def test_a_short_training_is_a_tenth_of_the_run_within_bounds(
    total: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "FEWEST_UPDATES", 10)
    rate = RatePlan(peak=1e-3, schedule="cosine", warmup_steps=5, total_steps=total, budget_s=9.0)
    run = StepPlan(
        rate=rate, batch_size=8, micro_batch_tokens=64, max_grad_norm=1, seed=3, skip_bad_steps=2
    )
    plan = searching.short_plan(run)
    assert plan.total_steps == expected
    assert plan.rate.budget_s is None  # an attempt is as long as every other
    assert plan.skip_bad_steps == 0
    assert 1 <= plan.rate.warmup_steps <= 3


# The choice


def losses(*sums: float) -> RowLosses:
    return RowLosses(sums=np.array(sums, np.float64), weights=np.ones(len(sums)))


def point(rate: float, row_sums: RowLosses | None) -> Point:
    problem = None if row_sums is not None else "diverged"
    return Point(
        learning_rate=rate, attempt=Attempt(curve=(1.0, 0.5), losses=row_sums, problem=problem)
    )


BEFORE = losses(9, 9, 9, 9)


def test_the_lowest_held_out_loss_is_chosen() -> None:
    points = [point(1e-3, losses(4, 5, 6, 5)), point(3e-3, losses(1, 2, 3, 2)),
              point(9e-3, losses(2, 3, 4, 3.1)), point(3e-2, None)]  # fmt: skip
    rate, why = choose(points, default=1e-3, before=BEFORE)
    assert rate == 3e-3
    assert "2.0000" in why
    assert "\n" not in why  # it becomes a comment in YAML


def test_one_step_lower_is_chosen_within_one_standard_error() -> None:
    # Differences 0.4, -0.3, 0.2, -0.1: mean 0.05, standard deviation 0.311, so the error is 0.155.
    best, near = losses(1, 2, 3, 2), losses(1.4, 1.7, 3.2, 1.9)
    assert near.error_of_change(best) == pytest.approx(
        np.std([0.4, -0.3, 0.2, -0.1], ddof=1) / 2, rel=1e-12
    )
    points = [point(1e-3, near), point(3e-3, best), point(9e-3, losses(5, 5, 5, 5))]
    assert choose(points, default=3e-3, before=BEFORE)[0] == 1e-3
    # The same mean, and every row worse: no accident.
    worse = losses(1.06, 2.04, 3.06, 2.04)
    assert choose([point(1e-3, worse), *points[1:]], default=3e-3, before=BEFORE)[0] == 3e-3


def test_it_is_never_more_than_one_step() -> None:
    same = [point(rate, losses(1, 2, 3, 2)) for rate in (1e-4, 3e-4, 9e-4)]
    points = [*same, point(3e-3, losses(0.9, 2.1, 3, 1.9))]
    assert choose(points, default=3e-3, before=BEFORE)[0] == 9e-4


def test_where_nothing_was_learned_it_is_the_default() -> None:
    points = [point(1e-4, losses(9, 9, 9, 9.1)), point(1e-3, losses(10, 10, 10, 10))]
    rate, why = choose(points, default=1e-3, before=BEFORE)
    assert rate == 1e-3
    assert "default" in why


def test_what_diverged_is_never_chosen() -> None:
    points = [point(1e-4, None), point(3e-4, losses(1, 1, 1, 1)), point(9e-4, None)]
    assert choose(points, default=9e-4, before=BEFORE)[0] == 3e-4
    with pytest.raises(DuitiError, match="no learning rate"):
        choose([point(1e-4, None)], default=1e-4, before=BEFORE)


def swept(best_at: float, *, diverges_from: float = 1e9) -> list[float]:
    """The rates that are tried, in order, where the loss is lowest at one of them."""
    tried: list[float] = []

    def measure(rate: float) -> Attempt:
        tried.append(rate)
        far = abs(np.log(rate / best_at))
        return point(rate, None if rate >= diverges_from else losses(far, far)).attempt

    points = sweep([1.0, 3.0, 9.0], measure, QUIET)
    assert [each.learning_rate for each in points] == sorted(tried)
    return tried


def test_a_sweep_goes_on_where_the_best_is_at_its_edge() -> None:
    assert swept(3.0) == [1.0, 3.0, 9.0]
    assert swept(27.0) == [1.0, 3.0, 9.0, 27.0]
    assert swept(0.4) == [1.0, 3.0, 9.0, 0.33]


def test_and_not_without_end() -> None:
    assert swept(1e6) == [1.0, 3.0, 9.0, 27.0]
    assert swept(1e6, diverges_from=9.0) == [1.0, 3.0, 9.0]
    assert swept(1e6, diverges_from=0.0) == [1.0, 3.0, 9.0, 0.33]


# Held-out rows


def test_the_mean_over_rows_is_the_held_out_loss(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    rows = [{"messages": [
        {"role": "user", "content": f"Who wrote {n}?"},
        {"role": "assistant", "content": f"It was {n}.", "weight": 0.5},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": f"Number {n + 1}."},
    ]} for n in range(9)]  # fmt: skip
    own = write_rows(tmp_path / "weighed.jsonl", rows)
    given = job(llama_dir, (own, files[1]), tmp_path / "run", lora={"rank": 2})
    store = given.material.train
    assert any(example.weights is not None for example in store)
    shop = set_up(given, QUIET)
    assert row_losses(shop.sft, store).mean == pytest.approx(
        held_out_loss(shop.sft, store), rel=1e-6
    )


def test_the_error_of_a_change_is_that_of_drawing_rows_anew() -> None:
    drawn = np.random.default_rng(0)
    weights = drawn.integers(1, 20, 200).astype(np.float64)
    one = RowLosses(sums=weights * drawn.gamma(2, 1, 200), weights=weights)
    two = RowLosses(sums=one.sums + weights * drawn.normal(0.1, 0.5, 200), weights=weights)
    changes = []
    for _ in range(4000):
        rows = drawn.integers(200, size=200)
        changes.append((two.sums - one.sums)[rows].sum() / weights[rows].sum())
    # A standard deviation from 4,000 draws is known to within 1/sqrt(8000), 1.1 %; three times it.
    assert two.error_of_change(one) == pytest.approx(np.std(changes), rel=0.04)
    interval = two.interval_of_change(one, seed=0)
    assert interval.low == pytest.approx(np.percentile(changes, 2.5), abs=0.02)
    assert interval.high == pytest.approx(np.percentile(changes, 97.5), abs=0.02)


def test_rows_held_out_of_the_training_rows_are_trained_in_no_attempt(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    rows = [*ROWS, *ROWS[:20]]  # the first twenty come twice
    own = write_rows(tmp_path / "twice.jsonl", rows)
    material = job(llama_dir, (own, files[1]), tmp_path / "run", val=False).material
    chosen, held_out = apart(material.train, material.val, seed=0)
    train = with_rehearsed(material.train, len(rows), chosen)
    assert len(train) + len(held_out) == len(rows)
    assert len(held_out) >= FEWEST // 2
    seen = {row.input_ids.tobytes() for row in train}
    assert not any(row.input_ids.tobytes() in seen for row in held_out)


def test_validation_rows_are_held_out_where_there_are_some_and_not_too_many(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = job(llama_dir, files, tmp_path / "run").material
    chosen, held_out = apart(material.train, material.val, seed=0)
    assert chosen.tolist() == list(range(len(ROWS)))
    assert held_out is material.val
    monkeypatch.setattr("duiti.searching.held_out.MOST", 7)
    _, some = apart(material.train, material.val, seed=0)
    assert len({row.origin for row in some}) == 7


def test_rehearsed_texts_are_among_the_rows_of_an_attempt_in_their_share() -> None:
    examples = ExampleStore.from_examples([document(5, n) for n in range(1, 31)])
    assert with_rehearsed(examples, 20, np.arange(20)) is examples
    some = with_rehearsed(examples, 20, np.array([3, 4, 9, 17]))
    expected = [3, 4, 9, 17, 20, 21]  # a fifth of the rows, and of ten texts
    assert [row.input_ids.tolist() for row in some] == [
        examples[place].input_ids.tolist() for place in expected
    ]


def test_too_few_rows_are_refused(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    few = write_rows(tmp_path / "few.jsonl", ROWS[: 2 * FEWEST - 1])
    material = job(llama_dir, (few, files[1]), tmp_path / "run", val=False).material
    with pytest.raises(UsageError, match="31 rows are too few"):
        Search(find_lr=True).refuse_rows(material)
    with pytest.raises(UsageError, match="nothing to measure on"):
        Search(more_data=True).refuse_rows(material)
    Search().refuse_rows(material)


def test_a_rate_that_is_given_is_not_looked_for() -> None:
    with pytest.raises(UsageError, match="is given"):
        Search(find_lr=True).refuse_settings(Config(learning_rate=0.01))
    Search(find_lr=True).refuse_settings(Config())
    Search(more_data=True).refuse_settings(Config(learning_rate=0.01))


# More data


def test_shares_lie_in_each_other(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    train = job(llama_dir, files, tmp_path / "run").material.train
    quarter, half, whole = map(set, shares_of(train, seed=0))
    assert quarter < half < whole
    assert 3 <= len(quarter) <= 18  # of 40: groups are drawn one by one
    assert len(whole) == len(ROWS)


def test_more_data_is_written_with_intervals(
    llama_dir: Path, tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = job(llama_dir, files, tmp_path / "run", method="full", learning_rate=1e-2)
    shop = set_up(given, QUIET)
    more_data(given, shop, Talk(plain=True))
    written = json.loads((given.folder / "more_data.json").read_text(encoding="utf-8"))
    assert [point["share"] for point in written["points"]] == [0.25, 0.5, 1.0]
    assert written["points"][-1]["rows"] == len(ROWS)
    for point in written["points"]:
        assert point["low"] < point["val_loss"] < point["high"]
    assert written["says"] in capsys.readouterr().err
    # The last point is the run itself.
    trained(given, shop)
    assert written["points"][-1]["val_loss"] == pytest.approx(
        held_out_loss(shop.sft, given.material.val), rel=1e-6
    )


def test_a_verdict_about_more_rows_needs_intervals_apart_from_zero() -> None:
    def said(half: RowLosses | None, whole: RowLosses | None) -> str:
        attempts = [
            Attempt(curve=(1.0,), losses=each, problem=None if each else "diverged")
            for each in (half, whole)
        ]
        points = [
            more.Share(share=share, num_rows=9, attempt=attempt, interval=None)
            for share, attempt in zip((0.5, 1.0), attempts, strict=True)
        ]
        return says(points, seed=0)

    half = losses(3, 4, 5, 4, 3, 4)
    assert said(half, losses(2, 3.1, 4, 3, 2.1, 3)).startswith("more rows would probably help:")
    assert said(half, losses(4, 3, 5.1, 3.9, 3.5, 3)).startswith("nothing says")
    assert said(half, losses(4, 5, 6.1, 5, 4, 5.1)).startswith("more rows of this kind would")
    assert said(None, half).startswith("whether more rows would help cannot be told")


# The command line


@pytest.mark.parametrize("flag", ["--find-lr", "--more-data"])
def test_nothing_is_looked_for_in_a_run_that_goes_on(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--resume", "some-run", flag])
    assert ended.value.code == UsageError.exit_code
    assert f"{flag} has no effect with --resume" in capsys.readouterr().err


# As part of a run


def test_a_run_that_goes_on_has_the_rate_that_was_found_and_looks_for_none(
    llama_dir: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(
        data=(str(files[0]),), val=str(files[1]), model=str(llama_dir), device="cpu",
        dtype="float32", epochs=1, batch_size=8, lora={"rank": 4}, proof=False, anchor="none",
        output=str(tmp_path / "run"),
    )  # fmt: skip
    real = train_steps

    def stopped_at_three(*arguments: Any, **more: Any) -> Any:
        for metrics, progress in real(*arguments, **more):
            if metrics.step == 3:
                signal.raise_signal(signal.SIGTERM)
            yield metrics, progress

    with monkeypatch.context() as patch:
        patch.setattr(sft, "train_steps", stopped_at_three)
        with pytest.raises(Interrupted):
            sft.finetune(config, search=Search(find_lr=True), talk=QUIET)
    found = json.loads((tmp_path / "run" / "find_lr.json").read_text(encoding="utf-8"))
    written = (tmp_path / "run" / "find_lr.json").stat().st_mtime_ns
    run = sft.go_on(tmp_path / "run", {}, talk=QUIET)
    assert (tmp_path / "run" / "find_lr.json").stat().st_mtime_ns == written
    assert run.config.learning_rate == found["chosen"]
    assert "found by --find-lr" in run.reasons["learning_rate"]
    direct = sft.finetune(
        config.model_copy(
            update={"learning_rate": found["chosen"], "output": str(tmp_path / "direct")}
        ),
        talk=QUIET,
    )
    for name in ("adapter_model.safetensors", "samples.jsonl", "evaluation.json"):
        assert (run.path / name).read_bytes() == (direct.path / name).read_bytes(), name
    timed = {"tokens_per_s", "peak_memory_bytes"}
    one, two = ([{k: v for k, v in line.items() if k not in timed} for line in each.metrics]
                for each in (run, direct))  # fmt: skip
    assert one == two
