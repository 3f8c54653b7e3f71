"""What the operator orders and what the agent says of it, against a real API server and a real server."""

from __future__ import annotations

from e2e.agent.pod import Pod, on_cpu, placed, served
from e2e.agent.store import IDENTITY, Store


def test_an_order_is_carried_out_changed_and_taken_back(pod: Pod, store: Store) -> None:
    pod.start_agent()
    pod.start_server()
    pod.order()
    pod.until(lambda: pod.condition("Ready") == ("True", "Serving"), "an idle node to be ready")
    status = pod.status()
    assert status["cpu"] == {"cores": 2}
    assert status["devices"][0]["uuid"] == "cpu"
    assert status["devices"][0]["health"] == "Healthy"
    assert (status["pod"], status["address"]) == (f"pod-{pod.name}", "10.244.0.9")
    assert pod.lease()["holderIdentity"] == f"pod-{pod.name}"

    services = [served(f"{store.url}/m.py")]
    generation = pod.order(devices=on_cpu(placed(count=2)), services=services)
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [2], "two instances")
    assert pod.status()["observedGeneration"] == generation
    assert pod.service()["ready"]
    assert pod.service()["generation"] == 1
    assert pod.answer() == [2.0] * 4

    pod.order(devices=on_cpu(placed(batch=8, count=1)), services=services)
    pod.until(lambda: [(e["batch"], e["count"]) for e in pod.instances()] == [(8, 1)], "a change")

    store.files["/v2.py"] = IDENTITY.replace("FACTOR", "3")
    services = [served(f"{store.url}/v2.py", generation=2)]
    pod.order(devices=on_cpu(placed(batch=8)), services=services)
    pod.until(lambda: pod.service().get("generation") == 2, "the new version")
    assert pod.answer() == [3.0] * 4

    pod.order()
    pod.until(lambda: not pod.instances() and not pod.service(), "everything to be gone")
    assert pod.answer() is None


def test_an_order_of_a_deposed_leader_is_refused_and_what_runs_stays(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    pod.start_agent()
    pod.order(epoch=5, devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
    pod.delete_node()
    pod.order(epoch=4)
    pod.until(
        lambda: pod.condition("SpecAccepted") == ("False", "EpochTooSmall"), "it to be refused"
    )
    assert pod.answer() == [2.0] * 4
    pod.order(epoch=5)
    pod.until(lambda: pod.condition("SpecAccepted") == ("True", "Accepted"), "it to be accepted")
    pod.until(lambda: pod.answer() is None, "it to be carried out")


def test_a_model_that_cannot_be_fetched_is_said_and_holds_up_nothing_else(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    pod.start_agent()
    uris = {
        "missing": f"{store.url}/none.py",
        "file": "file:///etc/passwd",
        "redirect": f"{store.url}/redirect/169.254.169.254",
    }
    services = [served(uri, name=f"vision.{name}") for name, uri in uris.items()]
    names = [f"vision.{name}" for name in uris]
    pod.order(
        devices=on_cpu(placed(), *(placed(name=name) for name in names)),
        services=[*services, served(f"{store.url}/m.py")],
    )
    pod.until(lambda: pod.answer() == [2.0] * 4, "the service whose model is there")
    said = {
        "missing": "no such file",
        "file": "'file' is not allowed here",
        "redirect": "169.254.169.254, a link-local address",
    }
    for name, words in said.items():
        pod.until(
            lambda: words in pod.service(f"vision.{name}").get("problem", ""),  # noqa: B023
            f"why {name} is not served",
        )
    store.files["/none.py"] = IDENTITY.replace("FACTOR", "7")
    pod.until(lambda: pod.answer("vision.missing") == [7.0] * 4, "another try")


def test_an_activator_has_no_devices_and_is_told_what_to_hold(pod: Pod, store: Store) -> None:
    pod.start_server()
    pod.start_agent("--activator")
    pod.name = f"pod-{pod.name}"
    pod.order(services=[served(f"{store.url}/m.py", hold=3)])
    pod.until(lambda: pod.service().get("generation") == 1, "the service to be told")
    assert "devices" not in pod.status()
    assert not pod.service()["ready"]
    assert store.requests == [], "it fetches nothing"
