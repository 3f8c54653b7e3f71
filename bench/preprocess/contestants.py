"""All that is asked in one run: our services over both protocols, and the plain servers, each with its answers checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench.dataplane.running import ServerFailed
from bench.models.served import load
from bench.peers.base import Ports, Wire
from bench.peers.tessera import report
from bench.preprocess.asking import (
    Asked,
    answers,
    image_request,
    output,
    plain_request,
    target,
    tensor_request,
)
from bench.preprocess.photographs import (
    IMAGE,
    decoded,
    decoded_at_full_size,
    photographs,
)
from bench.preprocess.places import Places
from bench.preprocess.servers import plain, tessera
from bench.preprocess.services import (
    DECODED,
    ENSEMBLE,
    IMAGES,
    MEMBERS,
    NETWORK,
    ONE_BY_ONE,
    SHARED,
    TENSORS,
    pooled,
    services,
)

from tessera_core.api.stages import STAGE
from tessera_runtime.preprocess.image import ImageStage

CONNECTIONS = 32
ONE_PROCESS, EACH_CORE = "one process", "a process for each core"
SEPARATE = "separate"
"""The members of the ensemble asked as services of their own."""
LIMITS = (IMAGES, DECODED, TENSORS)
"""The whole and its two parts, asked over both protocols."""
FULL, SCALED = "full", "scaled"
"""How the plain server decodes: paths of its requests."""

TOLERANCE = 0.02
"""Of the network's outputs, which are about 0.1 large: another decoder of libjpeg, another batch."""

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Contestants:
    """What there is to ask."""

    ours: Mapping[tuple[str, Wire], Asked]
    """By service and protocol."""
    full_size: Mapping[tuple[str, Wire], Asked]
    """The same of a server that decodes JPEGs at full size."""
    plain: Mapping[tuple[str, str], Asked]
    """By processes and decoder."""
    directory: Path
    """Of our server."""


@contextmanager
def contestants(places: Places, folder: Path) -> Iterator[Contestants]:
    """All servers, ready and checked. Raises ServerFailed, and LoadFailed where one refuses."""
    models = folder / "models"
    models.mkdir()
    served = services(models, places)
    at_full_size = [each for each in served if each.name in (_model(IMAGES), _model(SHARED))]
    with ExitStack() as stack:
        ours = stack.enter_context(tessera(served, places, folder / "tessera"))
        full = stack.enter_context(tessera(at_full_size, places, folder / "full-size", True))
        one = stack.enter_context(plain(models, places.server, folder / "plain"))
        each = [
            stack.enter_context(plain(models, (core,), folder / f"plain-{core}"))
            for core in places.server
        ]
        for server in (ours, full, one, *each):
            server.wait()
        found = Contestants(
            {
                (name, wire): _ours(ours.ports, wire, name)
                for wire in Wire
                for name in (asked(places) if wire is Wire.HTTP else LIMITS)
            },
            {(name, Wire.HTTP): _ours(full.ports, Wire.HTTP, name) for name in (IMAGES, SHARED)},
            {
                (processes, decoder): _plain([server.ports for server in servers], decoder)
                for processes, servers in ((ONE_PROCESS, [one]), (EACH_CORE, each))
                for decoder in (FULL, SCALED)
            },
            ours.directory,
        )
        check(found, models)
        yield found


def asked(places: Places) -> tuple[str, ...]:
    """Names of all that is asked of our server."""
    pools = (pooled(count) for count in places.pools)
    return (*LIMITS, SHARED, ONE_BY_ONE, ENSEMBLE, SEPARATE, *pools)


def _model(service: str) -> str:
    return f"bench.{service}"


def _ours(ports: Ports, wire: Wire, name: str) -> Asked:
    media = photographs()
    if name == TENSORS:
        stage = ImageStage(IMAGE)
        sent = [tensor_request(wire, _model(name), decoded(stage, each)) for each in media]
        return Asked((target(wire, ports, sent, CONNECTIONS),))
    services = MEMBERS if name == SEPARATE else (name,)
    return Asked(
        tuple(
            target(
                wire,
                ports,
                [image_request(wire, _model(service), each) for each in media],
                CONNECTIONS,
            )
            for service in services
        ),
        parts=len(services),
    )


def _plain(ports: list[Ports], decoder: str) -> Asked:
    requests = [plain_request(f"/{decoder}", each) for each in photographs()]
    return Asked(tuple(target(Wire.HTTP, each, requests, CONNECTIONS) for each in ports))


def check(found: Contestants, models: Path) -> None:
    """Every one answers all photographs as the networks do in this process. Raises ServerFailed."""
    stage = ImageStage(IMAGE)
    scaled = np.stack([decoded(stage, each) for each in photographs()])
    full = np.stack([decoded_at_full_size(each) for each in photographs()])
    networks = {name: load(models, (name,)) for name in (NETWORK, *MEMBERS)}
    of_scaled, of_full = networks[NETWORK](scaled), networks[NETWORK](full)
    for (name, wire), asked in found.ours.items():
        if name.startswith(DECODED):
            right = [scaled[:, :, 0, 0]]
        elif name == SEPARATE:
            right = [networks[member](scaled) for member in MEMBERS]
        else:  # the ensemble too: the network is the mean of its three
            right = [of_scaled]
        for each, rows in zip(asked.targets, right, strict=True):
            outputs = [output(each, body)[0] for body in answers(each)]
            _close(f"{name} over {wire.value}", outputs, rows)
    for (name, _), asked in found.full_size.items():
        (each,) = asked.targets
        outputs = [output(each, body)[0] for body in answers(each)]
        _close(f"{name} at full size", outputs, of_full)
    for (processes, decoder), asked in found.plain.items():
        for each in asked.targets:
            outputs = [np.frombuffer(body, "<f4") for body in answers(each)]
            rows = of_full if decoder == FULL else of_scaled
            _close(f"plain server, {processes}, {decoder}", outputs, rows)


def _close(who: str, found: Sequence[Rows], right: Rows) -> None:
    off = float(np.abs(np.stack(found) - right).max())
    if off > TOLERANCE:
        raise ServerFailed(f"{who}: an answer is {off:.3g} off, {TOLERANCE:g} are allowed")


def decodes(found: Contestants, name: str) -> float:
    """Images that the stages decode for each image that is asked for, by the server's own count."""
    asked = found.ours[name, Wire.HTTP]
    before = _decoded_rows(found.directory)
    for each in asked.targets:
        answers(each)
    return (_decoded_rows(found.directory) - before) / len(photographs())


def _decoded_rows(directory: Path) -> int:
    return sum(
        member.rows
        for service in report(directory).services
        for member in service.members
        if member.name == STAGE
    )
