"""An agent, its server or the API server goes away, and comes back."""

from __future__ import annotations

import os
import signal

from e2e.agent.pod import Pod, on_cpu, placed, serve, served, until
from e2e.agent.store import IDENTITY, Store
from e2e.native.control_plane import ControlPlane


def test_without_an_api_server_a_restarted_agent_tells_a_restarted_server_what_was_wanted(
    pod: Pod, store: Store, plane: ControlPlane
) -> None:
    server = pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    plane.stop_api_server()
    try:
        os.kill(agent.pid, signal.SIGKILL)
        agent.stop()
        assert pod.answer() == [2.0] * 4, "the server does not need its agent"
        agent = pod.start_agent()
        server.stop()
        assert pod.answer() is None
        pod.start_server()
        until(lambda: pod.answer() == [2.0] * 4, pod.logs)
    finally:
        plane.start_api_server()
        pod.api.close()
    store.files["/v2.py"] = IDENTITY.replace("FACTOR", "3")
    services = [served(f"{store.url}/v2.py", generation=2)]
    pod.order(devices=on_cpu(placed()), services=services)
    pod.until(lambda: pod.answer() == [3.0] * 4, "what is wanted since the API server is back")
    pod.until(lambda: pod.service().get("generation") == 2, "the status since it is back")


def test_a_restarted_agent_changes_nothing(pod: Pod, store: Store) -> None:
    pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    version, workers = pod.node()["metadata"]["resourceVersion"], pod.workers()
    os.kill(agent.pid, signal.SIGKILL)
    agent.stop()
    renewed = pod.lease()["renewTime"]
    pod.start_agent()
    pod.until(lambda: pod.lease()["renewTime"] > renewed, "the new agent's first renewal")
    renewed = pod.lease()["renewTime"]
    pod.until(lambda: pod.lease()["renewTime"] > renewed, "its second one")
    assert pod.node()["metadata"]["resourceVersion"] == version, "nothing new was written"
    assert pod.workers() == workers, "nothing was started again"
    assert pod.answer() == [2.0] * 4


def test_a_server_that_was_killed_is_said_and_told_again(pod: Pod, store: Store) -> None:
    server = pod.start_server()
    pod.start_agent()
    serve(pod, store)
    os.killpg(server.pid, signal.SIGKILL)
    server.stop()
    pod.until(
        lambda: pod.condition("Ready") == ("False", "ServerUnreachable"), "the loss to be said"
    )
    assert not pod.service()["ready"]
    assert [each["ready"] for each in pod.instances()] == [0]
    pod.start_server()
    pod.until(lambda: pod.service()["ready"], "the server to serve again")
    assert pod.condition("Ready") == ("True", "Serving")
    assert pod.answer() == [2.0] * 4


def test_a_pod_that_is_stopped_says_so_at_once_and_ends_after_its_server(
    pod: Pod, store: Store
) -> None:
    server = pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    os.kill(agent.pid, signal.SIGTERM)
    pod.until(lambda: pod.condition("Ready") == ("False", "Draining"), "the drain to be said")
    assert agent.returncode() is None
    assert pod.answer() == [2.0] * 4
    services = [served(f"{store.url}/m.py")]
    pod.order(devices=on_cpu(placed(batch=2)), services=services)
    pod.until(lambda: [each["batch"] for each in pod.instances()] == [2], "a change in the drain")
    server.stop()
    until(lambda: agent.returncode() is not None, pod.logs)
    assert agent.returncode() == 0, pod.logs()
