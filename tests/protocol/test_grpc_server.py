"""What the gRPC front end adds to inference: health, reflection, deadlines, cancellation, bounds, descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from support.front_ends import FrontEnds
from support.served_models import served_plane
from tessera_runtime.protocol import messages
from tessera_runtime.protocol.grpc_server import start_grpc
from tessera_runtime.protocol.limits import GrpcLimits
from tessera_runtime.protocol.listen import PortTaken, listen_on

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PATIENCE_S = 20


@contextmanager
def serving(hold: bool = False, **limits) -> Iterator[tuple[FrontEnds, grpc.Channel]]:
    plane = served_plane(hold=hold)
    with (
        FrontEnds(plane, grpc_limits=GrpcLimits(**limits)) as front_ends,
        grpc.insecure_channel(front_ends.grpc_url) as channel,
    ):
        yield front_ends, channel


def identity(request_id: str = "") -> service_pb2.ModelInferRequest:
    raw = np.ones((1, 16), np.float32).tobytes()
    request = service_pb2.ModelInferRequest(
        model_name="test.identity", id=request_id, raw_input_contents=[raw]
    )
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    return request


def wait_for_submit(front_ends: FrontEnds) -> None:
    front_ends.run(front_ends.plane.submitted.wait())


def test_health_of_the_server_and_of_each_model():
    with serving() as (front_ends, channel):
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "inference.GRPCInferenceService", "test.identity"):
            assert check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
        front_ends.plane.unloaded.add("test.identity")
        for service in ("", "test.identity"):
            assert check(health_pb2.HealthCheckRequest(service=service)).status == NOT_SERVING
        assert check(health_pb2.HealthCheckRequest(service="echo.FP32")).status == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            check(health_pb2.HealthCheckRequest(service="test.absent"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_reports_changes():
    with serving() as (front_ends, channel):
        request = health_pb2.HealthCheckRequest(service="test.identity")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=_PATIENCE_S)
        assert next(watch).status == SERVING
        front_ends.plane.unloaded.add("test.identity")
        assert next(watch).status == NOT_SERVING
        watch.cancel()


def test_reflection_describes_every_service():
    with serving() as (_, channel):
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        assert names >= {"inference.GRPCInferenceService", "grpc.health.v1.Health"}
        found = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert "ModelInfer" in found.methods_by_name


def test_a_passed_deadline_cancels_the_request():
    with serving(hold=True) as (front_ends, channel):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        with pytest.raises(grpc.RpcError) as late:
            infer(identity("late"), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        front_ends.run(front_ends.plane.cancellation.wait())
        assert [call.id for call in front_ends.plane.cancelled] == ["late"]


def test_a_cancelled_call_cancels_the_request():
    with serving(hold=True) as (front_ends, channel):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        call = infer.future(identity("gone"))
        wait_for_submit(front_ends)
        call.cancel()
        front_ends.run(front_ends.plane.cancellation.wait())
        assert [call.id for call in front_ends.plane.cancelled] == ["gone"]


def test_a_broken_stream_cancels_its_requests():
    with serving(hold=True) as (front_ends, channel):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        call = stream(iter([identity("streamed")]))
        wait_for_submit(front_ends)
        call.cancel()
        front_ends.run(front_ends.plane.cancellation.wait())
        assert [call.id for call in front_ends.plane.cancelled] == ["streamed"]


def test_a_stream_holds_back_requests_beyond_its_bound():
    with serving(max_stream_requests=2) as (_, channel):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = stream(iter([identity(str(number)) for number in range(50)]))
        assert {answer.infer_response.id for answer in answers} == set(map(str, range(50)))


def test_malformed_stream_messages_are_answered_in_the_stream():
    with serving() as (_, channel):
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        answers = list(stream(iter([b"\xff\xff", identity("good").SerializeToString()])))
        assert {answer.infer_response.id for answer in answers} == {"", "good"}
        assert any("not a valid ModelInferRequest" in answer.error_message for answer in answers)


def test_an_oversized_message_is_refused():
    with serving(max_message=1000) as (_, channel):
        request = identity()
        request.raw_input_contents[0] = bytes(2000)
        with pytest.raises(grpc.RpcError) as refused:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_beyond_the_bound_are_refused():
    with serving(hold=True, max_concurrent_rpcs=1) as (front_ends, channel):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        first = infer.future(identity("first"))
        wait_for_submit(front_ends)
        with pytest.raises(grpc.RpcError) as refused:
            infer(identity("second"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        _finish(front_ends)
        assert first.result(_PATIENCE_S).id == "first"


def _finish(front_ends: FrontEnds) -> None:
    async def run_all() -> None:
        for ticket in front_ends.plane.held:
            ticket.run()

    front_ends.run(run_all())


def test_drain_lets_calls_finish():
    with serving(hold=True) as (front_ends, channel):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        call = infer.future(identity("last"))
        wait_for_submit(front_ends)

        async def drain() -> None:
            asyncio.get_running_loop().call_soon(front_ends.plane.held[0].run)
            await front_ends.grpc.drain(_PATIENCE_S)

        front_ends.run(drain())
        assert call.result(_PATIENCE_S).id == "last"


def test_calls_that_do_not_exist_are_unimplemented():
    with serving() as (_, channel):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_named():
    with listen_on("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1"):
            await start_grpc(served_plane(), port=port)


def test_the_shipped_descriptors_are_those_of_the_proto_file(tmp_path: Path):
    folder = files("tessera_runtime.protocol")
    target = tmp_path / "oip.binpb"
    arguments = ["protoc", f"-I{folder}", f"--descriptor_set_out={target}", "oip.proto"]
    assert protoc.main(arguments) == 0
    assert target.read_bytes() == folder.joinpath("oip.binpb").read_bytes()


def test_field_numbers_and_types_are_those_of_the_public_protocol():
    """Every message here is a subset of the reference client's, on the same numbers."""

    def fields(described) -> dict[str, tuple[int, int, int]]:
        found = {f"{described.name}.{f.name}": (f.number, f.type, f.label) for f in described.field}
        for nested in described.nested_type:
            found |= {f"{described.name}.{name}": f for name, f in fields(nested).items()}
        return found

    def all_fields(*descriptors) -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        for descriptor in descriptors:
            described = descriptor_pb2.FileDescriptorProto()
            descriptor.CopyToProto(described)
            for one in described.message_type:
                found |= fields(one)
        return found

    ours = all_fields(messages.POOL.FindFileByName("oip.proto"))
    reference = all_fields(service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    assert len(ours) > 80
    assert ours.items() <= reference.items()
