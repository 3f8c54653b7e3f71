"""What an agent measures for the operator, against a real API server and a real server."""

from __future__ import annotations

from e2e.agent.pod import Pod, on_cpu, placed, served
from e2e.agent.store import Store
from e2e.api import Object


def task() -> Object:
    return {"service": "vision.scaled", "member": "m", "device": "cpu", "slice": "cpu-1@0"}


def profiles(pod: Pod) -> list[Object]:
    found: list[Object] = pod.status().get("profiles") or []
    return found


def test_a_profile_is_measured_once_and_reported_until_its_task_is_taken_back(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    agent = pod.start_agent()
    services = [served(f"{store.url}/m.py")]
    pod.order(profiling=[task()], candidates=services)
    pod.until(lambda: any(each.get("rows") for each in profiles(pod)), "rows")
    [profile] = profiles(pod)
    assert {row["batch"] for row in profile["rows"]} == {1, 2, 4, 8}
    assert profile["deviceClass"]["slice"] == "cpu-1"
    assert profile["engine"].startswith("python-")
    assert pod.service() == {}, "it is measured, not served"

    agent.stop(0.1)
    pod.start_agent()
    pinned = {"name": "m", "digest": profile["modelDigest"]}
    pod.order(
        profiling=[task()],
        candidates=[served(f"{store.url}/m.py", members=[pinned])],
        services=[served(f"{store.url}/m.py", members=[pinned])],
        devices=on_cpu(placed()),
    )
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
    assert profiles(pod) == [profile]
    pod.order(services=services, devices=on_cpu(placed()))
    pod.until(lambda: not profiles(pod), "the result to go with its task")
    measured = [line for line in pod.log("agent") if line["message"].startswith("measuring")]
    assert len(measured) == 1


def test_a_model_that_cannot_be_measured_is_said(pod: Pod, store: Store) -> None:
    store.files["/m.py"] = "def load(device, options):\n    raise ValueError('not a model')\n"
    pod.start_server()
    pod.start_agent()
    pod.order(profiling=[task()], candidates=[served(f"{store.url}/m.py")])
    pod.until(lambda: any(each.get("problem") for each in profiles(pod)), "a problem")
    assert "not a model" in profiles(pod)[0]["problem"]
