"""Nodes cut by NVIDIA's MIG manager: the order of labels and pods, whoever dies in between."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api.runtimenode import CutProblem
from tessera_core.gpu.geometry import Placement
from tessera_operator.mig_layouts import Layout
from tessera_operator.mig_manager import (
    AWAY_LABEL,
    CONFIG_LABEL,
    FAILED,
    MANAGER_S,
    PENDING,
    STATE_LABEL,
    SUCCESS,
    Move,
    NodeView,
    next_move,
)

SMALL, WIDE = Placement("1g.10gb", 0), Placement("3g.40gb", 4)
MIXED = Layout(((0, (SMALL, WIDE)), (1, None)))
WHOLE = Layout(((0, None), (1, None)))
KNOWN = (MIXED.name, WHOLE.name)
NAME, AGAIN = MIXED.names
BACK = WHOLE.names[0]

DONE = {CONFIG_LABEL: "before", STATE_LABEL: SUCCESS}
AWAY = {**DONE, AWAY_LABEL: NAME}
ASKED = {CONFIG_LABEL: NAME, STATE_LABEL: PENDING, AWAY_LABEL: f"{NAME}.asked"}
OUT = {CONFIG_LABEL: NAME, STATE_LABEL: SUCCESS}


def view(labels: dict[str, str], wanted: Layout | None = MIXED, **rest: object) -> NodeView:
    """Of a node that has no pod, and was whole before."""
    found = NodeView(labels, False, wanted=wanted, present=WHOLE, known=KNOWN)
    return replace(found, **rest)  # type: ignore[arg-type]


def asked(name: str) -> dict[str, str | None]:
    return {CONFIG_LABEL: name, STATE_LABEL: PENDING, AWAY_LABEL: f"{name}.asked"}


@pytest.mark.parametrize(
    ("node", "labels", "end_pod"),
    [
        pytest.param(view(DONE, known=()), {}, False, id="not on the nodes"),
        pytest.param(view(DONE, has_pod=True), {AWAY_LABEL: NAME}, False, id="away"),
        pytest.param(
            view({**DONE, STATE_LABEL: "rebooting"}), {}, False, id="somebody else's is not done"
        ),
        pytest.param(view(AWAY, has_pod=True, in_use=True), {}, False, id="in use"),
        pytest.param(view(AWAY, has_pod=True), {}, True, id="end the pod"),
        pytest.param(view(AWAY), asked(NAME), False, id="ask"),
        pytest.param(view({**AWAY, STATE_LABEL: PENDING}), {}, False, id="busy before"),
        pytest.param(view(ASKED), {}, False, id="at work"),
        pytest.param(view({**ASKED, STATE_LABEL: "rebooting"}), {}, False, id="rebooting"),
        pytest.param(view(ASKED, has_pod=True), {}, True, id="a pod slipped in"),
        pytest.param(view({**ASKED, STATE_LABEL: SUCCESS}), {AWAY_LABEL: None}, False, id="done"),
        pytest.param(view(OUT, is_told=False), {}, False, id="the pod comes back"),
        pytest.param(
            view({**AWAY, AWAY_LABEL: "other"}), {AWAY_LABEL: NAME}, False, id="another layout"
        ),
        pytest.param(
            view({**ASKED, STATE_LABEL: SUCCESS}, WHOLE), {AWAY_LABEL: BACK}, False, id="and back"
        ),
        # The manager looks only when the name changes.
        pytest.param(
            view({**OUT, STATE_LABEL: FAILED}), {AWAY_LABEL: AGAIN}, False, id="asked once more"
        ),
        pytest.param(view(AWAY, None), {AWAY_LABEL: None}, False, id="given up before"),
        pytest.param(view(ASKED, None), {}, False, id="given up at work"),
        pytest.param(
            view(ASKED, None, ordered_s=MANAGER_S), asked(BACK), False, id="given up unanswered"
        ),
        pytest.param(
            view({**asked(BACK)}, None, ordered_s=MANAGER_S),  # type: ignore[arg-type]
            {AWAY_LABEL: None},
            False,
            id="and that is not answered either",
        ),
        pytest.param(view({**ASKED, STATE_LABEL: FAILED}, None), asked(BACK), False, id="undone"),
        pytest.param(
            view({**ASKED, STATE_LABEL: SUCCESS}, None), {AWAY_LABEL: None}, False, id="done late"
        ),
        pytest.param(
            view(OUT, None),
            {CONFIG_LABEL: BACK, STATE_LABEL: PENDING},
            False,
            id="the label says what is not so",
        ),
        pytest.param(view(OUT, None, present=MIXED), {}, False, id="the label is right"),
        pytest.param(view(OUT, None, is_told=False), {}, False, id="nobody knows"),
        pytest.param(view(DONE, None), {}, False, id="somebody else's label"),
        pytest.param(view({}, None), {}, False, id="never"),
    ],
)
def test_one_move_after_the_other(
    node: NodeView, labels: dict[str, str | None], end_pod: bool
) -> None:
    found = next_move(node)
    assert (found.labels, found.end_pod, found.problem) == (labels, end_pod, None)
    assert node.wanted is None or found.message or found.labels


@pytest.mark.parametrize(
    ("labels", "problem", "words"),
    [
        ({**ASKED, STATE_LABEL: FAILED}, CutProblem.MANAGER_FAILED, f"failed on {NAME}: its log"),
        (OUT, CutProblem.MANAGER_FAILED, f"says that {NAME} is done, and the GPUs are cut other"),
        (
            {**ASKED, CONFIG_LABEL: "mine"},
            CutProblem.CHANGED_BY_HAND,
            f"somebody set {CONFIG_LABEL} to mine while {NAME} was asked for",
        ),
    ],
)
def test_what_stands_in_the_way_is_a_problem_and_nothing_is_done(
    labels: dict[str, str], problem: CutProblem, words: str
) -> None:
    found = next_move(view(labels))
    assert (found.labels, found.end_pod, found.problem) == ({}, False, problem)
    assert words in found.message


@dataclass
class Node:
    """A node with a manager that looks when the name changes, and a scheduler that starts runtime pods."""

    labels: dict[str, str] = field(default_factory=lambda: dict(DONE))
    has_pod: bool = True
    present: Layout = WHOLE
    seen: str = "before"
    at_work: bool = False

    def next(self, wanted: Layout | None) -> Move:
        needed = wanted if wanted is not None and wanted.name != self.present.name else None
        return next_move(
            NodeView(
                self.labels,
                self.has_pod,
                is_told=self.has_pod,
                wanted=needed,
                present=self.present,
                known=KNOWN,
            )
        )

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
            if not fails:
                self.present = MIXED if self.seen in MIXED.names else WHOLE
            self.at_work = False
        elif name != self.seen:
            self.seen = name
            if name in self.present.names:
                self.labels[STATE_LABEL] = SUCCESS  # nobody is disturbed
                return
            assert not self.has_pod, "the manager began beside a pod"
            self.at_work = True
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
                node.take(node.next(wanted))
            case "manager":
                node.manage(fails)
            case "scheduler":
                node.schedule()
    for _ in range(30):  # what failed is given up
        node.take(node.next(None))
        node.manage(fails=False)
        node.schedule()
    last = MIXED if node.present is WHOLE else WHOLE
    for _ in range(30):
        node.take(node.next(last))
        node.manage(fails=False)
        node.schedule()
    assert node.present is last
    assert AWAY_LABEL not in node.labels
    assert node.labels[STATE_LABEL] == SUCCESS
    assert node.labels[CONFIG_LABEL] in last.names
    assert node.has_pod
