"""`tessera serve`, `status` and `profile` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils

from support.local import WAIT_S, serving, tessera
from support.server import command, descendants, started, wait_until

MODEL = """
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] * np.float32(FACTOR)}
def load(device, options):
    return Model()
"""

SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: scaled, namespace: vision}
spec:
  members:
  - {name: double, model: {uri: "file://./double.py", format: Python}, batch: {max: 8}}
  - {name: triple, model: {uri: "file://./triple.py", format: Python}, batch: {max: 8}}
  ensemble: {combine: Mean}
  slo: {objectives: [{target: TARGET, percent: "99"}]}
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "double.py").write_text(MODEL.replace("FACTOR", "2"))
    (tmp_path / "triple.py").write_text(MODEL.replace("FACTOR", "3"))
    path = tmp_path / "service.yaml"
    path.write_text(SERVICE.replace("TARGET", "500ms"))
    return path


def test_an_ensemble_is_measured_planned_served_and_drained(service: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with serving(service) as (status, process):
        given = tritonclient.http.InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(x)
        client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
        np.testing.assert_allclose(client.infer("scaled", [given]).as_numpy("y"), x * 2.5)
        client.close()
        given = tritonclient.grpc.InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(x)
        with tritonclient.grpc.InferenceServerClient(status["grpc"]) as remote:
            np.testing.assert_allclose(
                remote.infer("vision.scaled", [given]).as_numpy("y"), x * 2.5
            )

        def counted() -> bool:
            found = tessera("status", "--state-dir", str(service.parent / "state"), "-o", "json")
            return json.loads(found.stdout)["services"][0]["total"] == 2

        wait_until(counted, "the two requests in the status")
        table = tessera("status", "--state-dir", str(service.parent / "state")).stdout
        assert "vision.scaled" in table
        assert "double" in table
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    after = tessera("status", "--state-dir", str(service.parent / "state"))
    assert after.returncode == 1
    assert "has ended" in after.stderr


def test_a_profile_is_measured_once_and_kept(service: Path) -> None:
    state = str(service.parent / "state")
    arguments = ("profile", "-f", str(service), "--state-dir", state, "-o", "json")
    first, again = tessera(*arguments), tessera(*arguments)
    assert first.returncode == 0, first.stderr
    profiles = json.loads(first.stdout)
    assert len(profiles) == 2
    assert {row["batch"] for row in profiles[0]["status"]["rows"]} >= {1, 2, 4, 8}
    assert json.loads(again.stdout) == profiles, "equal to the last digit: read, not measured"


def slowed(profile: dict[str, Any]) -> dict[str, Any]:
    """As it would have been measured while the machine was stalled."""
    for row in profile["status"]["rows"]:
        row["p50"], row["p99"] = "40s", "50s"
    profile["status"].pop("fit", None)
    return profile


def test_what_an_earlier_run_measured_as_too_slow_is_measured_again(service: Path) -> None:
    state = service.parent / "state"
    measured = tessera("profile", "-f", str(service), "--state-dir", str(state))
    assert measured.returncode == 0, measured.stderr
    kept = sorted((state / "profiles").glob("*.json"))
    kept[0].write_text(json.dumps(slowed(json.loads(kept[0].read_text()))))
    with serving(service):
        pass
    assert "measuring again" in (service.parent / "serve.log").read_text()
    rows = json.loads(kept[0].read_text())["status"]["rows"]
    assert all(row["p99"] != "50s" for row in rows), "later runs have the new figures"


def test_what_a_given_profile_says_is_too_slow_is_refused(service: Path) -> None:
    state = str(service.parent / "s")
    found = tessera("profile", "-f", str(service), "--state-dir", state, "-o", "json")
    path = service.parent / "given.json"
    path.write_text(json.dumps(slowed(json.loads(found.stdout)[0])))
    found = tessera("serve", "-f", str(service), "--state-dir", state, "--http=0", "--grpc=0",
                    "--metrics=0", f"--profile={path}")  # fmt: skip
    assert found.returncode == 1
    assert "Infeasible" in found.stderr


def test_a_given_profile_is_used_instead_of_measuring(service: Path) -> None:
    state = str(service.parent / "state")
    found = tessera("profile", "-f", str(service), "--state-dir", state, "-o", "json")
    options: list[str] = []
    for i, profile in enumerate(json.loads(found.stdout)):
        for row in profile["status"]["rows"]:
            row["p50"], row["p99"] = "7ms", "9ms"
        del profile["status"]["fit"]
        path = service.parent / f"given-{i}.json"
        path.write_text(json.dumps(profile))
        options += ["--profile", str(path)]
    with serving(service, *options):
        pass
    log = (service.parent / "serve.log").read_text()
    assert "predicted p99" in log
    predicted = float(log.split("predicted p99 ")[1].split(" ms")[0])
    assert predicted > 7.0


def test_an_slo_that_nothing_can_meet_is_refused_with_what_is_possible(service: Path) -> None:
    service.write_text(SERVICE.replace("TARGET", "10us"))
    found = tessera("serve", "-f", str(service), "--state-dir", str(service.parent / "s"), "--http=0",
                    "--grpc=0", "--metrics=0")  # fmt: skip
    assert found.returncode == 1
    assert "Infeasible" in found.stderr


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda s: (s.parent / "double.py").unlink(), "double.py"),
        (
            lambda s: (s.parent / "double.py").write_text("this is not python ("),
            "vision.scaled/double",
        ),
        (lambda s: (s.parent / "double.py").write_text("x = 1"), "vision.scaled/double"),
        (lambda s: s.write_text(s.read_text().replace("Mean", "Average")), "spec.ensemble.combine"),
        (lambda s: s.write_text(s.read_text().replace("percent", "percnt")), "percnt"),
    ],
    ids=["missing file", "corrupt file", "wrong file", "wrong field", "unknown field"],
)
def test_what_cannot_be_served_is_said_and_nothing_is_left_running(
    service: Path, break_it: Callable[[Path], object], said: str
) -> None:
    break_it(service)
    found = tessera("serve", "-f", str(service), "--state-dir", str(service.parent / "s"), "--http=0",
                    "--grpc=0", "--metrics=0")  # fmt: skip
    assert found.returncode == 1
    assert said in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("option", ["--http", "--grpc", "--metrics"])
def test_a_port_in_use_is_named(service: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--http": 0, "--grpc": 0, "--metrics": 0} | {option: port}
        found = tessera(
            "serve", "-f", str(service), "--state-dir", str(service.parent / "s"),
            *(f"{name}={value}" for name, value in ports.items()),
        )  # fmt: skip
    assert found.returncode == 78
    assert f"port {port}" in found.stderr


def test_a_model_that_hangs_while_it_is_measured_is_said(service: Path) -> None:
    hanging = MODEL.replace("FACTOR", "2").replace(
        "        return {",
        "        import time\n        time.sleep(3600 if len(batch['x']) > 1 else 0)\n        return {",
    )
    (service.parent / "double.py").write_text(hanging)
    found = tessera("serve", "-f", str(service), "--state-dir", str(service.parent / "s"), "--http=0",
                    "--grpc=0", "--metrics=0", "--hang-timeout=1")  # fmt: skip
    assert found.returncode == 1
    assert "vision.scaled/double: a batch of 2 took over 1 s" in found.stderr


def test_code_is_refused_when_the_user_forbids_it(service: Path) -> None:
    found = tessera("serve", "-f", str(service), "--no-code")
    assert found.returncode == 1
    assert "spec.members[0].model.format" in found.stderr


def test_a_dispatcher_that_died_is_told_again_what_to_serve(service: Path) -> None:
    x = np.ones((1, 4), dtype=np.float32)
    with serving(service) as (status, process):
        [dispatcher] = [
            pid
            for pid in descendants(process.pid)
            if "tessera_runtime.dispatch.main" in command(pid)
        ]
        os.kill(dispatcher, signal.SIGKILL)

        def served_again() -> bool:
            given = tritonclient.http.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(x)
            client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
            try:
                return bool(np.allclose(client.infer("scaled", [given]).as_numpy("y"), 2.5))
            except (tritonclient.utils.InferenceServerException, OSError):
                return False
            finally:
                client.close()

        wait_until(served_again, (service.parent / "serve.log").read_text, WAIT_S)


def test_nothing_outlives_a_killed_serve(service: Path) -> None:
    with serving(service) as (_, process):
        processes = descendants(process.pid)
        assert len(processes) >= 4, "supervisor, zygote, dispatcher, worker"
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(started, processes)), "the end of all its processes")
