"""All that is asked in one run: our services over both protocols, and the plain servers, each with its answers checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from bench.preprocess.photographs import photographs
from bench.preprocess.places import Places
from bench.preprocess.servers import Starting, plain, tessera
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
from bench.preprocess.transforms import IMAGE, decoded, decoded_at_full_size

from tessera_cli.loadgen import Target
from tessera_core.api.stages import STAGE
from tessera_runtime.preprocess.image import ImageStage

CONNECTIONS = 32
ONE_PROCESS, EACH_CORE = "one process", "one a core"
SEPARATE = "separate"
"""The members of the ensemble asked as services of their own."""
LIMITS = (IMAGES, DECODED, TENSORS)
"""The whole and its two parts, asked over both protocols."""
FULL, SCALED = "full", "scaled"
"""How the plain server decodes: paths of its requests."""

TOLERANCE = 1e-5
"""Of the network's outputs, which are about 0.1 large: batches of other sizes are 1e-6 off, the other decoder 1e-4."""

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Contestants:
    """What there is to ask."""

    ours: Mapping[tuple[str, Wire], Asked]
    """By service and protocol."""
    full_size: Mapping[str, Asked]
    """Services of a server that decodes JPEGs at full size, over HTTP."""
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
        each_core = [(core,) for core in places.server]
        others = stack.enter_context(plain(models, [places.server, *each_core], folder / "plain"))
        for server in (ours, full, others):
            server.wait()
        one, *each = others.ports
        found = Contestants(
            {
                (name, wire): _ours(ours, wire, name)
                for wire in Wire
                for name in (asked(places) if wire is Wire.HTTP else LIMITS)
            },
            {name: _ours(full, Wire.HTTP, name) for name in (IMAGES, SHARED)},
            {
                (processes, decoder): _plain(others.leader, ports, decoder)
                for processes, ports in ((ONE_PROCESS, [one]), (EACH_CORE, each))
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


def _ours(server: Starting, wire: Wire, name: str) -> Asked:
    media, (ports,) = photographs(), server.ports
    if name == TENSORS:
        stage = ImageStage(IMAGE)
        sent = [tensor_request(wire, _model(name), decoded(stage, each)) for each in media]
        return Asked((target(wire, ports, sent, CONNECTIONS),), server.leader)
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
        server.leader,
        parts=len(services),
    )


def _plain(leader: int, ports: list[Ports], decoder: str) -> Asked:
    requests = [plain_request(f"/{decoder}", each) for each in photographs()]
    return Asked(tuple(target(Wire.HTTP, each, requests, CONNECTIONS) for each in ports), leader)


def check(found: Contestants, models: Path) -> None:
    """Every one answers all photographs as the networks do in this process. Raises ServerFailed."""
    stage = ImageStage(IMAGE)
    scaled = np.stack([decoded(stage, each) for each in photographs()])
    full = np.stack([decoded_at_full_size(each) for each in photographs()])
    networks = {name: load(models, (name,)) for name in (NETWORK, *MEMBERS)}
    of_scaled, of_full = networks[NETWORK](scaled), networks[NETWORK](full)

    def right(name: str) -> list[Rows]:
        if name.startswith(DECODED):
            return [scaled[:, :, 0, 0]]
        if name == SEPARATE:
            return [networks[member](scaled) for member in MEMBERS]
        return [of_scaled]  # the ensemble too: the network is the mean of its three

    def of_plain(_: Target, body: bytes) -> Rows:
        return np.frombuffer(body, "<f4")[None]

    checked: list[tuple[str, Target, Callable[[Target, bytes], Rows], Rows]] = [
        *(
            (f"{name} over {wire.value}", each, output, rows)
            for (name, wire), asked in found.ours.items()
            for each, rows in zip(asked.targets, right(name), strict=True)
        ),
        *(
            (f"{name} at full size", each, output, of_full)
            for name, asked in found.full_size.items()
            for each in asked.targets
        ),
        *(
            (f"plain, {processes}, {decoder}", each, of_plain, rows)
            for (processes, decoder), asked in found.plain.items()
            for rows in (of_full if decoder == FULL else of_scaled,)
            for each in asked.targets
        ),
    ]
    bodies = answers([each for _, each, _, _ in checked])
    for (who, each, read, rows), of_it in zip(checked, bodies, strict=True):
        _close(who, [read(each, body)[0] for body in of_it], rows)


def _close(who: str, found: Sequence[Rows], right: Rows) -> None:
    off = float(np.abs(np.stack(found[: len(right)]) - right).max())
    if off > TOLERANCE:
        raise ServerFailed(f"{who}: an answer is {off:.3g} off, at most {TOLERANCE:g} is allowed")


def decodes(found: Contestants, name: str) -> float:
    """Images that the stages decode for each image that is asked for, by the server's own count."""
    asked = found.ours[name, Wire.HTTP]
    before = _decoded_rows(found.directory)
    images = sum(map(len, answers(asked.targets))) / asked.parts
    return (_decoded_rows(found.directory) - before) / images


def _decoded_rows(directory: Path) -> int:
    return sum(
        member.rows
        for service in report(directory).services
        for member in service.members
        if member.name == STAGE
    )
