"""TLS as docs/tls.md has it: Secrets that the chart is given, checked by clients of both protocols, and then renewed."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from cryptography import x509
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.native.certificates import Authority
from e2e.system.installation import ACTIVATOR, RUNTIME, Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Target
from e2e.system.models import INPUT, OUTPUT, Array, answer, classifier, example, mean
from e2e.system.services import Service, model_service

USERS = "audio"
MEMBERS = {"first": classifier(81, layers=30), "second": classifier(82, layers=30)}
SLEEPER = classifier(83)
X = example(2, seed=8)
TOGETHER = mean(tuple(MEMBERS.values()), X)
ROLLED_S = 240.0
"""Runtime pods are replaced one after another, and each drains first."""
READ_S = 150.0
"""Kubelets look at mounted Secrets every minute or so."""
ASK_S = 30.0


@dataclass(frozen=True)
class Keys:
    """Who signs for the servers, who for the clients, and who for neither."""

    servers: Authority
    clients: Authority
    strangers: Authority

    def renew(self, system: Installation) -> int:
        """Install a new certificate of the servers. Its serial number."""
        names = ("tessera-runtime", f"*.{USERS}.svc")
        certificate, key = self.servers.issue("runtime", hosts=names, calls=True)
        files = {
            "tls.crt": certificate.read_text(),
            "tls.key": key.read_text(),
            "ca.crt": self.servers.certificate.read_text(),
        }
        system.apply(secret("runtime-tls", "kubernetes.io/tls", files))
        return serial(certificate)


def serial(certificate: Path) -> int:
    """What tells one certificate from another."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def secret(name: str, kind: str, files: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": SYSTEM},
        "type": kind,
        "stringData": files,
    }


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    return Keys(*(Authority(folder / name) for name in ("servers", "clients", "strangers")))


