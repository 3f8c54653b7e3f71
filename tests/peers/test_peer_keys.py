"""Calls between servers prove what clients prove, also while two servers know different keys."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.peers import Played, calls_received, peers
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine
from tessera_runtime.dataplane import MemberCall
from tessera_runtime.protocol.grpc_codec import encode_request
from tessera_runtime.protocol.member_call import write_metadata
from tessera_runtime.protocol.messages import SERVICE, message
from tessera_runtime.target import ServerTarget

MODEL = "test.m"
NOWHERE: dict[str, int] = {}


@pytest.fixture
def split(one: Server, two: Server, a: ModelFile, b: ModelFile) -> Iterator[list[ServerTarget]]:
    """What both are told: member a on the first server, b on the second, each the other's peer."""
    both = {"combine": Combine.CONCAT, "needs_key": True}
    b_there = member("b", b, instances=NOWHERE, peers=peers(two))
    a_there = member("a", a, instances=NOWHERE, peers=peers(one))
    yield [
        target(service("m", member("a", a), b_there, **both)),
        target(service("m", a_there, member("b", b), **both)),
    ]
    one.apply(target())
    two.apply(target())


def tell(servers: list[Server], targets: list[ServerTarget], *keys: tuple[str, ...]) -> None:
    for server, wanted, known in zip(servers, targets, keys, strict=True):
        server.apply(wanted, {MODEL: known}, wait=False)


def ask(server: Server, key: str, infer=infer_grpc) -> np.ndarray:
    client = server.grpc() if infer is infer_grpc else server.http()
    headers = {"authorization": f"Bearer {key}"}
    return infer(client, MODEL, rows(5, 2), headers=headers).as_numpy("y")


def test_an_ensemble_over_two_servers_answers_who_has_its_key(
    one: Server, two: Server, split: list[ServerTarget], a: ModelFile, b: ModelFile
) -> None:
    tell([one, two], split, ("k",), ("k",))
    one.wait_served()
    two.wait_served()
    wanted = np.concatenate([a(rows(5, 2)), b(rows(5, 2))], axis=1)
    for server in (one, two):
        for infer in (infer_http, infer_grpc):
            np.testing.assert_array_equal(ask(server, "k", infer), wanted)
            with pytest.raises(InferenceServerException, match="none of its keys"):
                ask(server, "wrong", infer)


def test_a_rotation_fails_no_request_however_the_servers_learn_of_it(
    one: Server, two: Server, split: list[ServerTarget]
) -> None:
    """At every moment some key is known to both, and that is enough."""
    tell([one, two], split, ("old",), ("old",))
    one.wait_served()
    two.wait_served()
    both = ("old", "new")
    for known in (
        (("old",), both), (both, both), (both, ("new",)), (("new",), ("new",)),
        (("new",), ("new", "a-later")), (("a-later", "new"), ("new",)),
    ):  # fmt: skip
        tell([one, two], split, *known)
        for server, keys in zip((one, two), known, strict=True):
            for key in keys:
                assert ask(server, key).shape == (2, 8)
        assert one.service(MODEL).ready
        assert two.service(MODEL).ready


def test_servers_without_a_common_key_do_not_answer_for_each_other(
    one: Server, two: Server, split: list[ServerTarget]
) -> None:
    tell([one, two], split, ("k",), ("k",))
    one.wait_served()
    two.wait_served()
    tell([one, two], split, ("k",), ("other",))
    with pytest.raises(InferenceServerException) as caught:
        infer_grpc(
            one.grpc(), MODEL, rows(1), headers={"authorization": "Bearer k"}, timeout=500_000
        )
    # The client's own key is right: what failed is between the servers.
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    one.wait_for(lambda r: not r.services[0].ready, "the peer found closed to it")
    assert "none of its keys" in one.member(MODEL, "b").problem
    tell([one, two], split, ("k",), ("k",))
    one.wait_served()
    assert ask(one, "k").shape == (2, 8)


def member_call(server: Server, method: str, *keys: str) -> bytes:
    """What anybody can send who knows how servers call each other."""
    sent = {
        "ModelInfer": encode_request(MODEL, "", []),
        "ModelMetadata": message("ModelMetadataRequest")(name=MODEL).SerializeToString(),
    }[method]
    with grpc.insecure_channel(f"127.0.0.1:{server.ports().grpc}") as channel:
        asked = channel.unary_unary(f"/{SERVICE}/{method}")
        return asked(sent, metadata=write_metadata(MemberCall("b"), keys=keys), timeout=20)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata"])
def test_a_member_call_without_a_key_is_refused(
    one: Server, two: Server, split: list[ServerTarget], method: str
) -> None:
    tell([one, two], split, ("k",), ("k",))
    two.wait_served()
    before = calls_received(two, "b")
    for keys in ((), ("wrong",), ("wrong", "K")):
        with pytest.raises(grpc.RpcError) as caught:
            member_call(two, method, *keys)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert calls_received(two, "b") == before
    assert member_call(two, "ModelMetadata", "wrong", "k")


def test_a_service_that_goes_stays_closed_while_peers_still_call(
    one: Server, two: Server, split: list[ServerTarget]
) -> None:
    tell([one, two], split, ("k",), ("k",))
    one.wait_served()
    ask(one, "k")
    two.apply(target(), wait=False)
    with pytest.raises(grpc.RpcError) as caught:
        member_call(two, "ModelMetadata")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_what_was_held_goes_to_the_first_peer_with_a_key(
    one: Server, two: Server, a: ModelFile
) -> None:
    """The one that holds is an activator: it runs nothing and knows the keys."""
    asleep = member("a", a, instances=NOWHERE)
    one.apply(target(service("m", asleep, hold=5, needs_key=True)), {MODEL: ("k",)}, wait=False)
    crowd = Crowd(one.ports().grpc, threads=2)
    try:
        asked = crowd.ask(MODEL, rows(2), headers={"authorization": "Bearer k"})
        with pytest.raises(InferenceServerException, match="needs a key"):
            infer_grpc(one.grpc(), MODEL, rows(1))
        one.wait_for(lambda r: r.services[0].held == 1, "one request held")
        two.apply(target(service("m", member("a", a), needs_key=True)), {MODEL: ("k", "l")})
        awake = member("a", a, instances=NOWHERE, peers=peers(two))
        one.apply(target(service("m", awake, hold=5, needs_key=True)), {MODEL: ("k",)})
        np.testing.assert_array_equal(asked.result(), a(rows(2)))
    finally:
        crowd.close()
        one.apply(target())
        two.apply(target())


def test_a_service_that_asks_for_none_tells_its_peers_none(one: Server) -> None:
    def twice(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": 2 * given["x"]}

    with Played(MODEL, "a", twice) as peer:
        free = member("a", "", instances=NOWHERE, digest="sha256:x", peers=(peer.target(),))
        one.apply(target(service("m", free)), {MODEL: ("left-over",)})
        peer.plane.keys = {MODEL: "left-over"}
        with pytest.raises(InferenceServerException):
            infer_grpc(one.grpc(), MODEL, rows(1), timeout=300_000)
        assert peer.calls == []
        one.apply(target())
