"""What tenants must not be able to do to each other, to the cluster, or to a node: one test that it fails, for each."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Client, Object, Refused
from e2e.faults.agents import Agents, spots
from e2e.faults.fixtures import Operators
from e2e.faults.kube import until
from e2e.faults.scene import NODES, USERS, Scene, conditions, model_service, pool
from e2e.system.installation import RUNTIME, Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Target
from e2e.system.models import INPUT, OUTPUT, Array, answer, classifier, example
from e2e.system.services import Service
from e2e.system.services import model_service as real_service

OTHERS = "audio"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
MINE, THEIRS = classifier(71), classifier(72)


# Where models run: what the planner decides from real objects, with emulated agents.


@pytest.fixture
def tenants(scene: Scene) -> Iterator[Scene]:
    """Two namespaces that do not trust each other."""
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHERS}}
    if not scene.kube.exists(space):
        scene.kube.create(space)
    yield scene
    scene.kube.clear("ResourceQuota")


def theirs(name: str, **spec: object) -> Object:
    document = model_service(name, **spec)  # type: ignore[arg-type]
    return {**document, "metadata": {"name": name, "namespace": OTHERS}}


def trusting(**trust: bool) -> Object:
    document = pool(len(NODES))
    return {**document, "spec": {**document["spec"], "trust": trust}}


def neighbours(agents: Agents) -> set[frozenset[str]]:
    """Namespaces whose models were ever told to be on one node at one time, to run or to be measured."""
    return {
        frozenset(
            service.partition(".")[0]
            for service in (
                *(spot[1] for spot in spots(node, spec)),
                *(task["service"] for task in spec.get("profiling", ())),
            )
        )
        for node, specs in agents.told.items()
        for spec in specs
    }


def everywhere(scene: Scene) -> list[Object]:
    return [
        each
        for each in scene.kube.all("ModelService")
        if any(
            (one["type"], one["status"]) == ("Ready", "True")
            for one in each.get("status", {}).get("conditions", ())
        )
    ]


def test_models_of_two_namespaces_share_no_node(
    tenants: Scene, agents: Agents, operators: Operators
) -> None:
    operators()
    tenants.serve(model_service("digits"), theirs("words"), model_service("more"))
    until(lambda: len(everywhere(tenants)) == 3, tenants.picture)
    assert frozenset((USERS, OTHERS)) not in neighbours(agents)


def test_nothing_is_even_measured_beside_models_of_another_namespace(
    tenants: Scene, agents: Agents, operators: Operators
) -> None:
    operator = operators()
    growing = pool(len(NODES))
    growing["spec"]["size"]["max"] += 1
    tenants.kube.apply(growing)
    tenants.serve(model_service("digits", placement={"spread": {"minNodes": len(NODES)}}))
    tenants.settled("digits")
    tenants.serve(theirs("words"))
    until(lambda: reason_of(tenants, "words", "Profiled") == "NoPlace", operator.tail)
    assert neighbours(agents) <= {frozenset(), frozenset((USERS,))}
    deployment = tenants.kube.get(
        "Deployment", f"tessera-runtime-{growing['metadata']['name']}", SYSTEM
    )
    assert deployment is not None
    assert deployment["spec"]["replicas"] == len(NODES) + 1  # one more node is asked for

    tenants.serve(model_service("digits"))  # one node is enough for it now
    until(lambda: len(everywhere(tenants)) == 2, tenants.picture)
    assert frozenset((USERS, OTHERS)) not in neighbours(agents)


def test_where_the_pool_allows_it_they_do(
    tenants: Scene, agents: Agents, operators: Operators
) -> None:
    tenants.kube.apply(trusting(sharedBetweenNamespaces=True))
    operators()
    tenants.serve(model_service("digits"), theirs("words"))
    until(lambda: len(everywhere(tenants)) == 2, tenants.picture)
    assert frozenset((USERS, OTHERS)) in neighbours(agents)


@pytest.mark.parametrize("format_", ["TorchScript", "Python"])
def test_models_that_are_code_run_only_where_the_pool_allows_code(
    scene: Scene, agents: Agents, operators: Operators, format_: str
) -> None:
    code = model_service("code")
    code["spec"]["members"][0]["model"]["format"] = format_
    operators()
    scene.serve(code, model_service("digits"))
    scene.kube.apply(trusting(allowCode=False))
    until(
        lambda: scene.condition("code", "Planned")[:2] == ("False", "FormatNotAllowed"),
        lambda: scene.service("code").get("status"),
    )
    until(lambda: scene.condition("digits", "Ready")[0] == "True", "the other to be served")
    assert not [
        task
        for specs in agents.told.values()
        for spec in specs
        for task in spec.get("profiling", ())
        if task["service"] == f"{USERS}.code"
    ]

    scene.kube.apply(trusting(allowCode=True))
    scene.settled("code", "digits")


def test_a_namespace_has_no_more_than_its_quota(
    tenants: Scene, agents: Agents, operators: Operators
) -> None:
    hard = {"requests.tessera.dev/slices": "1"}
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "slices", "namespace": OTHERS},
        "spec": {"hard": hard},
    }
    tenants.kube.create(quota)
    operators()
    alone = {"isolation": "Exclusive"}
    tenants.serve(theirs("words"))
    until(lambda: len(everywhere(tenants)) == 1, tenants.picture)
    tenants.serve(theirs("more", placement=alone), model_service("digits", placement=alone))
    until(
        lambda: reason_of(tenants, "more", "Planned") == "QuotaExceeded",
        lambda: tenants.kube.get("ModelService", "more", OTHERS),
    )
    until(lambda: len(everywhere(tenants)) == 2, tenants.picture)

    tenants.kube.merge(quota, {"spec": {"hard": {"requests.tessera.dev/slices": "2"}}})
    until(lambda: len(everywhere(tenants)) == 3, tenants.picture)


def reason_of(scene: Scene, name: str, kind: str) -> str:
    document = scene.kube.get("ModelService", name, OTHERS)
    return conditions(document).get(kind, ("", ""))[1] if document else ""


# Who gets what: real agents, servers and tokens.


@pytest.fixture(scope="module")
def two(installed: Installation) -> Iterator[tuple[Service, Service]]:
    """Services of one name in two namespaces, with different models."""
    with (
        one_namespace(installed, "trust-mine") as mine,
        one_namespace(installed, "trust-theirs") as other,
    ):
        found = []
        for space, file in ((mine, MINE), (other, THEIRS)):
            uri = installed.store.put(f"{space}/digits.onnx", file)
            installed.apply(real_service(space, "digits", {"only": uri}))
            found.append(installed.service(space, "digits"))
        for each in found:
            each.wait_until_serving()
        yield found[0], found[1]


def ask(target: Target, host: str, model: str, x: Array) -> tuple[int, list[float]]:
    """The status of an HTTP inference, and what it said."""
    tensor = {"name": INPUT, "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    request = urllib.request.Request(
        f"http://{target.address}:{target.http}/v2/models/{model}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Host": host},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            outputs = {each["name"]: each["data"] for each in json.load(reply)["outputs"]}
            return reply.status, outputs[OUTPUT]
    except urllib.error.HTTPError as error:
        return error.code, []


def test_a_plain_name_is_that_of_the_namespace_that_the_host_names(
    two: tuple[Service, Service],
) -> None:
    mine, other = two
    x = example()
    for service, file in ((mine, MINE), (other, THEIRS)):
        expected = answer(file, x).ravel().tolist()
        for host, model in (
            (service.host, "digits"),
            (service.host, service.served_name),
            ("anything.example.com", service.served_name),
        ):
            status, said = ask(service.target(), host, model, x)
            assert status == 200
            assert said == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("host", ["", "digits", "digits.nobody.svc", "10.0.0.1", "x" * 300])
def test_a_host_that_names_no_namespace_makes_a_plain_name_nobodys(
    two: tuple[Service, Service], host: str
) -> None:
    status, _ = ask(two[0].target(), host, "digits", example())
    assert status in (400, 404)


def in_container(system: Installation, pod: Object, container: str, *command: str) -> str:
    name = pod["metadata"]["name"]
    return system.kubectl(
        "exec", name, f"--namespace={SYSTEM}", f"--container={container}", "--", *command
    )


def test_a_server_has_no_token_and_knows_no_api_server(installed: Installation) -> None:
    (pod, *_) = installed.pods(RUNTIME)
    script = (
        "import os,pathlib;"
        f"print(pathlib.Path('{TOKEN}').exists(),"
        "[p for p in pathlib.Path('/').glob('var/run/secrets/**/*')],"
        "[p for p in pathlib.Path('/state').glob('*')] if os.path.exists('/state') else [])"
    )
    assert in_container(installed, pod, "server", "python", "-c", script).split() == [
        "False",
        "[]",
        "[]",
    ]
    assert in_container(installed, pod, "agent", "cat", f"{TOKEN}/token")


def test_a_server_writes_neither_models_nor_its_own_files(installed: Installation) -> None:
    (pod, *_) = installed.pods(RUNTIME)
    script = (
        "import os;"
        "print(os.getuid() != 0, [p for p in ('/', '/models', '/usr', '/var', os.getcwd())"
        " if os.access(p, os.W_OK)])"
    )
    assert in_container(installed, pod, "server", "python", "-c", script).split() == ["True", "[]"]


def test_a_token_of_a_runtime_pod_writes_the_status_of_its_own_node_only(
    installed: Installation,
) -> None:
    mine, other = installed.cluster.nodes
    token = in_container(installed, installed.runtime_pod(mine), "agent", "cat", f"{TOKEN}/token")
    agent = Client(installed.cluster.access, token.strip())

    def status(node: str) -> Object:
        head = {"apiVersion": "tessera.dev/v1alpha1", "kind": "RuntimeNode"}
        return {**head, "metadata": {"name": node}, "status": {"agentVersion": "forged"}}

    try:
        with pytest.raises(Refused, match="node"):
            agent.apply(status(other), "status", dry=True)
        agent.apply(status(mine), "status", dry=True)
        spec = {**status(mine), "spec": {"epoch": 10**6}}
        del spec["status"]
        with pytest.raises(Refused) as refused:
            agent.apply(spec, dry=True)
        assert refused.value.code == 403
        for path in ("secrets", f"namespaces/{SYSTEM}/secrets", f"namespaces/{SYSTEM}/pods"):
            with pytest.raises(Refused) as refused:
                agent.call("GET", f"/api/v1/{path}")
            assert refused.value.code == 403
    finally:
        agent.close()


def test_knowing_a_digest_gives_nothing(
    installed: Installation, namespace: str, two: tuple[Service, Service]
) -> None:
    """The node has the file: it is another namespace's, whose source this one does not reach."""
    digest = two[0].document()["status"]["members"][0]["digest"]
    thief = real_service(namespace, "thief", {"only": f"{installed.store.prefix}nowhere.onnx"})
    thief["spec"]["members"][0]["model"]["digest"] = digest
    installed.apply(thief)
    service = installed.service(namespace, "thief")

    def is_told() -> bool:
        conditions = service.document().get("status", {}).get("conditions", ())
        words = "nowhere.onnx: no such file"
        return any(words in each.get("message", "") for each in conditions)

    installed.wait("it is told that its source has no such model", is_told)
    assert service.nodes() == set()
    assert ask(two[0].target(), service.host, service.served_name, example())[0] == 404
    two[0].wait_until_serving()


def test_a_secret_is_read_only_where_its_namespace_has_opted_in(
    installed: Installation, namespace: str
) -> None:
    uri = installed.store.put(f"{namespace}/m.onnx", MINE)
    document = real_service(namespace, "digits", {"only": uri})
    document["spec"]["members"][0]["model"]["secretRef"] = {"name": "store"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "store", "namespace": namespace},
        "stringData": {"authorization": "Bearer hunter2"},
    }
    installed.apply(secret, document)
    service = installed.service(namespace, "digits")
    installed.wait(
        "it is told what the namespace has to do",
        lambda: "tessera-model-credentials" in json.dumps(service.document().get("status", {})),
    )
    assert service.nodes() == set()
    installed.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "tessera", "namespace": namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "tessera-model-credentials",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "tessera-agent", "namespace": SYSTEM}],
        }
    )
    service.wait_until_serving(120.0)
    said = installed.kubectl(
        "get", "msvc,rnode,mprof,pplan,events", "--all-namespaces", "--output=yaml"
    )
    assert "hunter2" not in said
