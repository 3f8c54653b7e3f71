"""What a request means by the names in it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from support.targets import member, service
from tessera_runtime.dataplane import MemberCall
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.deadlines import Deadlines
from tessera_runtime.dispatch.names import meant, named_member, named_version
from tessera_runtime.dispatch.service import Service
from tessera_runtime.errors import NotFound, Unavailable

SERVED = ("vision.digits", "audio.digits", "vision.pets")


@pytest.mark.parametrize(
    ("name", "host", "plain_names", "served"),
    [
        ("vision.pets", "", False, "vision.pets"),
        ("pets", "", True, "vision.pets"),
        ("pets", "", False, "pets"),
        ("digits", "", True, "digits"),
        ("digits", "digits.audio.svc:8000", False, "audio.digits"),
        ("digits", "pets.audio.svc", True, "digits"),
        ("vision.pets", "digits.audio", False, "vision.pets"),
        ("pets", "pets.audio", False, "pets"),
    ],
)
def test_a_name_is_completed_by_the_host_or_where_it_is_unambiguous(
    name: str, host: str, plain_names: bool, served: str
):
    assert meant(name, host, SERVED, plain_names=plain_names) == served


def version(number: str) -> Service:
    """Of members whose model files differ from version to version."""
    members = [member(name, Path("/m"), digest=f"{name}{number}") for name in "ab"]
    return Service(
        service("m", *members, version=number), Deadlines(), InputArena(1 << 20, 1 << 20).allocate
    )


def test_a_version_is_the_one_that_serves_or_not_found():
    one = version("1")
    assert named_version({"test.m": one}, "test.m", "") is one
    assert named_version({"test.m": one}, "test.m", "1") is one
    with pytest.raises(NotFound, match="no version '2'; served is '1'"):
        named_version({"test.m": one}, "test.m", "2")
    with pytest.raises(NotFound, match=r"no model 'm'; served are \['test\.m'\]"):
        named_version({"test.m": one}, "m", "")


def test_a_member_is_of_the_version_that_has_its_file_the_first_where_none_is_named():
    one, two = versions = version("1"), version("2")
    assert named_member(versions, "test.m", MemberCall("b")) is one.calls[1]
    assert named_member(versions, "test.m", MemberCall("b", "b2")) is two.calls[1]
    for part in (MemberCall("c"), MemberCall("a", "b1")):
        with pytest.raises(Unavailable, match=f"member {part.member}: not served here"):
            named_member(versions, "test.m", part)
    with pytest.raises(Unavailable):
        named_member((), "test.m", MemberCall("a"))


def test_a_member_that_has_an_instance_goes_before_one_that_has_none():
    one, two = versions = version("1"), version("2")
    two.members[1].lanes.attach(SimpleNamespace(leaving=False, device="", batch=()))
    assert named_member(versions, "test.m", MemberCall("b")) is two.calls[1]
    assert named_member(versions, "test.m", MemberCall("b", "b1")) is one.calls[1]
