"""Members of one service on several servers: every server answers for all of it."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from support.clients import PATIENCE_S, Crowd, infer_grpc, infer_http
from support.model_files import DIE, RAISE, WIDTH, ModelFile, rows, told
from support.peers import calls_received, forwarded, peers
from support.server import Server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_runtime.protocol.messages import message
from tessera_runtime.target import ServiceTime

MODEL = "test.m"
NOWHERE: dict[str, int] = {}


@pytest.fixture
def split(one: Server, two: Server, a: ModelFile, b: ModelFile):
    """Member a on the first server, b on the second, each the other's peer."""
    combine = {"combine": Combine.CONCAT}
    a_here, b_here = member("a", a), member("b", b)
    a_there = member("a", a, instances=NOWHERE, peers=peers(one))
    b_there = member("b", b, instances=NOWHERE, peers=peers(two))
    one.apply(target(service("m", a_here, b_there, **combine)), wait=False)
    two.apply(target(service("m", a_there, b_here, **combine)), wait=False)
    one.wait_served()
    two.wait_served()
    yield
    one.apply(target())
    two.apply(target())


@pytest.mark.usefixtures("split")
def test_an_ensemble_over_two_servers_answers_as_one_on_a_single_server(
    one: Server, two: Server, a: ModelFile, b: ModelFile
):
    for server in (one, two):
        for first, count in ((1, 1), (2, 3), (3, 8)):
            x = rows(first, count)
            wanted = np.concatenate([a(x), b(x)], axis=1)
            for infer, client in ((infer_http, server.http()), (infer_grpc, server.grpc())):
                result = infer(client, MODEL, x)
                np.testing.assert_array_equal(result.as_numpy("y"), wanted)
    assert one.grpc().get_model_metadata(MODEL) == two.grpc().get_model_metadata(MODEL)


@pytest.fixture
def router(one: Server, two: Server, b: ModelFile):
    """The first server knows of the second and runs nothing."""
    two.apply(target(service("m", member("b", b))))
    one.apply(target(service("m", member("b", b, instances=NOWHERE, peers=peers(two)))))
    yield
    one.apply(target())
    two.apply(target())


@pytest.mark.usefixtures("router")
def test_a_server_without_instances_answers_and_counts_the_request_once(
    one: Server, two: Server, b: ModelFile
):
    x = rows(3, 2)
    np.testing.assert_array_equal(infer_http(one.http(), MODEL, x).as_numpy("y"), b(x))
    assert one.service(MODEL).codes == {"200": 1}
    assert (one.service(MODEL).total, two.service(MODEL).total) == (1, 0)
    assert two.member(MODEL).rows == 2
    assert (forwarded(one, "b"), calls_received(two, "b")) == (1, 1)
    one.wait_for(lambda r: r.workers == (), "no process for a model")


@pytest.mark.usefixtures("router")
def test_the_metadata_is_the_peers(one: Server, two: Server):
    assert one.grpc().get_model_metadata(MODEL) == two.grpc().get_model_metadata(MODEL)
    assert one.grpc().get_model_config(MODEL) == two.grpc().get_model_config(MODEL)


@pytest.mark.usefixtures("router")
def test_a_call_of_a_peer_is_not_passed_on(one: Server, two: Server):
    """Or two servers that each believe the other has a member would play ball."""
    before = forwarded(one, "b")
    with pytest.raises(InferenceServerException, match="no instance") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1), headers={"tessera-member": "b"})
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert forwarded(one, "b") == before


@pytest.mark.usefixtures("router")
def test_an_error_reads_as_if_the_member_ran_here(one: Server, two: Server):
    texts = []
    for server in (two, one):
        with pytest.raises(InferenceServerException, match="told to raise") as caught:
            infer_http(server.http(), MODEL, told(RAISE))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("split")
