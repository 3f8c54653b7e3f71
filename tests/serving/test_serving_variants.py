"""Variants of models on the real server: tuned on request, swapped in, cancelled, refused."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.server import Server, children, running_server, wait_until
from support.targets import member, service
from support.targets import server as server_target
from support.torch_nets import Mlp, export
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import DeviceTarget, TuneOutcome, TuneRequest

SHARE = DeviceTarget("cpu-0", "cpu", cores=(), threads=1)
HALF = DeviceTarget("cpu-1", "cpu", cores=(), threads=1)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With torch there before a worker is: each of these tests starts many."""
    with running_server(tmp_path_factory.mktemp("variants") / "run", "--preload=torch") as server:
        yield server


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Mlp(), tmp_path_factory.mktemp("tuned") / "mlp.pt2", (torch.zeros(2, 6),))


def tuning(mlp: Path, variant: str, *, tolerance: float = 1e-2, **settings) -> TuneRequest:
    values = {
        "member": member("mlp", mlp, format="TorchExport", allow_code=False),
        "inputs": (),
        "outputs": (),
        "variant": variant,
        "tolerance": tolerance,
        "devices": (SHARE,),
        "batches": (1, 8),
        "cell_s": 0.02,
        "rounds": 2,
        "build_limit_s": 300.0,
        "hang_s": 30.0,
    }
    return TuneRequest(**(values | settings))


async def ask(server: Server, request: TuneRequest) -> TuneOutcome:
    client = ControlClient(str(control_path(server.run_dir)))
    try:
        return await client.tune(request, 300.0)
    finally:
        await client.close()


def tune(server: Server, *requests: TuneRequest) -> list[TuneOutcome]:
    """All at once."""

    async def every() -> list[TuneOutcome]:
        return await asyncio.gather(*(ask(server, request) for request in requests))

    server.ports()  # it answers from here on
    return asyncio.run(every())


def serve(server: Server, mlp: Path, variant: str, *, wait: bool = True) -> None:
    one = member("mlp", mlp, format="TorchExport", allow_code=False)
    place = one.instances[0]
    target = service(
        "tuned",
        type(one)(
            **{**fields(one), "instances": (type(place)(**{**fields(place), "variant": variant}),)}
        ),
    )
    server.apply(server_target(target), wait=wait)


def fields(struct) -> dict:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def answers(server: Server, rows: np.ndarray) -> np.ndarray:
    import tritonclient.http as http_client

    given = http_client.InferInput("x", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows)
    return server.http().infer("test.tuned", [given]).as_numpy("output_0")


def artefacts(server: Server) -> list[str]:
    return sorted(os.listdir(server.run_dir / "artefacts"))


def test_a_variant_is_measured_beside_the_untuned_model_on_every_share(server, mlp) -> None:
    (outcome,) = tune(server, tuning(mlp, "openvino/fp32", devices=(SHARE, HALF)))
    assert outcome.problem == ""
    assert outcome.engine.startswith("openvino-")
    assert outcome.key == ""
    assert 0 <= outcome.error < 1e-4
    assert [(cell.device, cell.batch) for cell in outcome.cells] == [(0, 1), (0, 8), (1, 1), (1, 8)]
    for cell in outcome.cells:
        assert 0 < cell.p50_ms <= cell.p99_ms
        assert 0 < cell.untuned_p50_ms <= cell.untuned_p99_ms
        assert cell.throughput > 0
        assert cell.untuned_throughput > 0


def test_answers_that_differ_too_much_are_not_measured(server, mlp) -> None:
    (outcome,) = tune(server, tuning(mlp, "torch/bf16", tolerance=1e-6))
    assert outcome.error > 1e-6
    assert outcome.cells == ()


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("tvm/fp32", "expected <backend>"),
        ("onnxruntime/fp32", "TorchExport is not run by it"),
        ("torch/fp16", "not on devices of kind cpu"),
    ],
)
def test_a_variant_that_cannot_run_is_an_outcome(server, mlp, variant, words) -> None:
    (outcome,) = tune(server, tuning(mlp, variant))
    assert words in outcome.problem
    assert outcome.error == -1
    assert outcome.cells == ()


def test_a_request_without_a_share_is_refused(server, mlp) -> None:
    with pytest.raises(ControlError, match="devices, batches: one or more of each"):
        tune(server, tuning(mlp, "torch/bf16", devices=()))


def test_several_are_tuned_at_once(server, mlp) -> None:
    wanted = ["torch/fp32/channels-last", "openvino/fp32", "openvino/bf16"]
    outcomes = tune(server, *(tuning(mlp, each) for each in wanted))
    assert [outcome.variant for outcome in outcomes] == wanted
    assert all(outcome.problem == "" and outcome.cells for outcome in outcomes)


def test_a_model_is_served_as_its_variant_says(server, mlp) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 6), dtype=np.float32)
    serve(server, mlp, "")
    untuned = answers(server, rows)
    for variant in ("torch/fp32/channels-last", "openvino/fp32", "openvino/bf16", ""):
        before = server.worker_pids()
        serve(server, mlp, variant)
        server.wait_for(
            lambda report, before=before: {w.pid for w in report.workers}.isdisjoint(before),
            "other processes to serve",
        )
        np.testing.assert_allclose(answers(server, rows), untuned, atol=2e-2)


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_compiled_is_kept_and_served(server, mlp) -> None:
    request = tuning(mlp, "inductor/fp32", devices=(SHARE, HALF))
    (first,) = tune(server, request)
    assert first.problem == ""
    assert first.error < 1e-4
    assert artefacts(server) == [first.key]
    path = server.run_dir / "artefacts" / first.key
    assert path.stat().st_mode & 0o777 == 0o400
    made = path.stat().st_ino
    (again,) = tune(server, request)
    assert again.key == first.key
    assert path.stat().st_ino == made
    assert again.build_s < first.build_s
    rows = np.random.default_rng(0).standard_normal((5, 6), dtype=np.float32)
    serve(server, mlp, "")
    untuned = answers(server, rows)
    before = server.worker_pids()
    serve(server, mlp, "inductor/fp32")
    server.wait_for(
        lambda report: {w.pid for w in report.workers}.isdisjoint(before), "other processes"
    )
    np.testing.assert_allclose(answers(server, rows), untuned, atol=1e-5)


def test_a_variant_that_was_not_built_is_told_and_the_old_instances_go_on(server, mlp) -> None:
    rows = np.ones((1, 6), dtype=np.float32)
    serve(server, mlp, "")
    untuned = answers(server, rows)
    serve(server, mlp, "inductor/bf16", wait=False)
    server.wait_for(
        lambda report: "was not built on this node" in report.services[0].members[0].problem,
        "the missing artefact to be told",
    )
    np.testing.assert_array_equal(answers(server, rows), untuned)
    serve(server, mlp, "")


@needs_compiler
def test_whoever_hangs_up_ends_the_build_and_leaves_nothing(server, mlp) -> None:
    server.ports()
    server.apply(server_target())
    zygote = server.zygote_pid
    wait_until(lambda: not children(zygote), "no workers")
    kept = artefacts(server)

    async def begin_and_leave() -> None:
        asked = asyncio.create_task(ask(server, tuning(mlp, "inductor/bf16/max-autotune")))
        await asyncio.to_thread(wait_until, lambda: children(zygote), "the builder")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(begin_and_leave())
    wait_until(lambda: not children(zygote), "the builder to be gone")
    assert artefacts(server) == kept
