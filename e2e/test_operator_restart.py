"""The operator is killed at its writes, one after the other, while it works; what comes out is as if it had not been."""

from __future__ import annotations

from itertools import count

import pytest
from e2e.faults.agents import Agents
from e2e.faults.fixtures import Operators
from e2e.faults.kube import until
from e2e.faults.operators import Operator
from e2e.faults.proxy import Call, Fault, Proxy, Reset, Rule
from e2e.faults.scene import NODES, Picture, Scene, model_service

SERVICES = (
    model_service("digits"),
    model_service("pair", "https://models/a", "https://models/b"),
    model_service("spread", placement={"spread": {"minNodes": 2}}),
)
BEFORE = ("digits", "pair", "spread")
CHANGES = (model_service("digits", "https://models/digits-2.onnx"), model_service("new"))
AFTER = ("digits", "new", "spread")
MOST_LIVES = 40


def change(scene: Scene) -> None:
    """A next version, a new service, and one that goes."""
    scene.serve(*CHANGES)
    scene.kube.delete(scene.service("pair"))


@pytest.fixture(scope="module")
def undisturbed(stage: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, Picture]:
    """What runs before and after the change where nobody is killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    kubeconfig = stage.plane.access().kubeconfig(folder / "kubeconfig")
    stage.clear()
    stage.populate()
    with Agents(stage.kube, NODES), Operator(kubeconfig, folder):
        stage.serve(*SERVICES)
        before = stage.settled(*BEFORE)
        change(stage)
        return before, stage.settled(*AFTER)


def killed_at(number: int, operator: Operator, *, heard: bool) -> Rule:
    """SIGKILL at a write; ``heard``: when the API server has done it, and has not said so yet."""
    writes = count(1)

    def rule(call: Call) -> Fault | None:
        if call.is_write and next(writes) == number:
            return Reset(heard, first=operator.kill)
        return None

    return rule


@pytest.mark.timeout(300, func_only=True)
@pytest.mark.parametrize("heard", [False, True], ids=["before the write", "after the write"])
def test_what_is_killed_at_every_write_comes_to_the_same_end(
    scene: Scene,
    agents: Agents,
    proxy: Proxy,
    operators: Operators,
    undisturbed: tuple[Picture, Picture],
    heard: bool,
) -> None:
    """Every life gets one write further than the one before: a new leader's first ones are always the same."""

    def ends(operator: Operator, number: int, *names: str) -> bool:
        """Whether it was killed before everything was done."""
        with proxy.faulty(killed_at(number, operator, heard=heard)):
            until(
                lambda: operator.exit_code is not None or not scene.complaints(*names),
                lambda: f"write {number}: {scene.complaints(*names)}",
            )
        killed = operator.exit_code is not None
        operator.kill()
        return killed

    def lives(*names: str) -> int:
        """How many were killed until everything was done."""
        for number in range(1, MOST_LIVES):
            if not ends(operators(), number, *names):
                return number - 1
        raise AssertionError(f"after {MOST_LIVES} lives: {scene.complaints(*names)}")

    scene.serve(*SERVICES)
    assert lives(*BEFORE) > len(NODES)
    assert scene.picture() == undisturbed[0]
    assert set(agents.launches().values()) == {1}

    change(scene)
    assert lives(*AFTER) > len(NODES)
    assert scene.picture() == undisturbed[1]
    assert set(agents.launches().values()) == {1}
