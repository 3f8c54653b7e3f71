"""Lost nodes: silent for long by one clock, unless it was the operator who could not hear."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tessera_operator.heartbeats import Heartbeats, renewals

LOST_S = 40.0


def looked(*looks: tuple[float, dict[str, str]]) -> Heartbeats:
    beats = Heartbeats(LOST_S)
    for now_s, found in looks:
        beats.look(found, now_s)
    return beats


def test_a_node_that_renews_is_not_lost() -> None:
    beats = Heartbeats(LOST_S)
    for second in range(0, 200, 10):
        beats.look({"n0": str(second)}, second)
        assert beats.lost(second) == frozenset()


def test_a_node_is_lost_once_it_was_silent_for_so_long_and_found_again_when_it_renews() -> None:
    beats = Heartbeats(LOST_S)
    for second in range(1, 40, 10):
        beats.look({"n0": "then", "n1": str(second)}, second)
        assert beats.lost(second) == frozenset()
    beats.look({"n0": "then", "n1": "41"}, 41)
    assert beats.lost(41) == {"n0"}
    beats.look({"n0": "again", "n1": "51"}, 51)
    assert beats.lost(51) == frozenset()


def test_what_the_clock_of_the_node_says_does_not_matter() -> None:
    beats = looked(*((second, {"n0": f"1970-{second}"}) for second in range(1, 100, 10)))
    assert beats.lost(100) == frozenset()


def test_a_node_that_never_had_a_lease_is_not_lost() -> None:
    beats = looked(*((second, {}) for second in range(1, 100, 10)))
    assert beats.lost(100) == frozenset()


def test_a_node_whose_lease_was_removed_is_forgotten() -> None:
    beats = looked(
        (1, {"n0": "a"}), (11, {}), (21, {"n0": "a"}), (31, {"n0": "a"}), (51, {"n0": "a"})
    )
    assert beats.lost(60) == frozenset()
    assert beats.lost(61) == {"n0"}


def test_nobody_is_lost_while_the_operator_cannot_look() -> None:
    beats = looked((1, {"n0": "a"}), (11, {"n0": "a"}), (21, {"n0": "a"}))
    assert beats.lost(500) == frozenset()


def test_after_a_blind_time_every_node_has_its_whole_time_again() -> None:
    beats = looked((1, {"n0": "a"}), (11, {"n0": "a"}), (100, {"n0": "a"}))
    assert beats.lost(100) == frozenset()
    for second in (110, 120, 130):
        beats.look({"n0": "a"}, second)
        assert beats.lost(second) == frozenset()
    beats.look({"n0": "a"}, 140)
    assert beats.lost(140) == {"n0"}


@given(
    st.lists(st.tuples(st.floats(0.1, 60), st.booleans()), min_size=1, max_size=30),
)
def test_a_node_that_renewed_within_the_time_is_never_lost(looks: list[tuple[float, bool]]) -> None:
    beats, now_s, renewed_s, renewals_so_far = Heartbeats(LOST_S), 1000.0, 1000.0, 0
    for passed_s, renews in looks:
        now_s += passed_s
        if renews or renewals_so_far == 0:
            renewals_so_far, renewed_s = renewals_so_far + 1, now_s
        beats.look({"n0": str(renewals_so_far)}, now_s)
        if now_s - renewed_s < LOST_S:
            assert beats.lost(now_s) == frozenset()


def test_renewals_are_read_from_the_leases_of_nodes_only() -> None:
    def lease(name: str, **spec: object) -> dict[str, object]:
        return {"metadata": {"name": name}, "spec": spec}

    found = renewals(
        [
            lease("tessera-node-n0", renewTime="2026-01-31T12:00:00Z"),
            lease("tessera-node-new"),
            lease("tessera-operator", renewTime="x"),
            lease("kube-scheduler", renewTime="x"),
            {"metadata": {"name": "tessera-node-odd"}, "spec": None},
            {},
        ]
    )
    assert found == {"n0": "2026-01-31T12:00:00Z", "new": ""}