def test_one_member_alone_is_described_and_run(one: Server, two: Server, b: ModelFile):
    client, alone = two.grpc(), {"tessera-member": "b"}
    metadata = client.get_model_metadata(MODEL, headers=alone)
    assert [(t.name, list(t.shape)) for t in metadata.inputs] == [("x", [-1, WIDTH])]
    assert [(t.name, list(t.shape)) for t in metadata.outputs] == [("y", [-1, WIDTH])]
    x = rows(1, 2)
    result = infer_grpc(client, MODEL, x, headers=alone)
    np.testing.assert_array_equal(result.as_numpy("y"), b(x))


@pytest.mark.usefixtures("split")
def test_an_answer_of_a_member_tells_how_much_waits_for_it(two: Server, b: ModelFile):
    b.hold()
    crowd = Crowd(two.ports().grpc)
    asked = [crowd.ask(MODEL, rows(1), headers={"tessera-member": "b"})]
    b.wait_held()
    asked += [crowd.ask(MODEL, rows(1, 3), headers={"tessera-member": "b"}) for _ in range(2)]
    two.wait_for(lambda r: r.services[0].members[1].queued_rows == 6, "two calls waiting")
    with grpc.insecure_channel(f"127.0.0.1:{two.ports().grpc}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        request = message("ModelMetadataRequest")(name=MODEL).SerializeToString()
        _, call = ask.with_call(request, metadata=[("tessera-member", "b")])
        trailing = dict(call.trailing_metadata())
        assert (trailing["tessera-queued-rows"], trailing["tessera-max-rows"]) == ("6", "8")
    b.let_go()
    for each in asked:
        each.result()
    crowd.close()


@pytest.fixture
def replicas(one: Server, two: Server, a: ModelFile, b: ModelFile):
    """Both run the member, from files of their own so that one can be slow alone; each knows the other.

    A batch is one row and should take 2 ms.
    """
    alike = {"digest": "both", "cap": 1, "service_time": ServiceTime(1.0, 1.0)}
    one.apply(target(service("m", member("a", a, peers=peers(two), **alike))))
    two.apply(target(service("m", member("a", b, peers=peers(one), **alike))))
    yield
    a.let_go()
    one.apply(target())
    two.apply(target())


@pytest.mark.usefixtures("replicas")
def test_an_idle_server_does_its_own_work(one: Server, a: ModelFile):
    one.wait_for(lambda r: r.services[0].ready, "the service")
    client = one.grpc()
    for i in range(20):
        np.testing.assert_array_equal(infer_grpc(client, MODEL, rows(i)).as_numpy("y"), a(rows(i)))
    assert forwarded(one, "a") == 0


@pytest.mark.usefixtures("replicas")
def test_work_leaves_a_slow_server(one: Server, a: ModelFile, b: ModelFile):
    """The batch that runs and what may wait behind it stay; the rest is answered by the peer."""
    crowd = Crowd(one.ports().grpc)
    a.hold()
    asked = {i: crowd.ask(MODEL, rows(i)) for i in range(1)}
    a.wait_held()
    for i in range(1, 25):
        asked[i] = crowd.ask(MODEL, rows(i))
        wait_until(
            lambda i=i: forwarded(one, "a") + one.member(MODEL).queued_rows == i,
            "the request placed",
        )
    one.wait_for(lambda r: r.services[0].codes.get("200", 0) >= 20, "answers of the peer")
    stayed = one.member(MODEL).queued_rows
    assert stayed <= 4
    a.let_go()
    for i, answer in asked.items():
        y = answer.result()
        assert np.array_equal(y, a(rows(i))) or np.array_equal(y, b(rows(i)))
    crowd.close()


@pytest.mark.usefixtures("split")
def test_late_answers_of_a_peer_are_left_out_of_a_partial_answer(
    one: Server, two: Server, a: ModelFile, b: ModelFile
):
    partial = {
        "version": "2",
        "combine": Combine.MEAN,
        "min_members": 1,
        "on_timeout": OnTimeout.PARTIAL,
    }
    here = [member("a", a), member("b", b, instances=NOWHERE, peers=peers(two), required=False)]
    there = [member("a", a, instances=NOWHERE, peers=peers(one)), member("b", b, required=False)]
    one.apply(target(service("m", *here, **partial)), wait=False)
    two.apply(target(service("m", *there, **partial)), wait=False)
    one.wait_served()
    two.wait_served()
    b.hold()
    x = rows(2)
    result = infer_grpc(one.grpc(), MODEL, x, timeout=300_000)
    np.testing.assert_array_equal(result.as_numpy("y"), a(x))
    assert result.get_response().parameters["partial"].bool_param
    two.wait_for(lambda r: r.services[0].members[1].queued_rows == 0, "nothing left behind")
    b.let_go()


@pytest.mark.usefixtures("router")
def test_a_request_that_kills_instances_is_not_given_a_third(
    one: Server, two: Server, b: ModelFile
):
    with pytest.raises(InferenceServerException, match="2 instances ended") as caught:
        infer_grpc(one.grpc(), MODEL, told(DIE), client_timeout=PATIENCE_S)
    assert caught.value.status() == "StatusCode.INTERNAL"
    two.wait_served()
    one.wait_served()
    assert two.member(MODEL).restarts == 2
    np.testing.assert_array_equal(infer_grpc(one.grpc(), MODEL, rows(1)).as_numpy("y"), b(rows(1)))


_TWO_INPUTS = """
import os, time

class Model:
    inputs = {inputs!r}
    outputs = {{"y": ("FP32", (-1,))}}

    def __call__(self, batch):
        while os.path.exists({gate!r}):
            time.sleep(0.002)
        return {{"y": {scale} * batch["x"] - batch["w"]}}

def load(device, options):
    return Model()
"""


def test_members_that_list_their_inputs_differently_share_batches_only_where_they_agree(
    one: Server, two: Server, tmp_path: Path
):
    """At the second server the service's own requests, in its order, meet calls in the member's order."""
    x, w = ("x", ("FP32", (-1,))), ("w", ("FP32", (-1,)))
    paths = {"a": tmp_path / "a.py", "b": tmp_path / "b.py"}
    gate = tmp_path / "gate"
    for name, inputs, scale in (("a", [x, w], 2), ("b", [w, x], 4)):
        paths[name].write_text(_TWO_INPUTS.format(inputs=dict(inputs), scale=scale, gate=str(gate)))
    combine = {"combine": Combine.CONCAT}
    two.apply(target(service("m", member("a", paths["a"]), member("b", paths["b"]), **combine)))
    one.apply(
        target(
            service(
                "m",
                member("a", paths["a"]),
                member("b", paths["b"], instances=NOWHERE, peers=peers(two)),
                **combine,
            )
        )
    )
    crowds = [Crowd(server.ports().grpc, threads=16) for server in (one, two)]

    def ask(crowd: Crowd, count: int, width: int):
        arrays = {n: rng.random((count, width), np.float32) for n in "xw"}
        given = []
        for name, array in arrays.items():
            given.append(grpc_client.InferInput(name, array.shape, "FP32"))
            given[-1].set_data_from_numpy(array)
        return arrays, crowd.submit(lambda: crowd.client.infer(MODEL, given).as_numpy("y"))

    rng = np.random.default_rng(1)
    gate.touch()  # so that what comes meanwhile is batched
    asked = [ask(crowds[i % 2], 1 + i % 3, 2 + i // 2 % 2) for i in range(32)]
    two.wait_for(lambda r: r.services[0].members[1].queued_rows >= 50, "a queue of both kinds")
    gate.unlink()
    for arrays, answer in asked:
        wanted = [scale * arrays["x"] - arrays["w"] for scale in (2, 4)]
        np.testing.assert_array_equal(answer.result(), np.concatenate(wanted, axis=1))
    for crowd in crowds:
        crowd.close()
    assert calls_received(two, "b") == 16
    one.apply(target())
    two.apply(target())
