"""Which profiling task comes next, and what is said of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest

from tessera_core.api import ClusterMeta, Device, Instance, RuntimeNode, RuntimeNodeSpec
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.runtimenode import RuntimeNodeStatus
from tessera_core.gpu.devices import DeviceClass
from tessera_core.gpu.geometry import Placement
from tessera_runtime.agent.kept import Kept, Measured, read_kept, write_kept
from tessera_runtime.agent.profiling import (
    decoded,
    measured_result,
    next_job,
    results,
    still_asked,
)
from tessera_runtime.agent.translate import LocalModel, ModelSource, Site
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.devices.mig import MigSlice
from tessera_runtime.target import ProfileCell, ProfileReport

DIGEST = "sha256:" + "cd" * 32
GPU = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 81559, 132, mig_enabled=False)
SLICES = (
    MigSlice("MIG-a", Placement("1g.10gb", 0), 15, 9856),
    MigSlice("MIG-b", Placement("1g.10gb", 6), 15, 9856),
)
"""With other SMs and memory than the table has, as another driver may tell."""
CUT = replace(GPU, index=1, uuid="GPU-2", mig_enabled=True, slices=SLICES)
SEEN = Inventory((0, 1, 2, 3), 4096, (GPU, CUT), driver="580.1")
SITE = Site(SEEN, allow_code=False)
REPORT = ProfileReport("onnxruntime-1.0", (ProfileCell(1, 1, 2.0, 1.9, 500.0, 3.0),), 8)
"""The p99 is below the p50 by the rounding of few runs."""


def task(device: str = "cpu", piece: str = "cpu-1@0", member: str = "m") -> ProfilingTask:
    return ProfilingTask("a.a", member, device, piece)


def node(*tasks: ProfilingTask, busy: tuple[str, ...] = ()) -> RuntimeNode:
    model = {"uri": "https://m/m.onnx", "format": "ONNX"}
    version = {
        "name": "a.a",
        "generation": 1,
        "spec": {
            "members": [{"name": "m", "model": model}],
            "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
        },
    }
    document = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n"},
        "spec": {"epoch": 1, "candidates": [version]},
    }
    found = RuntimeNode.from_dict(document)
    instances = tuple(Instance("a.b", "m", piece, 8) for piece in busy)
    devices = (Device("cpu", instances=instances),)
    return replace(found, spec=replace(found.spec, profiling=tasks, devices=devices))


def here(source: ModelSource) -> LocalModel:
    return LocalModel("/m", DIGEST)


def nowhere(source: ModelSource) -> None:
    return None


def job(wanted: RuntimeNode, measured: tuple[Measured, ...] = ()):
    return next_job(wanted, measured, here, SITE)


def said(wanted: RuntimeNode, measured: tuple[Measured, ...] = (), found=here, problem: str = ""):
    return results(wanted, measured, found, lambda _: problem, SITE)


def test_tasks_come_in_order_and_not_again() -> None:
    wanted = node(task(), task("GPU-1", "full"))
    first = job(wanted)
    assert (first.task, str(first.place), first.request.instances) == (task(), "cpu-1", (1,))
    assert first.request.device.cores == (0,)
    done = measured_result(first, REPORT, "", SEEN.driver)
    second = job(wanted, (done,))
    assert second.task == task("GPU-1", "full")
    assert second.request.instances == (1, 2, 4)
    both = (done, measured_result(second, None, "it failed", SEEN.driver))
    assert job(wanted, both) is None


def test_a_slice_without_instances_is_measured_first() -> None:
    wanted = node(task(piece="cpu-2@1"), task(piece="cpu-1@3"), busy=("cpu-1@2", "cpu-1@0"))
    assert job(wanted).task == task(piece="cpu-1@3")
    alone = node(task(piece="cpu-2@1"), busy=("cpu-1@2",))
    assert job(alone).task == task(piece="cpu-2@1")


def test_a_slice_is_measured_as_what_its_driver_says_that_it_is() -> None:
    found = job(node(task("GPU-2", "1g.10gb@6")))
    assert found.place == DeviceClass("NVIDIA-H100-80GB-HBM3", "1g.10gb", 15, 9856)
    assert found.request.device.environment == {"CUDA_VISIBLE_DEVICES": "MIG-b"}
    assert found.request.instances == (1, 2, 4)


def test_of_the_slices_of_a_gpu_one_without_instances_is_measured_first() -> None:
    wanted = node(task("GPU-2", "1g.10gb@0"), task("GPU-2", "1g.10gb@6"))
    devices = (Device("GPU-2", instances=(Instance("a.b", "m", "1g.10gb@0", 8),)),)
    wanted = replace(wanted, spec=replace(wanted.spec, devices=devices))
    assert job(wanted).task == task("GPU-2", "1g.10gb@6")


def test_what_is_measured_of_emulated_gpus_says_so() -> None:
    site = replace(SITE, gpus_on_cores=True)
    found = next_job(node(task("GPU-2", "1g.10gb@0")), (), here, site)
    assert found is not None
    assert (found.request.device.kind, found.request.instances) == ("cpu", (1, 2, 4))
    result = decoded(measured_result(found, REPORT, "", site.driver).result)
    assert result is not None
    assert result.driver == "none: GPUs emulated on cores"


def test_a_task_waits_for_its_model() -> None:
    wanted = node(task())
    assert next_job(wanted, (), nowhere, SITE) is None
    assert said(wanted, found=nowhere) == ()
    [failed] = said(wanted, found=nowhere, problem="no such file")
    assert (failed.problem, failed.model_digest) == ("no such file", None)
    [fetched] = said(wanted)
    assert (fetched.model_digest, str(fetched.device_class)) == (DIGEST, "cpu-1")
    assert (fetched.rows, fetched.problem) == ((), "")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (task(piece="cpu-9@0"), "this node has 4 cores"),
        (task("GPU-1", "1g.10gb@0"), "not cut yet"),
        (task("GPU-3", "full"), "no such device"),
        (task(member="other"), "spec.candidates"),
    ],
)
def test_a_task_that_cannot_be_done_is_said(asked: ProfilingTask, words: str) -> None:
    wanted = node(asked)
    assert job(wanted) is None
    [result] = said(wanted)
    assert words in result.problem


def test_a_result_is_what_was_measured_and_valid() -> None:
    wanted = node(task("GPU-1", "full"), task())
    for each, driver in ((job(wanted), "580.1"), (job(node(task())), None)):
        result = decoded(measured_result(each, REPORT, "", SEEN.driver).result)
        assert result is not None
        assert (result.engine, result.driver, result.problem) == ("onnxruntime-1.0", driver, "")
        assert [(row.batch, row.p50_ms, row.p99_ms) for row in result.rows] == [(1, 2.0, 2.0)]
        status = RuntimeNodeStatus(profiles=(result,))
        whole = RuntimeNode(ClusterMeta("n"), RuntimeNodeSpec(1), status)
        assert RuntimeNode.from_dict(whole.to_dict()).status.profiles == (result,)


PINNED: tuple[tuple[Mapping[str, str], bool], ...] = (
    ({}, True),
    ({"digest": DIGEST}, True),
    ({"digest": "sha256:" + "00" * 32}, False),
    ({"uri": "https://m/other.onnx"}, False),
    ({"secretRef": "other"}, False),
)


@pytest.mark.parametrize(("change", "kept"), PINNED)
def test_a_result_is_kept_for_the_very_model_that_is_asked_for(
    change: Mapping[str, str], kept: bool
) -> None:
    measured = measured_result(job(node(task())), REPORT, "", "")
    document = node(task()).to_dict()
    model = document["spec"]["candidates"][0]["spec"]["members"][0]["model"]
    model |= change if "secretRef" not in change else {"secretRef": {"name": "other"}}
    asked = still_asked(RuntimeNode.from_dict(document), (measured,))
    assert asked == ((measured,) if kept else ())


def test_a_result_of_another_version_is_measured_again() -> None:
    measured = measured_result(job(node(task())), REPORT, "", "")
    strange = msgspec.structs.replace(measured, result={"service": 5})
    assert still_asked(node(task()), (strange,)) == ()


def test_a_result_goes_with_its_task() -> None:
    measured = measured_result(job(node(task())), REPORT, "", "")
    assert still_asked(node(task(piece="cpu-2@0")), (measured,)) == ()


def test_what_is_kept_is_found_again_and_damage_costs_only_that(tmp_path) -> None:
    measured = measured_result(job(node(task())), REPORT, "", "")
    kept = Kept(epoch=3, generation=7, measured=(measured,))
    write_kept(tmp_path / "state", kept)
    assert read_kept(tmp_path / "state") == kept
    [file] = (tmp_path / "state").iterdir()
    assert b"https" not in file.read_bytes(), "a URI may carry a signature"
    file.write_bytes(msgspec.json.encode(kept)[:-5])
    assert read_kept(tmp_path / "state") == Kept()
    assert read_kept(tmp_path / "nowhere") == Kept()
