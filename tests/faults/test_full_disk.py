"""The disk of the model cache fills up while a model is fetched: said so, others stay usable, and it works again later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_FULL = """
import pathlib, sys
from tessera_runtime.models import cache as caching
from tessera_runtime.models import fetch as fetching
from tessera_runtime.models.errors import NoSpace

folder = pathlib.Path(sys.argv[1])
caching.RESERVE = fetching.CHUNK = 1 << 16
cache = caching.ModelCache(folder / "disk", 1 << 30, pause=lambda _: None)
(folder / "small").write_bytes(b"s" * 1000)
(folder / "large").write_bytes(b"l" * (2 << 20))
kept = cache.fetch(f"file://{folder}/small")
filler = folder / "disk" / "filler"

def fill(done, size):
    with filler.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

try:
    cache.fetch(f"file://{folder}/large", progress=fill)
except NoSpace as error:
    print(error)
else:
    sys.exit("a full disk was not noticed")
try:
    cache.fetch(f"file://{folder}/large")
except NoSpace:
    pass
else:
    sys.exit("a full disk was not noticed again")
assert kept.path.read_bytes() == b"s" * 1000
with cache.fetch(f"file://{folder}/small") as again:
    assert again.path.read_bytes() == b"s" * 1000
filler.unlink()
with cache.fetch(f"file://{folder}/large") as found:
    assert found.path.read_bytes() == (folder / "large").read_bytes()
print("fetched")
"""


def test_a_disk_that_fills_up_in_a_download_is_reported_and_works_again(tmp_path: Path):
    """On a file system of its own, of 4 MiB, that only the test's processes see."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m tessera-test "{disk}" && exec "$@"'
    command = [sys.executable, "-c", _FULL, str(tmp_path)]
    found = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "full" in found.stdout or "no room" in found.stdout, found.stdout
    assert found.stdout.endswith("fetched\n")
