"""The conformance suite of HTTP/2 (github.com/summerwind/h2spec) against the gRPC port, where Go can build it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.front_ends import FrontEnds
from support.served_models import served_plane

VERSION = "v2.2.1+incompatible"
_BUILD_S, _RUN_S = 100, 100


@pytest.fixture(scope="session")
def h2spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From PATH, from the cache, or built into it."""
    if found := shutil.which("h2spec"):
        return Path(found)
    go = shutil.which("go")
    if go is None:
        pytest.skip("no go in PATH to build h2spec with")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "tessera-tests" / f"h2spec-{VERSION}"
    if not (folder / "h2spec").exists():
        build = tmp_path_factory.mktemp("h2spec")
        command = [go, "install", f"github.com/summerwind/h2spec/cmd/h2spec@{VERSION}"]
        try:
            made = subprocess.run(
                command,
                env={**os.environ, "GOBIN": str(build)},
                capture_output=True,
                text=True,
                timeout=_BUILD_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"h2spec was not built in {_BUILD_S} s")
        if made.returncode:
            pytest.skip(f"h2spec cannot be built: {made.stderr[-500:]}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(build / "h2spec", folder / "h2spec")
    return folder / "h2spec"


@pytest.mark.slow
@pytest.mark.timeout(_BUILD_S + _RUN_S + 20)
def test_the_conformance_suite_passes(h2spec: Path):
    with FrontEnds(served_plane()) as front_ends:
        ended = subprocess.run(
            [str(h2spec), "-p", str(front_ends.grpc.port), "-o", "3"],
            capture_output=True,
            text=True,
            timeout=_RUN_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout[-8000:]
    assert " 0 skipped, 0 failed" in ended.stdout
