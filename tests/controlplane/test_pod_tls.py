"""What runtime pods and their Services are with TLS: files, options, probes and ports that go together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.objects import pool, service
from tessera_operator.config import Gateway
from tessera_operator.pod_tls import Tls
from tessera_operator.pools import Images, Installation, deployment
from tessera_operator.routes import gateway_documents, service_document, url_of
from tessera_runtime.dispatch.main import parser

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))
ONE_WAY = Tls("runtime-tls")
MUTUAL = Tls("runtime-tls", "clients", "runtime.example")


def pod_with(tls: Tls | None) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(pool(), 1, replace(WHERE, tls=tls))["spec"]["template"][
        "spec"
    ]
    return spec


def server_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in pod["containers"] if each["name"] == "server")


@pytest.mark.parametrize("tls", [ONE_WAY, MUTUAL])
def test_every_file_that_the_server_is_told_is_mounted_into_it_alone(tls: Tls) -> None:
    pod = pod_with(tls)
    server = server_of(pod)
    mounted = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    secrets = {
        each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each
    }
    files = [
        arg.partition("=")[2] for arg in server["args"] if arg.startswith(("--tls", "--peer-ca"))
    ]
    assert {secrets[mounted[file.rpartition("/")[0]]] for file in files} == set(secrets.values())
    assert set(secrets.values()) == {tls.secret, tls.client_ca_secret} - {""}
    for other in pod["containers"]:
        if other is not server:
            assert not secrets.keys() & {mount["name"] for mount in other["volumeMounts"]}


def test_the_dispatcher_knows_all_of_its_options() -> None:
    args = [
        arg for arg in server_of(pod_with(MUTUAL))["args"] if arg.startswith(("--tls", "--peer"))
    ]
    needed = ["--http-fd=3", "--grpc-fd=4", "--control-fd=5", "--zygote=z", "--parent=1"]
    needed += ["--secret-digest=d", "--mps-root=m", "--artefacts=a"]
    found = parser().parse_args([*needed, *args])
    assert str(found.tls_client_ca) == "/etc/tessera/client-ca/ca.crt"
    assert found.peer_name == "runtime.example"


def test_probes_go_where_nobody_is_asked_for_a_certificate() -> None:
    for tls, port in ((None, "http"), (ONE_WAY, "metrics"), (MUTUAL, "metrics")):
        server = server_of(pod_with(tls))
        for probe in ("readinessProbe", "livenessProbe"):
            assert server[probe]["httpGet"]["port"] == port


def test_nothing_is_mounted_in_clear() -> None:
    pod = pod_with(None)
    assert not any("secret" in each for each in pod["volumes"])
    assert not any("tls" in arg or "peer" in arg for arg in server_of(pod)["args"])


def test_clients_find_https_where_they_expect_it() -> None:
    ports = {
        each["name"]: each for each in service_document(service("s"), tls=True)["spec"]["ports"]
    }
    assert (ports["http"]["port"], ports["http"]["targetPort"]) == (443, 8000)
    assert {each["appProtocol"] for each in ports.values()} == {"https"}
    assert url_of(service("s"), tls=True) == "https://s.vision.svc"
    gateway = Gateway("edge", "infra", "example.com")
    http, grpc = gateway_documents(service("s"), gateway, tls=True)
    backends = [each["spec"]["rules"][0]["backendRefs"][0]["port"] for each in (http, grpc)]
    assert backends == [443, 8001]
