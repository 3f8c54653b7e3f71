"""`tessera serve` under load: batches become smaller when the model becomes slower, and larger again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from support.local import serving
from support.server import wait_until

MODEL = """
import os, time
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        slower = 8 if os.path.exists(%r) else 1
        time.sleep(slower * (0.002 + 0.001 * len(batch["x"])))
        return {"y": batch["x"]}
def load(device, options):
    return Model()
"""
SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: slow, namespace: vision}
spec:
  members:
  - {name: only, model: {uri: "file://./only.py", format: Python}, batch: {max: 16}}
  slo: {objectives: [{target: 100ms, percent: "99"}]}
  scaling: {mode: MODE}
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return tmp_path / "slow"


@pytest.fixture
def service(tmp_path: Path, slow: Path) -> Path:
    (tmp_path / "only.py").write_text(MODEL % str(slow))
    path = tmp_path / "service.yaml"
    path.write_text(SERVICE.replace("MODE", "SLO"))
    return path


@contextmanager
def load(http: str) -> Iterator[None]:
    """Two clients that ask again and again, four rows each."""
    done = threading.Event()

    def ask() -> None:
        client = tritonclient.http.InferenceServerClient(http.removeprefix("http://"))
        given = tritonclient.http.InferInput("x", [4, 4], "FP32")
        given.set_data_from_numpy(np.ones((4, 4), np.float32))
        while not done.is_set():
            with suppress(InferenceServerException):  # refused: it would be late
                client.infer("slow", [given])
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def status_of(service: Path) -> dict[str, Any]:
    """Of the service, as the agent wrote it last."""
    written = json.loads((service.parent / "state" / "status.json").read_text())
    return written["services"][0]


def until_cap(service: Path, holds: Callable[[int], bool]) -> int:
    """Batch cap of the member, once it ``holds``."""
    caps: list[int] = []

    def found() -> bool:
        caps.append(status_of(service)["members"][0]["batch_cap"])
        return holds(caps[-1])

    wait_until(found, lambda: f"caps: {list(dict.fromkeys(caps))}")
    return caps[-1]


def test_batches_follow_what_the_model_takes_now(service: Path, slow: Path) -> None:
    with serving(service) as (status, _), load(status["http"]):
        quick = until_cap(service, lambda cap: cap > 4)
        slow.touch()
        less = until_cap(service, lambda cap: cap < quick)
        slow.unlink()
        until_cap(service, lambda cap: cap > less)


def test_a_service_of_fixed_capacity_keeps_to_its_plan(service: Path, slow: Path) -> None:
    service.write_text(SERVICE.replace("MODE", "Fixed"))
    with serving(service) as (status, _):
        planned = status_of(service)["members"][0]["batch_cap"]
        slow.touch()
        with load(status["http"]):
            wait_until(lambda: status_of(service)["total"] > 100, "it is asked")
            assert status_of(service)["members"][0]["batch_cap"] == planned
