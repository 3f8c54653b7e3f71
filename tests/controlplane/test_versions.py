"""Which version runs: the new one when it is known and measured, the one before until then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import digest
from support.objects import fetched, gpu, instance, node, seen, served, service
from tessera_core.api import ModelService, NameRef, RuntimeNode
from tessera_core.api.modelservice import MemberStatus
from tessera_core.api.runtimenode import ServedMember
from tessera_operator.versions import Version, before, choose, digest_of, latest, pinned

S1, S2 = service("s", "ab"), service("s", "ac", generation=2)


def test_a_stated_digest_is_known() -> None:
    version = latest(S1, {})
    assert version.digests == {"a": digest("a"), "b": digest("b")}
    assert version.is_complete
    assert (version.name, version.generation) == ("vision.s", 1)


def test_a_digest_that_nobody_knows_leaves_the_version_incomplete() -> None:
    found = fetched(service("s", "ab", digests=False), a=digest("x"))
    version = latest(found, {})
    assert version.digests == {"a": digest("x")}
    assert not version.is_complete


def test_the_digest_of_another_uri_is_not_used() -> None:
    found = service("s", "a", digests=False)
    elsewhere = MemberStatus("a", digest("old"), "s3://models/old")
    found = replace(found, status=replace(found.status, members=(elsewhere,)))
    assert latest(found, {}).digests == {}


def referring(of: ModelService, profile: str) -> ModelService:
    members = tuple(replace(each, profile_ref=NameRef(profile)) for each in of.spec.members)
    return replace(of, spec=replace(of.spec, members=members))


def test_a_profile_that_is_named_tells_the_digest_within_its_namespace() -> None:
    found = referring(service("s", "a", digests=False), "measured")
    assert latest(found, {("vision", "measured"): digest("p")}).digests == {"a": digest("p")}
    assert latest(found, {("other", "measured"): digest("p")}).digests == {}


def test_what_is_stated_goes_before_what_was_fetched_and_that_before_a_profile() -> None:
    named = {("vision", "measured"): digest("p")}
    stated = fetched(referring(service("s", "a"), "measured"), a=digest("f"))
    assert digest_of(stated, stated.spec.members[0], named) == digest("a")
    found = fetched(referring(service("s", "a", digests=False), "measured"), a=digest("f"))
    assert digest_of(found, found.spec.members[0], named) == digest("f")


def version(of: ModelService) -> Version:
    return latest(of, {})


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [((), 1), ("a", 1), ("ab", 1), ("c", 1), ("ac", 2), ("abc", 2)],
)
def test_a_new_version_waits_until_all_its_models_are_measured(measured: str, chosen: int) -> None:
    found = choose(version(S2), before(S2, served(S1)), {digest(each) for each in measured})
    assert found.generation == chosen


def test_a_new_version_whose_models_are_not_known_waits() -> None:
    unknown = service("s", "a", generation=2, digests=False)
    assert choose(version(unknown), before(unknown, served(S1)), {digest("a")}).generation == 1


def test_a_first_version_does_not_wait() -> None:
    assert choose(version(S2), None, ()).generation == 2


def test_the_version_that_runs_is_taken_as_the_object_says() -> None:
    """Its status, and what only the object tells, is the newest."""
    found = version(S1)
    assert choose(found, before(S1, served(S1)), ()) is found


def test_scaling_and_traffic_do_not_wait_for_the_version_that_they_came_with() -> None:
    wanted = service("s", "ac", generation=2, rps=70, target="20ms", scaling={"minReplicas": 3})
    found = before(wanted, served(S1))
    assert found.service.spec.scaling == wanted.spec.scaling
    assert found.service.spec.traffic == wanted.spec.traffic
    assert found.service.spec.members == S1.spec.members
    assert found.service.spec.slo == S1.spec.slo
    assert found.generation == 1


def test_closing_a_service_to_strangers_does_not_wait_for_the_version_that_it_came_with() -> None:
    access = {"keysSecretRef": {"name": "keys"}}
    wanted = service("s", "ac", generation=2, access=access)
    closed = before(wanted, served(S1))
    assert closed.service.spec.access == wanted.spec.access
    assert closed.service.spec.members == S1.spec.members
    opened = before(service("s", "ac", generation=3), served(wanted))
    assert opened.service.spec.access is None


def test_replicas_by_the_scale_subresource_do_not_wait() -> None:
    external = {"mode": "External"}
    old = service("s", "a", scaling=external, replicas=2)
    new = service("s", "b", scaling=external, replicas=5, generation=2)
    assert before(new, served(old)).service.spec.replicas == 5


def test_the_version_before_has_the_digests_that_were_pinned() -> None:
    old = replace(
        served(service("s", "ab", digests=False)),
        members=(ServedMember("a", digest("pinned")), ServedMember("b")),
    )
    # What the object's status says is of the new version's files.
    found = before(fetched(S2, a=digest("new"), c=digest("new")), old)
    assert found.digests == {"a": digest("pinned")}
    assert not found.is_complete
    named = {each.name: each.digest for each in found.service.status.members}
    assert named == {"a": digest("pinned"), "b": None}


def test_the_version_before_reads_as_itself() -> None:
    old = replace(
        served(service("s", "ab", digests=False)),
        members=(ServedMember("a", digest("x")), ServedMember("b", digest("y"))),
    )
    found = before(S2, old)
    assert latest(found.service, {}).digests == found.digests


def running(generation: int, name: str, *, runs: bool = True) -> RuntimeNode:
    found = service("s", generation=generation)
    device = gpu("GPU-0", *([seen(instance())] if runs else []))
    return node(name, device, services=(served(found),))


def test_the_latest_version_that_some_node_runs_is_pinned() -> None:
    found = pinned([running(2, "n0"), running(3, "n1"), running(1, "n2")])
    assert {name: each.generation for name, each in found.items()} == {"vision.s": 3}


def test_a_node_that_only_passes_requests_on_pins_nothing() -> None:
    assert pinned([running(2, "n0", runs=False)]) == {}


@given(st.sets(st.sampled_from("abcd"), min_size=1), st.sets(st.sampled_from("abcd")))
def test_what_is_chosen_is_one_of_the_two_and_new_only_if_measured(
    members: set[str], measured: set[str]
) -> None:
    new = version(service("s", sorted(members), generation=7))
    old = before(new.service, served(S1))
    found = choose(new, old, {digest(each) for each in measured})
    assert found is (new if members <= measured else old)
