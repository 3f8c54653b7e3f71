"""The chart on a real API server: everything it renders is admitted, and it is installed, upgraded and removed."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from e2e.chart import CHART, NAMESPACE, VALUES, Client, Object, Refused, helm, named, rendered
from e2e.native.control_plane import control_plane
from e2e.native.processes import Process, free_ports, wait_until

from tessera_core.api import RuntimePool
from tessera_operator.pools import Images, Installation, deployment

CRDS = sorted((CHART.parents[1] / "crds").glob("*.yaml"))
METADATA_SERVERS = ("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fe80::a9fe:a9fe")
POD_SECURITY = {"pod-security.kubernetes.io/enforce": "restricted"}
SERVICE = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "ModelService",
    "metadata": {"name": "digits", "namespace": "default"},
    "spec": {
        "members": [{"name": "cnn", "model": {"uri": "https://models/cnn.onnx", "format": "ONNX"}}],
        "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
    },
}
HEALTH = """
import signal, sys
from tessera_operator.health import Health

Health(int(sys.argv[1])).start()
signal.pause()
"""


class Place:
    """A fresh API server with the release's namespace, and helm's way to it."""

    def __init__(self, admin: Client, kubeconfig: Path) -> None:
        self.admin = admin
        self._kubeconfig = kubeconfig

    def helm(self, *arguments: str) -> str:
        return helm(*arguments, f"--namespace={NAMESPACE}", kubeconfig=self._kubeconfig)

    def objects(self) -> list[Object]:
        """What the release holds."""
        return [
            each for each in yaml.safe_load_all(self.helm("get", "manifest", "tessera")) if each
        ]


@pytest.fixture
def place(binaries: Path, tmp_path: Path) -> Iterator[Place]:
    with control_plane(binaries, tmp_path) as access:
        admin = Client(access)
        labels = {"name": NAMESPACE, "labels": POD_SECURITY}
        admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": labels})
        yield Place(admin, access.kubeconfig(tmp_path / "kubeconfig"))
        admin.close()


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_passes_lint(values: str) -> None:
    said = helm("lint", "--strict", str(CHART), "--kube-version=1.30.0", *VALUES[values])
    assert "0 chart(s) failed" in said


def test_what_is_rendered_is_admitted(place: Place) -> None:
    """Pods too, which only their controllers would make, at the Pod Security level `restricted`."""
    place.helm("install", "tessera", str(CHART))
    # Whose ConfigMap of layouts the chart is told to make there.
    operator = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gpu-operator"}}
    place.admin.apply(operator)
    refused = {}
    for values in VALUES:
        for document in rendered(values):
            if document["kind"] == "ServiceAccount":
                place.admin.apply(document)  # of a hook: a pod is refused without its account
        for document in rendered(values):
            try:
                if place.admin.serves(document):
                    place.admin.apply(document, dry=True)
                else:
                    assert document["apiVersion"] == "monitoring.coreos.com/v1", document
                pod = pod_of(document)
                if pod is not None:
                    place.admin.create(pod, dry=True)
            except Refused as why:
                refused[values, document["kind"], document["metadata"]["name"]] = str(why)
    assert not refused, "\n".join(f"{which}: {why}" for which, why in refused.items())


def pod_of(document: Object) -> Object | None:
    """The pod that a controller would make."""
    template = document.get("spec", {}).get("template")
    if template is None:
        return None
    spec = dict(template["spec"])
    spec.pop("priorityClassName", None)  # made beside it, so not yet there in a dry run
    name = document["metadata"]["name"]
    metadata = {**template["metadata"], "name": f"{name}-pod", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_pod_security_refuses_a_pod_that_is_less_restricted(place: Place) -> None:
    """That the test above can fail."""
    place.helm("install", "tessera", str(CHART))
    pod = pod_of(named(rendered(), "Deployment", "tessera-activator"))
    assert pod is not None
    pod["spec"]["securityContext"] = {}
    with pytest.raises(Refused, match="violates PodSecurity"):
        place.admin.create(pod, dry=True)


def test_the_activator_is_a_runtime_pod() -> None:
    """The operator makes those; but for devices and what it calls the pod, they are the same."""
    pool = RuntimePool.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimePool",
            "metadata": {"name": "cpu", "uid": "1"},
            "spec": {"node": {"resources": {"cpu": "4"}}, "size": {"max": 1}},
        }
    )
    where = Installation(NAMESPACE, Images("gpu", "cpu"))
    made = deployment(pool, 1, where)["spec"]["template"]["spec"]
    ours = named(rendered(), "Deployment", "tessera-activator")["spec"]["template"]["spec"]
    for key in (
        "serviceAccountName",
        "automountServiceAccountToken",
        "securityContext",
        "enableServiceLinks",
    ):
        assert ours[key] == made[key]
    assert ours["terminationGracePeriodSeconds"] >= made["terminationGracePeriodSeconds"]
    volumes = [{each["name"]: each for each in pod["volumes"]} for pod in (ours, made)]
    assert volumes[0].keys() == volumes[1].keys()
    assert volumes[0]["token"] == volumes[1]["token"]
    pairs = zip(ours["containers"], made["containers"], strict=True)
    for mine, theirs in pairs:
        for key in ("name", "command", "ports", "securityContext", "volumeMounts"):
            assert mine.get(key) == theirs.get(key), (mine["name"], key)
        own = {each for each in mine["args"] if each not in theirs["args"]}
        assert own == {"server": {"--preload="}, "agent": {"--activator"}}[mine["name"]]
        lacking = {each.partition("=")[0] for each in set(theirs["args"]) - set(mine["args"])}
        assert lacking <= {"--preload"}


def test_the_token_is_in_the_agent_only() -> None:
    spec = named(rendered(), "Deployment", "tessera-activator")["spec"]["template"]["spec"]
    mounts = {
        container["name"]: {mount["name"] for mount in container["volumeMounts"]}
        for container in spec["containers"]
    }
    (tokens,) = (volume["name"] for volume in spec["volumes"] if "projected" in volume)
    assert spec["automountServiceAccountToken"] is False
    assert [name for name, mounted in mounts.items() if tokens in mounted] == ["agent"]
    assert mounts["agent"] & mounts["server"] == {"run", "models"}


@pytest.mark.parametrize("values", [name for name in VALUES if name != "least-values"])
def test_runtime_pods_reach_no_metadata_service(values: str) -> None:
    policy = named(rendered(values), "NetworkPolicy", "tessera-runtime")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    allowed = [
        peer["ipBlock"]
        for rule in policy["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer and rule["ports"][0]["port"] != 53
    ]
    assert allowed
    for each in METADATA_SERVERS:
        assert not any(reaches(block, each) for block in allowed), each
    assert values != "defaults" or any(reaches(block, "140.82.112.3") for block in allowed)


def reaches(block: dict[str, Any], address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found in ipaddress.ip_network(block["cidr"]) and not any(
        found in ipaddress.ip_network(each) for each in block.get("except", ())
    )


def test_a_peer_list_that_is_empty_lets_nobody_in() -> None:
    """An empty `from` would let everybody in."""
    for name in ("tessera-runtime", "tessera-operator"):
        for rule in named(rendered("closed-values"), "NetworkPolicy", name)["spec"]["ingress"]:
            assert rule["from"]
            assert all(set(peer) == {"podSelector"} for peer in rule["from"])


def test_nothing_may_write_nodes_by_default() -> None:
    granted = [
        rule
        for document in rendered()
        if document["kind"] in ("Role", "ClusterRole")
        for rule in document["rules"]
        if "nodes" in rule["resources"]
    ]
    assert granted
    assert all(set(rule["verbs"]) <= {"list", "watch"} for rule in granted)


def test_a_packaged_chart_is_the_same_chart(tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    (package,) = tmp_path.glob("*.tgz")
    arguments = ("--kube-version=1.34.0", f"--namespace={NAMESPACE}")
    assert helm("template", "tessera", str(package), *arguments) == helm(
        "template", "tessera", str(CHART), *arguments
    )


def test_install_upgrade_and_removal(place: Place, tmp_path: Path) -> None:
    node_kind = named_crd("runtimenodes")
    older = tmp_path / "older"
    shutil.copytree(CHART, older)
    crd = older / "files" / "crds" / "tessera.dev_runtimenodes.yaml"
    crd.write_text(crd.read_text().replace("shortNames: [rnode]", "shortNames: [oldnode]"))

    place.helm("install", "tessera", str(older))
    assert place.admin.read(node_kind)["spec"]["names"]["shortNames"] == ["oldnode"]
    place.admin.create(SERVICE)

    place.helm("upgrade", "tessera", str(CHART), "--set=operator.replicas=3")
    assert place.admin.read(node_kind)["spec"]["names"]["shortNames"] == ["rnode"]
    operator = named(rendered(), "Deployment", "tessera-operator")
    assert place.admin.read(operator)["spec"]["replicas"] == 3
    assert place.admin.exists(SERVICE)

    # No pod runs here, so not the hook either.
    held = place.objects()
    place.helm("uninstall", "tessera", "--no-hooks")
    left = [each for each in held if place.admin.exists(each)]
    assert {each["kind"] for each in left} == {"CustomResourceDefinition"}
    assert len(left) == len(CRDS)
    assert place.admin.exists(SERVICE)

    place.helm("install", "tessera", str(CHART), "--set=crds.keep=false")
    assert place.admin.exists(SERVICE)
    # As the operator does. A kind that was never listed has no storage yet, and an API server of 1.34 that is then told to
    # delete it says that it is initializing, for minutes.
    wait_until(lambda: all(lists(place, crd) for crd in CRDS), 30, "every kind can be listed")
    held = place.objects()
    place.helm("uninstall", "tessera", "--no-hooks")
    wait_until(lambda: not [each for each in held if place.admin.exists(each)], 30, "all is gone")


def lists(place: Place, crd: Path) -> bool:
    plural = crd.stem.partition("_")[2]
    try:
        place.admin.call("GET", f"/apis/{SERVICE['apiVersion']}/{plural}")
    except Refused:
        return False
    return True


def named_crd(plural: str) -> Object:
    return named(rendered(), "CustomResourceDefinition", f"{plural}.tessera.dev")


def test_a_second_installation_is_refused(place: Place) -> None:
    place.helm("install", "tessera", str(CHART))
    with pytest.raises(RuntimeError, match="cannot be imported into the current release"):
        place.helm("install", "another", str(CHART))


def test_a_pre_delete_hook_brings_its_own_rights_and_takes_them_away() -> None:
    hooks = [
        document
        for document in rendered()
        if document["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"
    ]
    assert {each["kind"] for each in hooks} == {
        *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Job")
    }
    job = named(hooks, "Job", "tessera-uninstall")
    for each in hooks:
        notes = each["metadata"]["annotations"]
        assert "hook-succeeded" in notes["helm.sh/hook-delete-policy"]
        if each is not job:
            assert int(notes["helm.sh/hook-weight"]) < int(
                job["metadata"]["annotations"]["helm.sh/hook-weight"]
            )


class Hook:
    """What the pod of a hook runs, run here: it needs an account's files, and addresses of Services."""

    def __init__(self, place: Place, folder: Path, container: Object) -> None:
        account = "/var/run/secrets/kubernetes.io/serviceaccount"
        self._source = container["args"][0].replace(account, str(folder))
        access = place.admin.access
        (folder / "token").write_text(access.token)
        (folder / "ca.crt").write_text(access.ca.read_text())
        url = urlsplit(access.url)
        server = {"KUBERNETES_SERVICE_HOST": url.hostname, "KUBERNETES_SERVICE_PORT": str(url.port)}
        self._environment = {**os.environ, **server}

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", self._source],
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            timeout=90,
        )


