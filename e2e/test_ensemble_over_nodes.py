"""An ensemble whose members are on different nodes answers at every pod as if it were in one process."""

from __future__ import annotations

import pytest
from e2e.system.installation import RUNTIME, Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example, mean
from e2e.system.services import Service, model_service

MEMBERS = {"first": classifier(31, layers=30), "second": classifier(32, layers=30)}
ROWS = 3


@pytest.mark.timeout(180, func_only=True)
def test_members_that_need_a_core_each_get_a_node_each_and_answer_together(
    installed: Installation, namespace: str
) -> None:
    x = example(ROWS, seed=5)
    uris = {
        name: installed.store.put(f"{namespace}/{name}.onnx", file)
        for name, file in MEMBERS.items()
    }
    installed.apply(model_service(namespace, "pair", uris, scaling={"maxReplicas": 1}))
    service = installed.service(namespace, "pair")
    service.wait_until_serving()
    assert len(service.nodes()) == 1, "both have room on one core while little is asked"

    service.change(traffic={"requestsPerSecond": int(1.3 * service.most_per_second())})
    installed.wait("each member is on a node of its own", lambda: is_apart(service))
    service.wait_until_settled()

    together = mean(tuple(MEMBERS.values()), x)
    for file in MEMBERS.values():
        assert abs(answer(file, x) - together).max() > 0.01, "one member alone could be mistaken"
    homes = service.homes()
    addresses = {pod["status"]["podIP"] for pod in installed.pods(RUNTIME)}
    assert service.addresses() == addresses, "either pod answers"
    for address in ("", *sorted(addresses)):
        with Load(service.target(address), x, {"both": together}, rate=10) as load:
            load.go_on_for(2)
        zero_failures(load.result)
    assert service.homes() == homes, "it was asked as it was"


def is_apart(service: Service) -> bool:
    homes = service.homes()
    return (
        homes.keys() == MEMBERS.keys()
        and all(len(nodes) == 1 for nodes in homes.values())
        and len(service.nodes()) == 2
    )
