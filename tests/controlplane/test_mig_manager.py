"""Nodes cut by NVIDIA's MIG manager: its file, and the order of labels and pods, whoever dies in between."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.geometry import Placement
from tessera_operator.mig_manager import (
    AWAY_LABEL,
    CONFIG_LABEL,
    FAILED,
    PENDING,
    STATE_LABEL,
    SUCCESS,
    SYNC_S,
    Layout,
    Move,
    NodeView,
    config_file,
    next_move,
)

SMALL, WIDE = Placement("1g.10gb", 0), Placement("3g.40gb", 4)
MIXED = Layout(((0, (SMALL, WIDE)), (1, (SMALL, WIDE)), (2, ())))
WHOLE = Layout(((0, ()), (1, ()), (2, ())))
READY = SYNC_S


def test_the_file_counts_slices_and_joins_gpus_that_are_cut_alike() -> None:
    assert yaml.safe_load(config_file([MIXED, WHOLE])) == {
        "version": "v1",
        "mig-configs": {
            MIXED.name: [
                {
                    "devices": [0, 1],
                    "mig-enabled": True,
                    "mig-devices": {"1g.10gb": 1, "3g.40gb": 1},
                },
                {"devices": [2], "mig-enabled": False},
            ],
            WHOLE.name: [{"devices": [0, 1, 2], "mig-enabled": False}],
        },
    }


def test_a_layout_is_named_by_what_the_manager_can_tell_apart() -> None:
    elsewhere = Layout(((0, (Placement("1g.10gb", 2), WIDE)), *MIXED.gpus[1:]))
    assert elsewhere.name == MIXED.name
    other = Layout((*MIXED.gpus[:2], (2, (SMALL,))))
    assert len({MIXED.name, WHOLE.name, other.name}) == 3


DONE = {CONFIG_LABEL: "before", STATE_LABEL: SUCCESS}
AWAY = {**DONE, AWAY_LABEL: MIXED.name}
ASKED = {CONFIG_LABEL: MIXED.name, STATE_LABEL: PENDING, AWAY_LABEL: MIXED.name}


@pytest.mark.parametrize(
    ("node", "move"),
    [
        pytest.param(NodeView(DONE, True, MIXED), Move(), id="not written"),
        pytest.param(NodeView(DONE, True, MIXED, SYNC_S - 1), Move(), id="not on the nodes"),
        pytest.param(NodeView(DONE, True, MIXED, READY), Move({AWAY_LABEL: MIXED.name}), id="away"),
        pytest.param(NodeView(AWAY, True, MIXED, READY), Move(end_pod=True), id="end the pod"),
        pytest.param(
            NodeView(AWAY, False, MIXED, READY),
            Move({CONFIG_LABEL: MIXED.name, STATE_LABEL: PENDING}),
            id="ask",
        ),
        pytest.param(NodeView(ASKED, False, MIXED, READY), Move(), id="at work"),
        pytest.param(
            NodeView({**ASKED, STATE_LABEL: "rebooting"}, False, MIXED, READY),
            Move(),
            id="rebooting",
        ),
        pytest.param(
            NodeView({**ASKED, STATE_LABEL: SUCCESS}, False, MIXED, READY),
            Move({AWAY_LABEL: None}),
            id="done",
        ),
        pytest.param(
            NodeView({**AWAY, AWAY_LABEL: "other"}, False, MIXED, READY),
            Move({AWAY_LABEL: MIXED.name}),
            id="another layout",
        ),
        pytest.param(NodeView(AWAY, True), Move({AWAY_LABEL: None}), id="given up before"),
        pytest.param(NodeView(ASKED, False), Move(), id="given up at work"),
        pytest.param(NodeView({}, True), Move(), id="never"),
    ],
)
def test_one_move_after_the_other(node: NodeView, move: Move) -> None:
    assert next_move(node) == move


def test_a_failed_layout_is_a_problem_and_the_node_stays_empty() -> None:
    failed = {**ASKED, STATE_LABEL: FAILED}
    move = next_move(NodeView(failed, False, MIXED, READY))
    assert MIXED.name in move.problem
    assert not move.labels
    # Going back is another layout.
    back = next_move(NodeView(failed, False, WHOLE, READY))
    assert back == Move({AWAY_LABEL: WHOLE.name})


@dataclass
class Node:
    """A node with a manager that looks when the name changes, and a scheduler that starts runtime pods."""

    labels: dict[str, str] = field(default_factory=lambda: dict(DONE))
    has_pod: bool = True
    seen: str = "before"
    at_work: bool = False

    def take(self, move: Move) -> None:
        for name, value in move.labels.items():
            if value is None:
                del self.labels[name]
            else:
                self.labels[name] = value
        if move.end_pod:
            self.has_pod = False

    def schedule(self) -> None:
        if AWAY_LABEL not in self.labels:
            self.has_pod = True

    def manage(self, fails: bool) -> None:
        name = self.labels[CONFIG_LABEL]
        if self.at_work:
            assert not self.has_pod, "a pod came while the manager was at work"
            self.labels[STATE_LABEL] = FAILED if fails else SUCCESS
            self.at_work = False
        elif name != self.seen:
            assert not self.has_pod, "the manager began beside a pod"
            self.seen, self.at_work = name, True
            self.labels[STATE_LABEL] = PENDING


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("operator", "manager", "scheduler")),
            st.sampled_from((MIXED, WHOLE, None)),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whoever_comes_first_and_whatever_is_wanted_in_between_the_last_layout_comes_about(
    history: list[tuple[str, Layout | None, bool]],
) -> None:
    node = Node()
    for who, wanted, fails in history:
        match who:
            case "operator":
                node.take(next_move(NodeView(node.labels, node.has_pod, wanted, READY)))
            case "manager":
                node.manage(fails)
            case "scheduler":
                node.schedule()
    last = Layout(((0, (WIDE,)),))  # never asked for before
    for _ in range(20):
        node.take(next_move(NodeView(node.labels, node.has_pod, last, READY)))
        node.manage(fails=False)
        node.schedule()
    assert node.labels == {CONFIG_LABEL: last.name, STATE_LABEL: SUCCESS}
    assert node.has_pod
