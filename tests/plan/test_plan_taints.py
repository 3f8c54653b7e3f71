"""Taints against tolerations, as the scheduler and the taint controller of Kubernetes hold them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api import TaintEffect, Toleration, TolerationOperator
from tessera_core.plan import NodeState, PoolRules
from tessera_core.plan.state import Taint
from tessera_core.plan.taints import Admission, admission_of

EXISTS, EQUAL = TolerationOperator.EXISTS, TolerationOperator.EQUAL
SOFT, HARD, EVICT = (
    TaintEffect.PREFER_NO_SCHEDULE,
    TaintEffect.NO_SCHEDULE,
    TaintEffect.NO_EXECUTE,
)
ORDER = [Admission.OPEN, Admission.AVOID, Admission.KEEP, Admission.CLOSED]


def verdict(taints: list[Taint], *tolerations: Toleration) -> Admission:
    return admission_of(
        NodeState("n", "p", (), taints=tuple(taints)), PoolRules("p", tolerations=tolerations)
    )


def gpu(effect: TaintEffect, value: str = "present") -> Taint:
    return Taint("nvidia.com/gpu", value, effect)


@pytest.mark.parametrize(
    ("effect", "expected"),
    [(SOFT, Admission.AVOID), (HARD, Admission.KEEP), (EVICT, Admission.CLOSED)],
)
def test_an_untolerated_taint_does_what_its_effect_says(
    effect: TaintEffect, expected: Admission
) -> None:
    assert verdict([gpu(effect)]) is expected


def test_a_node_without_taints_is_open() -> None:
    assert verdict([]) is Admission.OPEN


def test_the_strictest_taint_decides_in_any_order() -> None:
    taints = [gpu(SOFT), Taint("drain", "", EVICT), gpu(HARD)]
    assert verdict(taints) is verdict(taints[::-1]) is Admission.CLOSED
    assert verdict(taints, Toleration("drain", EXISTS)) is Admission.KEEP


@pytest.mark.parametrize("effect", list(TaintEffect))
@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration("nvidia.com/gpu", EQUAL, "present"), True),
        (Toleration("nvidia.com/gpu", EQUAL, "absent"), False),
        (Toleration("nvidia.com/gpu", EQUAL), False),
        (Toleration("nvidia.com/gpu", EXISTS), True),
        (Toleration("nvidia.com/GPU", EXISTS), False),
        (Toleration("nvidia.com", EXISTS), False),
        (Toleration(None, EXISTS), True),
    ],
    ids=str,
)
def test_key_and_value(toleration: Toleration, tolerated: bool, effect: TaintEffect) -> None:
    assert (verdict([gpu(effect)], toleration) is Admission.OPEN) is tolerated


def test_equal_without_a_value_is_for_taints_without_one() -> None:
    assert verdict([gpu(HARD, "")], Toleration("nvidia.com/gpu", EQUAL)) is Admission.OPEN


@pytest.mark.parametrize("effect", list(TaintEffect))
@pytest.mark.parametrize("tolerated", list(TaintEffect))
def test_an_effect_is_tolerated_alone(effect: TaintEffect, tolerated: TaintEffect) -> None:
    found = verdict([gpu(effect)], Toleration(None, EXISTS, effect=tolerated))
    assert (found is Admission.OPEN) is (effect is tolerated)


@pytest.mark.parametrize(("seconds", "expected"), [(300, Admission.KEEP), (0, Admission.CLOSED)])
def test_an_eviction_tolerated_for_a_while_takes_nothing_new(
    seconds: int, expected: Admission
) -> None:
    waiting = Toleration(None, EXISTS, effect=EVICT, toleration_seconds=seconds)
    assert verdict([gpu(EVICT)], waiting) is expected


def test_of_two_tolerations_of_one_taint_the_first_counts() -> None:
    forever = Toleration(None, EXISTS)
    waiting = Toleration(None, EXISTS, effect=EVICT, toleration_seconds=60)
    assert verdict([gpu(EVICT)], forever, waiting) is Admission.OPEN
    assert verdict([gpu(EVICT)], waiting, forever) is Admission.KEEP


KEYS = st.sampled_from(["a", "b"])
VALUES = st.sampled_from(["", "v", "w"])
EFFECTS = st.sampled_from(TaintEffect)
TAINTS = st.lists(st.builds(Taint, KEYS, VALUES, EFFECTS), max_size=4)
TOLERATIONS = st.lists(
    st.builds(
        Toleration,
        KEYS | st.none(),
        st.sampled_from(TolerationOperator),
        VALUES | st.none(),
        EFFECTS | st.none(),
    ),
    max_size=3,
)


@given(TAINTS, TAINTS, TOLERATIONS, TOLERATIONS)
def test_taints_only_close_and_lasting_tolerations_only_open(
    taints: list[Taint], more: list[Taint], tolerations: list[Toleration], others: list[Toleration]
) -> None:
    rank = ORDER.index(verdict(taints, *tolerations))
    assert ORDER.index(verdict(taints + more, *tolerations)) >= rank
    assert ORDER.index(verdict(taints, *tolerations, *others)) <= rank
    assert verdict(taints, Toleration(operator=EXISTS)) is Admission.OPEN