def test_the_pools_of_the_values_are_applied(place: Place, tmp_path: Path) -> None:
    place.helm("install", "tessera", str(CHART))
    job = named(rendered("everything-values"), "Job", "tessera-pools")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (pools,) = (each["value"] for each in container["env"] if each["name"] == "POOLS")
    (wanted,) = json.loads(pools)
    hook = Hook(place, tmp_path, container)

    assert hook.run(POOLS=json.dumps([wanted])).returncode == 0
    made = place.admin.read(wanted)
    assert made["spec"]["size"]["max"] == wanted["spec"]["size"]["max"]
    assert made["metadata"]["labels"]["tier"] == "production"
    wanted["spec"]["size"]["max"] += 1
    assert hook.run(POOLS=json.dumps([wanted])).returncode == 0
    again = place.admin.read(wanted)
    assert again["metadata"]["uid"] == made["metadata"]["uid"]
    assert again["spec"]["size"]["max"] == wanted["spec"]["size"]["max"]
    wanted["spec"]["size"]["max"] = -1
    refused = hook.run(POOLS=json.dumps([wanted]))
    assert refused.returncode
    assert "spec.size.max" in refused.stderr


def test_helm_test_fails_without_an_operator_or_its_kinds(place: Place, tmp_path: Path) -> None:
    (container,) = named(rendered(), "Pod", "tessera-test")["spec"]["containers"]
    hook = Hook(place, tmp_path, container)
    (port,) = free_ports(1)
    there = {
        "TESSERA_OPERATOR_SERVICE_HOST": "127.0.0.1",
        "TESSERA_OPERATOR_SERVICE_PORT": str(port),
    }
    with Process("health", [sys.executable, "-c", HEALTH, str(port)], tmp_path / "health.log"):
        wait_until(lambda: "Connection refused" not in hook.run(**there).stderr, 30, "it listens")
        assert "404" in hook.run(**there).stderr
        place.helm("install", "tessera", str(CHART))
        passed = hook.run(**there)
        assert passed.returncode == 0, passed.stderr
        assert "operator: 200 ok" in passed.stdout
    assert "Connection refused" in hook.run(**there).stderr
