"""A sample of the fault matrix (`make faults` is all of it): a fault is made for real in a process
that trains, and what comes of it in the end is, byte for byte, what the undisturbed run leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.fault import Fault, spread
from faults.place import World
from faults.run_matrix import FAULTS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults") / "world"
    with World(root) as world:
        yield world


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.num_sampled], ids=lambda fault: fault.name
)
def test_what_comes_of_a_fault_is_what_is_expected(fault: Fault, world: World) -> None:
    for label, trial in spread(list(fault.trials(world)), fault.num_sampled):
        print(label)
        trial()
