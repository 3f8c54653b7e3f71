"""The variants that won on this machine, kept by (model, device class), for who serves here later."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tessera_core.api.modelservice import Tuning, TuningMode
from tessera_core.gpu.devices import DeviceClass
from tessera_core.tuning.variants import UNTUNED, Backend, parse
from tessera_runtime.engines.version import library_version
from tessera_runtime.target import MemberTarget, ServerTarget

_LIBRARY: Mapping[Backend, str] = {
    Backend.TORCH: "torch",
    Backend.INDUCTOR: "torch",
    Backend.ONNX_RUNTIME: "onnxruntime",
    Backend.OPENVINO: "openvino",
}


def installed() -> tuple[Backend, ...]:
    """What can run variants here, known without importing any of it."""
    return tuple(backend for backend in Backend if engine_of(backend))


def engine_of(backend: Backend) -> str:
    """Library and version; empty where it is not installed."""
    try:
        return library_version(_LIBRARY[backend])
    except importlib.metadata.PackageNotFoundError:
        return ""


class Choice(msgspec.Struct, frozen=True):
    """What tuning found best for a model on a device class; the untuned model where nothing was faster."""

    digest: str
    place: str
    variant: str
    engine: str
    """That it was measured with: of another version nothing is known."""
    error: float
    """From the untuned answers, relative to their scale."""
    words: str


class Choices:
    """One document each, in a directory."""

    def __init__(self, directory: Path, processor: str) -> None:
        """``processor``: model name of this machine's; choices of another one are not found."""
        self._directory = directory
        self._processor = processor

    def find(self, digest: str, place: DeviceClass, tuning: Tuning) -> str:
        """The variant that serves under ``tuning``: empty for the untuned model, also where nothing is known or the choice
        is not allowed any more.
        """
        if tuning.mode is TuningMode.OFF:
            return UNTUNED
        try:
            choice = msgspec.json.decode(self._path(digest, place).read_bytes(), type=Choice)
            variant = parse(choice.variant) if choice.variant else None
        except (OSError, ValueError):  # a MsgspecError is a ValueError
            return UNTUNED
        if variant is None or choice.engine != engine_of(variant.backend):
            return UNTUNED
        allowed = variant.precision in tuning.precisions and choice.error <= tuning.tolerance
        return choice.variant if allowed else UNTUNED

    def keep(self, choice: Choice, place: DeviceClass) -> None:
        """Write atomically: a crash leaves the old one or the new one."""
        path = self._path(choice.digest, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(choice))
        os.replace(partial, path)

    def _path(self, digest: str, place: DeviceClass) -> Path:
        key = f"{digest} {place} {place.sm_count} {self._processor}"
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def with_variants(target: ServerTarget, choose: Callable[[str, str], str]) -> ServerTarget:
    """``target`` with the variant of every instance. ``choose``: by the model's digest and the device's id."""

    def chosen(member: MemberTarget) -> MemberTarget:
        places = tuple(
            msgspec.structs.replace(each, variant=choose(member.digest, each.device))
            for each in member.instances
        )
        return msgspec.structs.replace(member, instances=places)

    services = tuple(
        msgspec.structs.replace(service, members=tuple(map(chosen, service.members)))
        for service in target.services
    )
    return msgspec.structs.replace(target, services=services)
