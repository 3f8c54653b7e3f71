"""Faults of a real GPU: whoever faults loses its process, and everybody else is answered, and answered right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc
from support.server import Server, running_server, wait_until
from support.targets import member, service
from support.targets import server as target
from support.torch_nets import Mlp, export
from tessera_core.gpu.mps import MOST_CLIENTS
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.mps import PIPES, control
from tessera_runtime.target import DeviceTarget, ServiceTarget

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is no installed package

from bench.dataplane.mps import servers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

KNOWN, OUTSIDE = 3, 10**6
"""Rows of a table that there are, and that there are not: to read there is an assertion on the device."""


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.rows = nn.Embedding(KNOWN, 4)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.rows(index).sum(1)


@dataclass
class Served:
    """``faulting`` looks up a table, ``mate`` is a network; of one namespace they share a process, or an MPS server."""

    server: Server
    crowd: Crowd
    faulting: str
    mate: str

    def right(self, count: int) -> None:
        """The mate answers ``count`` requests, and right."""
        net = Mlp().eval()
        for seed in range(count):
            x = np.random.default_rng(seed).standard_normal((2, 6), dtype=np.float32)
            with torch.inference_mode():
                expected = net(torch.from_numpy(x)).numpy()
            found = self.crowd.ask(self.mate, x).result()
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def look_up(self, index: int) -> np.ndarray:
        x = np.full((1, 2), index, np.int64)
        return infer_grpc(self.crowd.client, self.faulting, x, "index").as_numpy("output_0")


def on_gpu(folder: Path, *, apart: bool) -> tuple[ServiceTarget, ServiceTarget]:
    table = export(Table(), folder / "table.pt2", (torch.zeros(2, 2, dtype=torch.int64),))
    mlp = export(Mlp(), folder / "mlp.pt2", (torch.zeros(2, 6),))
    settings = {"instances": {"gpu-0": 2}, "format": "TorchExport", "allow_code": False}
    faulting = service("faulting", member("a", table, **settings))
    mate = service("mate", member("a", mlp, **settings))
    return faulting, msgspec.structs.replace(mate, name="other.mate") if apart else mate


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """By parameter: two namespaces or one; and whether under MPS."""
    apart, under_mps = request.param
    if under_mps and not control():
        pytest.skip("nvidia-cuda-mps-control is not installed")
    services = on_gpu(tmp_path, apart=apart)
    device = DeviceTarget(
        "gpu-0",
        "cuda",
        environment={"CUDA_VISIBLE_DEVICES": inventory().gpus[0].uuid},
        mps_clients=MOST_CLIENTS if under_mps else 0,
    )
    with running_server(tmp_path / "run", "--preload=torch") as server:
        server.apply(target(*services, devices=(device,)))
        crowd = Crowd(server.ports().grpc)
        yield Served(server, crowd, *(each.name for each in services))
        crowd.close()


def is_served(served: Served) -> None:
    served.server.wait_served()
    served.right(5)
    assert served.look_up(KNOWN - 1).shape == (1, 4)


CASES = pytest.mark.parametrize(
    "served",
    [(False, False), (True, False)],
    indirect=True,
    ids=["in one process", "in processes of their own"],
)


@CASES
def test_a_fault_fails_its_own_request_and_nobody_elses(served: Served):
    is_served(served)
    before = served.server.worker_pids()
    mates = [served.crowd.submit(served.right, 50) for _ in range(4)]
    with pytest.raises(InferenceServerException, match="INTERNAL"):
        served.look_up(OUTSIDE)
    for mate in mates:
        mate.result()
    is_served(served)
    assert before - served.server.worker_pids(), "the process that faulted is gone"


def daemons(server: Server) -> tuple[Path, ...]:
    """Where the pipes of MPS daemons are that have a server, and so clients."""
    found = (server.run_dir / "mps").resolve().glob("*/pipes")
    return tuple(each for each in found if servers({PIPES: str(each)}))


UNDER_MPS = pytest.mark.parametrize(
    "served",
    [(False, True), (True, True)],
    indirect=True,
    ids=["one namespace", "two namespaces"],
)


@UNDER_MPS
def test_each_instance_is_a_client_of_the_daemon_of_its_namespace(served: Served):
    is_served(served)
    namespaces = {each.partition(".")[0] for each in (served.faulting, served.mate)}
    assert len(daemons(served.server)) == len(namespaces)
    assert len(served.server.worker_pids()) == 4
    served.server.apply(target())
    wait_until(lambda: not daemons(served.server), "the end of all daemons")


@UNDER_MPS
def test_after_a_fault_under_mps_everybody_is_served_again(served: Served):
    """NVIDIA's server ends all of its clients on that GPU: others may lose a request, none is answered wrong."""
    is_served(served)
    lost: list[str] = []

    def ask() -> None:
        for _ in range(50):
            try:
                served.right(1)
            except InferenceServerException as error:
                lost.append(str(error))

    mates = [served.crowd.submit(ask) for _ in range(4)]
    with pytest.raises(InferenceServerException, match="INTERNAL"):
        served.look_up(OUTSIDE)
    for mate in mates:
        mate.result()
    print(f"{len(lost)} of 200 requests beside the fault were lost: {set(lost)}")
    assert all("INTERNAL" in each or "UNAVAILABLE" in each for each in lost)
    is_served(served)
