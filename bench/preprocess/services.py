"""What the server under measurement runs: one network behind a stage, and the parts of that alone.

There is no planner: a bench fixes places and caps, so that figures of two days differ by the server alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from bench.models.networks import export
from bench.peers.base import BATCH_CAP
from bench.peers.tessera import service
from bench.preprocess.places import DECODING, INFERRING, SERVER, Places, pool
from bench.preprocess.transforms import IMAGE, ROW_SHAPE

from tessera_core.api.preprocess import Preprocess
from tessera_core.api.stages import STAGE, to_document
from tessera_runtime.target import PREPROCESS, InstanceTarget, MemberTarget, ServiceTarget

NETWORK = "fused"
"""Takes about as long as decoding a photograph: at such a balance overlap gains most."""
MEMBERS = ("cnn0", "cnn1", "cnn2")
"""Its three networks: an ensemble."""

IMAGES = "images"
"""Service: photographs to the network, decoded and inferred on cores of their own."""
TENSORS = "tensors"
"""Tensors to the network, on its cores."""
DECODED = "decoded"
"""Photographs to a member that does nothing, decoded on their cores."""
SHARED = "shared"
"""Photographs to the network, on all of the server's cores: the kernel shares them out."""
ONE_BY_ONE = "one-by-one"
"""As :data:`IMAGES` in batches of one."""
ENSEMBLE = "ensemble"
"""Photographs to the three networks; those of :data:`MEMBERS` have one each."""
NOTHING = Path(__file__).with_name("nothing.py")

SLO_MS = 60_000.0
"""Nothing is dropped: closed loops measure capacity."""


def pooled(count: int) -> str:
    """Service: as :data:`DECODED`, by so many processes."""
    return f"{DECODED}-{count}"


def services(models: Path, places: Places) -> tuple[ServiceTarget, ...]:
    """All that one server runs. Exports the networks and writes the stage's document into ``models``."""
    for name in (NETWORK, *MEMBERS):
        export(name, ROW_SHAPE, models)
    document = models / "stage.json"
    document.write_bytes(to_document(Preprocess(image=IMAGE)))
    network = models / f"{NETWORK}.pt2"
    members = [models / f"{name}.pt2" for name in MEMBERS]
    decoding = InstanceTarget(DECODING, len(places.decoding))
    inferring = InstanceTarget(INFERRING, len(places.inferring))
    everywhere = InstanceTarget(SERVER, len(places.server))

    def asked(
        name: str, *networks: Path, stage: InstanceTarget = decoding, cap: int = BATCH_CAP
    ) -> ServiceTarget:
        first = MemberTarget(
            name=STAGE,
            path=str(document),
            format=PREPROCESS,
            digest=document.name,
            max_batch=BATCH_CAP,
            cap=cap,
            instances=(stage,),
        )
        where = everywhere if stage is everywhere else inferring
        behind = _placed(name, networks, where, cap)
        return msgspec.structs.replace(behind, members=(*behind.members, first))

    return (
        asked(IMAGES, network),
        _placed(TENSORS, (network,), inferring, BATCH_CAP),
        asked(DECODED, NOTHING),
        asked(SHARED, network, stage=everywhere),
        asked(ONE_BY_ONE, network, cap=1),
        asked(ENSEMBLE, *members),
        *(asked(name, path) for name, path in zip(MEMBERS, members, strict=True)),
        *(
            asked(pooled(count), NOTHING, stage=InstanceTarget(pool(count), count))
            for count in places.pools
        ),
    )


def _placed(name: str, networks: Sequence[Path], where: InstanceTarget, cap: int) -> ServiceTarget:
    plain = service(f"bench.{name}", networks, SLO_MS)
    members = tuple(
        msgspec.structs.replace(each, cap=cap, instances=(where,)) for each in plain.members
    )
    return msgspec.structs.replace(plain, members=members)
