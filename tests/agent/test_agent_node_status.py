"""What a node says of itself, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera_core.api import (
    ClusterMeta,
    ModelService,
    RuntimeNode,
    RuntimeNodeSpec,
    RuntimeNodeStatus,
)
from tessera_core.api.measurements import ProfileResult
from tessera_core.api.records import record
from tessera_core.api.runtimenode import (
    Correction,
    Health,
    InstanceStatus,
    MigMode,
    ServedService,
    SliceStatus,
)
from tessera_core.gpu.geometry import Placement
from tessera_runtime.agent.node_status import (
    COUNTERS_S,
    LEAST_COUNTERS_S,
    Facts,
    Phase,
    counters_s,
    due,
    node_status,
)
from tessera_runtime.agent.steering import Corrected
from tessera_runtime.devices.health import Verdict
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.devices.mig import MigSlice
from tessera_runtime.target import (
    InstanceReport,
    MemberReport,
    Ports,
    ServerReport,
    ServiceReport,
)

NOW, LATER = "2026-01-31T12:00:00Z", "2026-01-31T12:01:00Z"
GPU = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 81559, 132, mig_enabled=False)
SEEN = Inventory((0, 1), 4096, (GPU,))


def service(name: str = "vision.digits", **fields: object) -> ServiceReport:
    values = {
        "version": "3", "ready": True, "slo_ms": 50.0, "good": 9, "total": 10, "arrivals_rows": 10,
        "codes": {}, "latency_buckets": (1, 9), "members": (),
    }  # fmt: skip
    return ServiceReport(name, **(values | fields))  # type: ignore[arg-type]


def instance(**fields: object) -> InstanceReport:
    values = {"wanted": 2, "exist": 2, "ready": 1, "cap": 8, "memory_mib": 10.4}
    place = ("vision.digits", "cnn", "cpu/cpu-1@1")
    return InstanceReport(*place, **(values | fields))  # type: ignore[arg-type]


def facts(*services: ServiceReport, instances: tuple[InstanceReport, ...] = (), **more) -> Facts:
    report = ServerReport(3, True, services, (), 0, 0, 0.0, 0.0, Ports(), instances)
    values = {"phase": Phase.SERVING, "report": report, "accepted": ("Accepted", "")}
    return Facts("pod", "10.0.0.1", SEEN, **(values | more))


def status(given: Facts, now: str = NOW, before: RuntimeNodeStatus | None = None):
    return node_status(given, before.conditions if before is not None else (), now)


CORRECTED = (
    Corrected("vision.digits", "cnn", ("cpu", "cpu-1"), 1.23456, 1.56789),
    Corrected("vision.other", "cnn", ("cpu", "cpu-1"), 2.0),
)


def test_what_batches_take_here_over_what_was_measured_is_told_with_the_counters() -> None:
    before, found = status(facts(service())), status(facts(service(), corrections=CORRECTED))
    [served] = found.services
    assert served.corrections == (Correction("cnn", "cpu", "cpu-1", 1.235, 1.568),)
    assert not due(before, found, since_s=COUNTERS_S / 2)
    assert due(before, found, since_s=COUNTERS_S)


def ready(found: RuntimeNodeStatus) -> tuple[str, str, str | None]:
    [condition] = [each for each in found.conditions if each.type == "Ready"]
    return condition.status.value, condition.reason, condition.last_transition_time


@pytest.mark.parametrize("phase", list(Phase))
def test_a_node_is_ready_only_while_it_serves(phase: Phase) -> None:
    found = status(facts(phase=phase))
    assert ready(found) == ("True" if phase is Phase.SERVING else "False", phase.value, NOW)


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    first = status(facts())
    assert ready(status(facts(), LATER, first))[2] == NOW
    assert ready(status(facts(phase=Phase.DRAINING), LATER, first))[2] == LATER


def test_devices_are_as_they_were_seen_with_what_runs_on_them() -> None:
    lost = Verdict(Health.UNHEALTHY, "is lost: GPU is lost")
    found = status(facts(instances=(instance(),), verdicts={"GPU-1": lost}))
    cpu, gpu = found.devices
    assert (cpu.uuid, cpu.product, cpu.memory_mib, cpu.health.value) == (
        "cpu",
        "cpu",
        4096,
        "Healthy",
    )
    assert cpu.instances == (
        InstanceStatus("vision.digits", "cnn", "cpu-1@1", 8, count=2, ready=1, memory_mib=10),
    )
    assert (gpu.product, gpu.mig_capable, gpu.health.value, gpu.problem) == (
        "NVIDIA-H100-80GB-HBM3",
        True,
        "Unhealthy",
        "is lost: GPU is lost",
    )
    assert (gpu.index, cpu.index) == (GPU.index, None)
    assert found.cpu is not None
    assert found.cpu.cores == 2


def test_what_is_found_of_a_gpu_is_written_at_once() -> None:
    well = status(facts())
    assert well.devices[1].health is Health.HEALTHY
    for verdict in (
        Verdict(Health.UNHEALTHY, "Xid 95"),
        Verdict(Health.UNKNOWN),
        Verdict(problem="told"),
    ):
        other = status(facts(verdicts={"GPU-1": verdict}))
        assert due(well, other, since_s=0.0)
        assert due(other, well, since_s=0.0)
        assert not due(other, other, since_s=COUNTERS_S)


def test_a_gpu_that_is_cut_is_told_with_its_slices_and_what_runs_on_each() -> None:
    slices = (
        MigSlice("MIG-a", Placement("1g.10gb", 0), 16, 9984, jpeg_engines=0),
        MigSlice("MIG-b", Placement("3g.40gb", 4), 60, 40448, jpeg_engines=3),
    )
    gpu = replace(GPU, mig_enabled=True, jpeg_engines=7, slices=slices)
    seen = replace(SEEN, gpus=(gpu,))
    on = InstanceReport("vision.digits", "cnn", "GPU-1/3g.40gb@4", 2, 2, 1, 8, 10.4)
    found = status(replace(facts(instances=(on,)), seen=seen))
    _, gpu = found.devices
    assert (gpu.mig_capable, gpu.mig_mode) == (True, MigMode.ENABLED)
    assert gpu.slices == (
        SliceStatus("MIG-a", "1g.10gb", 0, jpeg_engines=0),
        SliceStatus("MIG-b", "3g.40gb", 4, jpeg_engines=3),
    )
    assert gpu.jpeg_engines == 7
    assert gpu.instances == (
        InstanceStatus("vision.digits", "cnn", "3g.40gb@4", 8, count=2, ready=1, memory_mib=10),
    )
    whole = RuntimeNode(ClusterMeta("n"), RuntimeNodeSpec(1), found)
    assert RuntimeNode.from_dict(whole.to_dict()).status == found
    fewer = replace(seen, gpus=(replace(seen.gpus[0], slices=slices[:1]),))
    gone = status(replace(facts(instances=(on,)), seen=fewer))
    assert [each.ready for each in gone.devices[1].instances] == [0], "its slice is not there"
    assert due(found, gone, since_s=0.0)


def test_a_node_whose_gpus_are_emulated_says_so() -> None:
    emulated = [
        each for each in status(facts(gpus_on_cores=True)).conditions if each.type == "Emulated"
    ]
    assert [(each.status.value, each.reason) for each in emulated] == [("True", "GpusOnCores")]
    assert {each.type for each in status(facts()).conditions} == {"Ready", "SpecAccepted"}


def test_a_node_says_where_instances_do_without_mps() -> None:
    report = ServerReport(3, True, (), (), 0, 0, 0.0, 0.0, Ports(), mps_problem="GPU-1 for a: why")
    failing = facts(report=report)
    [condition] = [each for each in status(failing).conditions if each.type == "MpsRuns"]
    assert (condition.status.value, condition.reason) == ("False", "DaemonFailed")
    assert condition.message == "instances share one process instead: GPU-1 for a: why"


def test_instances_that_leave_are_counted_until_they_are_gone() -> None:
    leaving = status(facts(instances=(instance(wanted=0, exist=3, ready=3),)))
    assert [(each.count, each.ready) for each in leaving.devices[0].instances] == [(3, 3)]
    smaller = status(facts(instances=(instance(wanted=1, exist=3, ready=3),)))
    assert [(each.count, each.ready) for each in smaller.devices[0].instances] == [(1, 1)]


def test_an_activator_has_no_devices() -> None:
    found = status(replace(facts(), seen=None))
    assert (found.devices, found.cpu) == ((), None)


def test_nothing_is_ready_while_the_server_is_silent_and_counters_stay() -> None:
    found = status(facts(service(), instances=(instance(),), phase=Phase.SERVER_UNREACHABLE))
    [served] = found.services
    assert (served.ready, served.total) == (False, 10)
    assert [each.ready for each in found.devices[0].instances] == [0]
    assert status(facts(service(), phase=Phase.DRAINING)).services[0].ready, "it still answers"


def test_a_service_has_the_most_telling_problem() -> None:
    member = MemberReport("cnn", "", 1, 0, 8, 0, 0, 0, 0.0, "", 0, "it does not load")
    broken = service(ready=False, members=(member,))
    assert status(facts(broken)).services[0].problem == "cnn: it does not load"
    told = facts(broken, problems={"vision.digits": "cnn: no such file", "vision.new": "x" * 2000})
    digits, new = status(told).services
    assert digits.problem == "cnn: no such file"
    assert (new.name, new.generation, len(new.problem)) == ("vision.new", 0, 1024)


def test_services_that_are_wanted_are_there_before_the_server_knows_them() -> None:
    wanted = ServedService("vision.new", 4, None)  # type: ignore[arg-type]
    node = RuntimeNode(ClusterMeta("n"), RuntimeNodeSpec(1, services=(wanted,)))
    found = status(facts(service(), node=node))
    assert [(each.name, each.generation) for each in found.services] == [
        ("vision.digits", 3),
        ("vision.new", 0),
    ]


BASE = facts(service(), instances=(instance(),))


@pytest.mark.parametrize(
    ("changed", "at_once", "in_time"),
    [
        (BASE, False, False),
        (facts(service(total=11, good=10), instances=(instance(),)), False, True),
        (facts(service(), instances=(instance(memory_mib=99.0),)), False, True),
        (facts(service(), instances=(instance(ready=2),)), True, True),
        (facts(service(), instances=(instance(cap=4),)), True, True),
        (facts(service(ready=False), instances=(instance(),)), True, True),
        (facts(service(version="4"), instances=(instance(),)), True, True),
        (facts(service(held=1), instances=(instance(),)), True, True),
        (replace(BASE, phase=Phase.DRAINING), True, True),
        (replace(BASE, generation=9), True, True),
        (replace(BASE, accepted=("EpochTooSmall", "…")), True, True),
        (replace(BASE, verdicts={"GPU-1": Verdict(Health.UNHEALTHY)}), True, True),
        (replace(BASE, profiles=(ProfileResult("vision.digits", "cnn"),)), True, True),
        (replace(BASE, problems={"vision.digits": "p"}), True, True),
    ],
)  # fmt: skip
def test_a_status_is_written_at_once_when_somebody_acts_on_it_and_counters_in_time(
    changed: Facts, at_once: bool, in_time: bool
) -> None:
    written = status(BASE)
    now = status(changed, LATER, written)
    assert due(written, now, since_s=0.0) is at_once
    assert due(written, now, since_s=COUNTERS_S) is in_time


def test_more_held_requests_are_only_counted() -> None:
    one, two = (status(facts(service(held=n))) for n in (1, 2))
    assert not due(one, two, since_s=0.0)
    assert due(two, status(facts(service())), since_s=0.0)


def served(least: int, idle: str) -> ServedService:
    document = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "digits", "namespace": "vision"},
        "spec": {
            "members": [{"name": "cnn", "model": {"uri": "hf://org/cnn", "format": "ONNX"}}],
            "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
            "scaling": {"minReplicas": least, "idleTimeout": idle},
        },
    }
    return ServedService("vision.digits", 1, ModelService.from_dict(document).spec)


@pytest.mark.parametrize(
    ("services", "seconds"),
    [
        ((), COUNTERS_S),
        ((served(1, "9s"),), COUNTERS_S),
        ((served(0, "15m"),), COUNTERS_S),
        ((served(0, "15m"), served(0, "9s")), 3.0),
        ((served(0, "1s"),), LEAST_COUNTERS_S),
    ],
)
def test_counters_of_what_may_sleep_are_told_before_it_is_put_to_sleep(
    services: tuple[ServedService, ...], seconds: float
) -> None:
    node = RuntimeNode(ClusterMeta(name="n"), RuntimeNodeSpec(epoch=1, services=services))
    assert counters_s(node) == seconds
    counted = status(facts(service(total=11), instances=(instance(),)))
    assert not due(status(BASE), counted, seconds - 0.1, counters_s(node))
    assert due(status(BASE), counted, seconds, counters_s(node))


def test_counters_are_told_in_time_before_there_is_a_spec() -> None:
    assert counters_s(None) == COUNTERS_S


def test_the_first_status_is_written_and_one_that_is_there_already_is_not() -> None:
    now = status(BASE)
    assert due(None, now, since_s=0.0)
    document = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n"},
        "spec": {"epoch": 0},
        "status": record(RuntimeNodeStatus).encode(now),
    }
    assert not due(RuntimeNode.from_dict(document).status, now, since_s=COUNTERS_S)
