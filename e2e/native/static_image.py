"""Images of one static program each, made without a container engine and without a registry.

An image is an archive of a layer and a description of it, which Python's standard library writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from pathlib import Path

from e2e.native.build import go

_PROGRAMS = Path(__file__).parent / "programs"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def static_image(program: str, reference: str, archive: Path) -> Path:
    """Build ``programs/<program>`` and write it as image ``reference`` into ``archive``, as `docker save` would."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / program
        go(["build", "-trimpath", "-ldflags=-s -w", "-o", binary, f"./{program}"], _PROGRAMS)
        layer = _tar({program: binary.read_bytes()})
    machine = platform.machine()
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program}"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    members = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
    }
    archive.write_bytes(_tar(members))
    return archive


def _tar(members: dict[str, bytes]) -> bytes:
    """The same bytes for the same members: no times, no owners."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()
