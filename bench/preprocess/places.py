"""Which cores do what, so that limits and the whole are measured on the very same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera_runtime.target import DeviceTarget

DECODING, INFERRING, SERVER = "decoding", "inferring", "server"
"""Devices."""


@dataclass(frozen=True, slots=True)
class Places:
    """Cores of a machine by what they do. A plain server has all of ``server``."""

    load: tuple[int, ...]
    server: tuple[int, ...]
    dispatcher: tuple[int, ...]
    decoding: tuple[int, ...]
    inferring: tuple[int, ...]

    @property
    def devices(self) -> tuple[DeviceTarget, ...]:
        """For decoding, for inference, for both on all of the server's, and for pools of decoders of each size."""
        pooled = self.decoding + self.inferring
        return (
            _cores(DECODING, self.decoding),
            _cores(INFERRING, self.inferring),
            _cores(SERVER, self.server),
            *(_cores(pool(count), pooled[:count]) for count in self.pools),
        )

    @property
    def pools(self) -> range:
        """How many processes they have, each a core: up to all that decode or infer."""
        return range(1, len(set(self.decoding + self.inferring)) + 1)

    @property
    def apart(self) -> bool:
        """Whether decoding and inference have different cores."""
        return not set(self.decoding) & set(self.inferring)


def pool(count: int) -> str:
    """Name of the device of ``count`` decoding cores."""
    return f"pool-{count}"


def placed(cores: Sequence[int]) -> Places:
    """The first core is the load's and the others the server's; with three of these or more the first is the
    dispatcher's, who floats over them otherwise. The rest is halved between decoding and inference. On one or two cores
    all share all.
    """
    if len(cores) < 3:
        every = tuple(cores)
        return Places(every, every, every, every, every)
    load, server = tuple(cores[:1]), tuple(cores[1:])
    dispatcher, rest = (server[:1], server[1:]) if len(server) > 2 else (server, server)
    half = len(rest) // 2
    return Places(load, server, dispatcher, rest[:half], rest[half:])


def _cores(name: str, cores: tuple[int, ...]) -> DeviceTarget:
    return DeviceTarget(name, "cpu", cores, threads=1)
