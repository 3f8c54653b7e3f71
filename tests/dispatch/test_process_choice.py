"""Which process an instance joins: the first have one each, the next share, some must, some must not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.dispatch.processes import (
    FEWEST_PROCESSES,
    PROCESSES_PER_CORE,
    Newcomer,
    Tenants,
    choose,
    most_processes,
)
from tessera_runtime.dispatch.workers import Place


def tenants(*models: str, company: str | None = None, alone: bool = False) -> Tenants:
    made = Tenants()
    for model in models:
        made.add(Newcomer(model, company, alone))
    return made


@pytest.mark.parametrize(
    ("processes", "newcomer", "most", "chosen"),
    [
        pytest.param([], Newcomer("m"), 2, None, id="the first gets a process"),
        pytest.param(
            [tenants("a")], Newcomer("m"), 2, None, id="so does the next, below the limit"
        ),
        pytest.param(
            [tenants("a", "b"), tenants("c")], Newcomer("m"), 2, 1, id="then the emptiest is joined"
        ),
        pytest.param(
            [tenants("a", "b"), tenants("m")], Newcomer("m"), 2, 0, id="apart from its own model"
        ),
        pytest.param(
            [tenants("m", "m"), tenants("m")], Newcomer("m"), 2, 1, id="or with the fewest of it"
        ),
        pytest.param([tenants("a")], Newcomer("m"), 1, 0, id="a GPU has one process"),
        pytest.param(
            [tenants("a"), tenants("b", company="c")],
            Newcomer("m", "c"),
            9,
            1,
            id="company is joined below the limit",
        ),
        pytest.param(
            [tenants("a"), tenants("b", "b2", company="c")],
            Newcomer("m", "c"),
            2,
            1,
            id="and where others are emptier",
        ),
        pytest.param(
            [tenants("a", company="c")], Newcomer("m", "d"), 2, None, id="another company is none"
        ),
        pytest.param(
            [tenants("a", "b"), tenants("c")],
            Newcomer("m", "d"),
            2,
            1,
            id="the first of a company is as any other",
        ),
        pytest.param(
            [tenants("a"), tenants("b")],
            Newcomer("m", alone=True),
            2,
            None,
            id="who is to be alone gets a process beyond the limit",
        ),
        pytest.param(
            [tenants("a", alone=True), tenants("b", "c")],
            Newcomer("m"),
            1,
            1,
            id="and nobody joins it",
        ),
        pytest.param(
            [tenants("a", alone=True)], Newcomer("m"), 1, None, id="nor does it count for the limit"
        ),
        pytest.param(
            [tenants("a", company="c", alone=True), tenants("b")],
            Newcomer("m", "c"),
            1,
            0,
            id="but its company does join it",
        ),
    ],
)
def test_choice(processes: list[Tenants], newcomer: Newcomer, most: int, chosen: int | None):
    assert choose(processes, newcomer, most) == chosen


newcomers = st.builds(
    Newcomer,
    model=st.sampled_from("mnop"),
    company=st.none() | st.sampled_from("cd"),
    alone=st.booleans(),
)


@given(st.lists(newcomers, max_size=40), st.integers(1, 6))
def test_no_more_processes_than_the_limit_and_those_that_are_alone(
    arriving: list[Newcomer], most: int
):
    processes: list[Tenants] = []
    lone = 0
    homes: dict[str, set[int]] = {}
    for newcomer in arriving:
        index = choose(processes, newcomer, most)
        if index is None:
            index = len(processes)
            processes.append(Tenants())
            lone += newcomer.alone
        processes[index].add(newcomer)
        if newcomer.company is not None:
            homes.setdefault(newcomer.company, set()).add(index)
    assert len(processes) - lone <= most
    assert all(len(indexes) == 1 for indexes in homes.values())
    for tenants in processes:
        if tenants.exclusive:
            assert tenants.models.total() == 1 or tenants.companies


@given(st.integers(1, 6), st.integers(0, 60))
def test_instances_without_company_are_spread_evenly(most: int, count: int):
    processes: list[Tenants] = []
    for number in range(count):
        newcomer = Newcomer(f"model-{number}")
        index = choose(processes, newcomer, most)
        if index is None:
            processes.append(Tenants())
            index = -1
        processes[index].add(newcomer)
    sizes = [tenants.models.total() for tenants in processes]
    assert len(sizes) == min(most, count)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_who_leaves_is_counted_no_more():
    process = tenants("a", "a", "b", company="c")
    process.remove("a", "c")
    assert (process.models, process.companies) == (Counter(a=1, b=1), Counter(c=2))
    process.remove("a", "c")
    process.remove("b", "c")
    assert (process.models, process.companies) == (Counter(), Counter())


def test_a_device_of_many_cores_has_more_processes():
    assert most_processes(Place("gpu-0", "cuda"), cores=64) == 1
    assert most_processes(Place("gpu-0", "cuda", mps_clients=5), cores=64) == 1, "where it fails"
    assert most_processes(Place("gpu-0", "cuda", mps_clients=5), cores=64, mps=True) == 5
    assert most_processes(Place("cpu-0", "cpu", cores=(3,)), cores=64) == FEWEST_PROCESSES
    assert most_processes(Place("cpu-0", "cpu"), cores=64) == 64 * PROCESSES_PER_CORE
    many = tuple(range(32))
    assert most_processes(Place("cpu-0", "cpu", many), cores=64) == 32 * PROCESSES_PER_CORE
