"""Servers as each other's peers, and what they count of it."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from support.front_ends import FrontEnds
from support.function_plane import Function, FunctionPlane, model
from support.model_files import WIDTH
from support.server import Server
from tessera_runtime.dataplane import InferCall
from tessera_runtime.target import PeerTarget


def address(server: Server) -> str:
    return f"127.0.0.1:{server.ports().grpc}"


def peers(*servers: Server, rate: float = 1000.0) -> tuple[PeerTarget, ...]:
    return tuple(PeerTarget(address(server), rate) for server in servers)


def counted(server: Server, metric: str, **labels: str) -> float:
    """The sum of a metric's samples that have ``labels``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports().metrics}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        )


def forwarded(server: Server, member: str) -> float:
    return counted(server, "tessera_forwarded_calls_total", member=member)


def calls_received(server: Server, member: str, code: int = 200) -> float:
    return counted(server, "tessera_received_calls_total", member=member, code=str(code))


class Played(FrontEnds):
    """A peer whose answers the test decides: the real front ends over a function, for one member.

    It takes and answers what :class:`support.model_files.ModelFile` does.
    """

    def __init__(self, service: str, member: str, function: Function, **options: object) -> None:
        inputs = [("x", "FP32", (-1, WIDTH))]
        outputs = [("y", "FP32", (-1, WIDTH))]
        models = [
            model(name, function, inputs, outputs) for name in (service, f"{service}/{member}")
        ]
        super().__init__(FunctionPlane.of(*models, **options))

    def target(self, rate: float = 1000.0) -> PeerTarget:
        return PeerTarget(self.grpc_url, rate)

    @property
    def calls(self) -> list[InferCall]:
        """What it was asked."""
        return list(self.plane.calls)
