"""Profiles on this machine: kept by (model, device class, engine), measured when missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tessera_core.api import ModelProfile, ModelServiceSpec, decode
from tessera_core.api.members import Member, ModelFormat
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.modelprofile import ModelProfileSpec, ModelProfileStatus
from tessera_core.api.preprocess import Decoder
from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import LatencyProfile
from tessera_core.plan.state import CPU
from tessera_runtime.agent.measure import profile_rows
from tessera_runtime.agent.observe import Spot, spots, stage_spots
from tessera_runtime.devices.inventory import Inventory
from tessera_runtime.engines.version import is_installed, library_version
from tessera_runtime.target import ProfileReport

_LIBRARY = {
    ModelFormat.TORCH_EXPORT: "torch",
    ModelFormat.TORCH_SCRIPT: "torch",
    ModelFormat.ONNX: "onnxruntime",
    ModelFormat.PYTHON: "python",
    ModelFormat.PREPROCESS: "simplejpeg",
}


class EngineMissing(Exception):
    """The library that runs a format is not installed."""


def engine_version(model_format: ModelFormat, product: str = CPU) -> str:
    """What the engine of a format calls itself on devices of ``product``, known without importing it. Raises EngineMissing."""
    staged_on_gpu = model_format is ModelFormat.PREPROCESS and product != CPU
    library = "torchvision" if staged_on_gpu else _LIBRARY[model_format]
    try:
        return library_version(library)
    except importlib.metadata.PackageNotFoundError as error:
        extra = "onnx" if library == "onnxruntime" else "runtime"
        raise EngineMissing(
            f"format {model_format.value} needs {library}: install tessera[{extra}]"
        ) from error


def spots_of(
    member: Member, spec: ModelServiceSpec, seen: Inventory, cpu_cores: Sequence[int]
) -> tuple[Spot, ...]:
    """Where ``member`` is measured on this machine. Preprocessing that may choose stays on cores where the library that
    decodes on GPUs is not installed.
    """
    if member.model.format is not ModelFormat.PREPROCESS or spec.preprocess is None:
        return spots(seen, cpu_cores)
    decoder = spec.preprocess.device
    if decoder is Decoder.AUTO and not is_installed("torchvision"):
        decoder = Decoder.CPU
    return stage_spots(seen, cpu_cores, decoder)


class ProfileStore:
    """ModelProfile documents in a directory, one file each."""

    def __init__(self, directory: Path, processor: str) -> None:
        """``processor``: model name of this machine's; profiles of another one are not found."""
        self._directory = directory
        self._processor = processor

    def find(self, digest: str, place: DeviceClass, engine: str) -> ModelProfile | None:
        """The profile, if it was measured on this very kind of place with this engine."""
        try:
            found = decode(json.loads(self._path(digest, place, engine).read_text()))
        except (OSError, ValueError):
            return None  # absent, or damaged: it is measured again
        return found if isinstance(found, ModelProfile) and found.status.rows else None

    def keep(self, profile: ModelProfile) -> None:
        """Write atomically: a crash leaves the old file or the new one."""
        spec = profile.spec
        path = self._path(spec.model_digest, spec.device_class, spec.engine)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(profile.to_dict(), indent=1, sort_keys=True))
        os.replace(partial, path)

    def _path(self, digest: str, place: DeviceClass, engine: str) -> Path:
        key = f"{digest} {place} {place.sm_count} {engine} {self._processor}"
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def to_profile(
    digest: str, place: DeviceClass, report: ProfileReport, driver: str | None = None
) -> ModelProfile:
    """A measurement as the API kind."""
    rows = profile_rows(report)
    slug = str(place).lower().replace("/", "-").replace(".", "-").replace("+", "-")
    name = f"{digest.removeprefix('sha256:')[:12]}-{slug}"[:63].strip("-")
    return ModelProfile(
        metadata=ObjectMeta(name=name),
        spec=ModelProfileSpec(digest, place, report.engine, driver),
        status=ModelProfileStatus(rows=rows, fit=LatencyProfile(rows).fit(1)),
    )


def read_profiles(paths: Sequence[Path]) -> tuple[ModelProfile, ...]:
    """Profiles that the user gives. Raises SpecInvalid, OSError, ValueError."""
    profiles: list[ModelProfile] = []
    for path in paths:
        document = json.loads(path.read_text())
        found = decode(document)
        if not isinstance(found, ModelProfile):
            raise ValueError(f"{path}: found kind {document.get('kind')}, allowed: ModelProfile")
        profiles.append(found)
    return tuple(profiles)
