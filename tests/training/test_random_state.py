"""Random streams: where an update begins follows from (seed, step) and from nothing else."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import torch

from duiti.training.random_state import RandomState, seed_streams

CPU = torch.device("cpu")


def drawn(seed: int, step: int) -> list[float]:
    seed_streams(CPU, seed=seed, step=step)
    return torch.rand(4).tolist()


def test_the_streams_follow_from_seed_and_step_whatever_was_drawn_before() -> None:
    found = set()
    for seed in range(5):
        for step in range(1, 50):
            torch.manual_seed(seed * step)
            one = drawn(seed, step)
            torch.rand(3)
            assert drawn(seed, step) == one
            found.add(tuple(one))
    assert len(found) == 5 * 49  # (1, 12) is not (11, 2)


def test_they_are_the_same_in_another_process() -> None:
    """Not `hash`, which is salted: a run that goes on is another process."""
    code = (
        "import torch; from duiti.training.random_state import seed_streams;"
        "seed_streams(torch.device('cpu'), seed=3, step=7); print(torch.rand(4).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(drawn(3, 7))


def test_the_seed_is_the_one_that_checkpoints_of_today_rely_on() -> None:
    """sha256 of "update:0:1", its first 63 bits: another number would break runs that go on."""
    seed_streams(CPU, seed=0, step=1)
    assert torch.initial_seed() == 8761139472391233459


def test_streams_of_python_and_numpy_are_not_touched() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    seed_streams(CPU, seed=0, step=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_measurement_leaves_the_streams_where_they_were() -> None:
    torch.manual_seed(5)
    before = RandomState.now(CPU)
    expected = torch.rand(3).tolist()
    seed_streams(CPU, seed=0, step=1)
    before.restore()
    assert torch.rand(3).tolist() == expected