@pytest.fixture(scope="module")
def system(
    release: Installation, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A release in clear that is told to use TLS, and to ask clients for certificates."""
    keys.renew(release)
    trusted = [each.certificate.read_text() for each in (keys.servers, keys.clients)]
    release.apply(secret("client-ca", "Opaque", {"ca.crt": "".join(trusted)}))
    tls = {"secretName": "runtime-tls", "clientCASecretName": "client-ca"}
    release.upgrade(tmp_path_factory.mktemp("values"), runtime={"tls": tls})
    release.wait("runtime pods with certificates", lambda: has_rolled(release), ROLLED_S)
    with one_namespace(release, USERS):
        yield release


def has_rolled(system: Installation) -> bool:
    """Whether every node has a runtime pod with certificates, and none without."""
    found = system.pods(RUNTIME)
    nodes = {pod["spec"]["nodeName"] for pod in found}
    return nodes == set(system.cluster.nodes) and all(map(is_ready_with_tls, found))


def is_ready_with_tls(pod: Object) -> bool:
    (server,) = (each for each in pod["spec"]["containers"] if each["name"] == "server")
    ready = all(each["ready"] for each in pod["status"]["containerStatuses"])
    return ready and any(each.startswith("--tls-cert=") for each in server["args"])


@dataclass(frozen=True)
class Client:
    """Who trusts one authority and shows a certificate of another, or none."""

    trusts: Authority
    shown: tuple[Path, Path] | None = None

    def over_http(self, target: Target) -> Array:
        """Raises OSError or HTTPException."""
        with closing(self.connection(target)) as connection:
            return ask(connection, target)

    def connection(self, target: Target) -> http.client.HTTPSConnection:
        """Of a client that calls the server by its name. Raises OSError."""
        context = self._context()
        connection = http.client.HTTPSConnection(target.host, context=context, timeout=ASK_S)
        connection.sock = self._open(context, target, target.http)
        return connection

    def seen(self, target: Target) -> set[int]:
        """Serial numbers of the certificates on both ports. Raises OSError."""
        found = set()
        for port in (target.http, target.grpc):
            with self._open(self._context(), target, port) as sock:
                shown = sock.getpeercert()
                assert shown is not None
                found.add(int(str(shown["serialNumber"]), 16))
        return found

    def over_grpc(self, target: Target) -> Array:
        """Raises InferenceServerException."""
        certificate, key = (each.read_bytes() for each in self.shown) if self.shown else (None,) * 2
        trusted = self.trusts.certificate.read_bytes()
        options = [
            ("grpc.ssl_target_name_override", target.host),
            # Or a connection of another client would be used.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        with grpc_client.InferenceServerClient(
            f"{target.address}:{target.grpc}",
            ssl=True,
            creds=grpc.ssl_channel_credentials(trusted, key, certificate),
            channel_args=options,
        ) as client:
            return infer(client, target)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.trusts.certificate)
        if self.shown is not None:
            context.load_cert_chain(*self.shown)
        return context

    def _open(self, context: ssl.SSLContext, target: Target, port: int) -> ssl.SSLSocket:
        plain = socket.create_connection((target.address, port), ASK_S)
        return context.wrap_socket(plain, server_hostname=target.host)


def ask(connection: http.client.HTTPConnection, target: Target) -> Array:
    """Infer over a connection that is kept."""
    tensor = {"name": INPUT, "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]})
    connection.request("POST", f"/v2/models/{target.model}/infer", body, {"Host": target.host})
    reply = connection.getresponse()
    said = reply.read()
    assert reply.status == 200, said
    outputs = {each["name"]: each for each in json.loads(said)["outputs"]}
    return np.array(outputs[OUTPUT]["data"], np.float32).reshape(outputs[OUTPUT]["shape"])


def infer(client: grpc_client.InferenceServerClient, target: Target) -> Array:
    given = grpc_client.InferInput(INPUT, list(X.shape), "FP32")
    given.set_data_from_numpy(X)
    found = client.infer(target.served_name, [given], client_timeout=ASK_S)
    result: Array = found.as_numpy(OUTPUT)
    return result


@pytest.fixture(scope="module")
def good(keys: Keys) -> Client:
    return Client(keys.servers, keys.clients.issue("client"))


def everywhere(service: Service) -> list[Target]:
    """The service by its name, and at each of its pods."""
    through = secured(service)
    pods = [service.target(pod["status"]["podIP"]) for pod in service.system.pods(RUNTIME)]
    assert len(pods) == 2
    return [through, *pods]


def secured(service: Service) -> Target:
    """By its name."""
    found = service.target()
    return Target(found.address, found.host, found.model, found.served_name, 443, found.grpc)


@pytest.fixture(scope="module")
def pair(system: Installation, good: Client) -> Service:
    """One member on each node, so that every answer needs a call between servers."""
    uris = {name: system.store.put(f"{name}.onnx", file) for name, file in MEMBERS.items()}
    system.apply(model_service(USERS, "pair", uris, scaling={"maxReplicas": 1}))
    service = system.service(USERS, "pair")
    service.wait_until_settled()
    system.wait("each member is on a node of its own", lambda: parted(service), 120.0)
    service.wait_until_settled()
    system.wait("all pods answer", lambda: [good.over_http(each) for each in everywhere(service)])
    return service


def parted(service: Service) -> bool:
    """Whether they are; else more is asked than one node is planned to be good for, with batches of its present size."""
    homes = service.homes()
    if len(homes) == len(MEMBERS) and len(service.nodes()) == 2:
        return True
    if service.says("Planned") and service.says("Progressing", "False"):
        service.change(traffic={"requestsPerSecond": int(1.3 * service.most_per_second())})
    return False


@pytest.mark.timeout(240, func_only=True)
def test_clients_check_the_server_and_are_checked(
    system: Installation, pair: Service, keys: Keys, good: Client
) -> None:
    for target in everywhere(pair):
        for found in (good.over_http(target), good.over_grpc(target)):
            np.testing.assert_allclose(found, TOGETHER, atol=1e-4)

    for target in everywhere(pair):
        # The server is not who it should be.
        misled = Client(keys.strangers, good.shown)
        elsewhere = Target(target.address, "pair.vision.svc", "", "", target.http, target.grpc)
        for client, place in ((misled, target), (good, elsewhere)):
            with pytest.raises(ssl.SSLCertVerificationError):
                client.over_http(place)
            with pytest.raises(grpc_client.InferenceServerException, match="UNAVAILABLE"):
                client.over_grpc(place)
        # The client is not.
        for shown in (None, keys.strangers.issue("stranger")):
            client = Client(keys.servers, shown)
            with pytest.raises((OSError, http.client.HTTPException)):
                client.over_http(target)
            with pytest.raises(grpc_client.InferenceServerException, match="UNAVAILABLE"):
                client.over_grpc(target)
        # Nothing is said in clear.
        in_clear = http.client.HTTPConnection(target.address, target.http, timeout=ASK_S)
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(in_clear, target)
        in_clear.close()
        with (
            grpc_client.InferenceServerClient(f"{target.address}:{target.grpc}") as channel,
            pytest.raises(grpc_client.InferenceServerException, match="UNAVAILABLE"),
        ):
            infer(channel, target)


@pytest.mark.timeout(300, func_only=True)
def test_a_renewed_certificate_is_shown_and_ends_neither_pods_nor_connections(
    system: Installation, pair: Service, keys: Keys, good: Client
) -> None:
    pods = restarts(system)
    target = secured(pair)
    connection = good.connection(target)
    kept = connection.sock
    before = good.seen(target)
    after = {keys.renew(system)}
    assert before != after

    activators = [pair.target(pod["status"]["podIP"]) for pod in system.pods(ACTIVATOR)]

    def is_renewed() -> bool:
        np.testing.assert_allclose(ask(connection, target), TOGETHER, atol=1e-4)
        return all(good.seen(each) == after for each in (*everywhere(pair), *activators))

    system.wait("the new certificate", is_renewed, READ_S)
    assert connection.sock is kept
    connection.close()
    for each in everywhere(pair):
        np.testing.assert_allclose(good.over_grpc(each), TOGETHER, atol=1e-4)
    assert restarts(system) == pods


def restarts(system: Installation) -> dict[str, int]:
    """By pod how often its containers were started again."""
    return {
        pod["metadata"]["uid"]: sum(
            each["restartCount"] for each in pod["status"]["containerStatuses"]
        )
        for selector in (RUNTIME, ACTIVATOR)
        for pod in system.pods(selector)
    }


@pytest.mark.timeout(240, func_only=True)
def test_a_request_under_tls_wakes_a_service_that_sleeps(
    system: Installation, good: Client
) -> None:
    uri = system.store.put("sleeper.onnx", SLEEPER)
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": "6s"}
    system.apply(model_service(USERS, "sleeper", {"only": uri}, scaling=scaling))
    service = system.service(USERS, "sleeper")

    def is_asleep() -> bool:
        activators = {pod["status"]["podIP"] for pod in system.pods(ACTIVATOR)}
        asleep = service.says("Ready", "True", "ScaledToZero") and not service.nodes()
        return asleep and bool(service.addresses()) and service.addresses() <= activators

    for over in (good.over_http, good.over_grpc):
        system.wait(f"{service.served_name} sleeps", is_asleep, 90.0)
        np.testing.assert_allclose(over(secured(service)), answer(SLEEPER, X), atol=1e-4)
