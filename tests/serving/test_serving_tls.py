"""Real clients over TLS: with and without certificates of their own, refused ones, and files that are replaced."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from support.certificates import Authority, Pair, serial
from support.clients import infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.peers import forwarded, peers
from support.server import (
    PATIENCE_S,
    Server,
    fds,
    running_server,
    supervisor_command,
    wait_until,
)
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


def serve(run_dir: Path, pair: Pair, *further: str):
    files = f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}"
    return running_server(run_dir, *files, *further)


@pytest.fixture(scope="module")
def file(folder: Path) -> ModelFile:
    return ModelFile(folder / "model.py", scale=2.0)


def one(file: ModelFile):
    return target(service("m", member("a", file, max_batch=100_000)))


@pytest.fixture(scope="module")
def server(authority: Authority, folder: Path, file: ModelFile) -> Iterator[Server]:
    """With a certificate, and for anybody."""
    with serve(folder / "open", authority.issue("server")) as server:
        server.apply(one(file))
        yield server


@pytest.fixture(scope="module")
def closed(authority: Authority, folder: Path, file: ModelFile) -> Iterator[Server]:
    """Only for clients with a certificate."""
    mutual = f"--tls-client-ca={authority.file}"
    with serve(folder / "closed", authority.issue("closed-server"), mutual) as server:
        server.apply(one(file))
        yield server


def ask_http(server: Server, context: ssl.SSLContext, x: np.ndarray) -> np.ndarray:
    port = server.ports().http
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)
    try:
        return ask_again(connection, x)
    finally:
        connection.close()


def ask_again(connection: http.client.HTTPSConnection, x: np.ndarray) -> np.ndarray:
    given = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [given]}))
    [output] = json.loads(connection.getresponse().read())["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def ask_triton_http(server: Server, context: ssl.SSLContext, x: np.ndarray) -> np.ndarray:
    url = f"127.0.0.1:{server.ports().http}"
    with http_client.InferenceServerClient(
        url, ssl=True, ssl_context_factory=lambda: context, network_timeout=PATIENCE_S
    ) as client:
        return infer_http(client, MODEL, x).as_numpy("y")


def ask_triton_grpc(
    server: Server, authority: Authority, x: np.ndarray, pair: Pair | None = None
) -> np.ndarray:
    key, certificate = pair.read() if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), key, certificate)
    # A pool of its own, or a connection that another certificate has opened would be used.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc_client.InferenceServerClient(
        f"127.0.0.1:{server.ports().grpc}", creds=credentials, channel_args=options
    ) as client:
        return infer_grpc(client, MODEL, x, client_timeout=PATIENCE_S).as_numpy("y")


@pytest.mark.parametrize("count", [1, 60_000])
def test_clients_of_both_protocols_are_answered(
    server: Server, authority: Authority, file: ModelFile, count: int
):
    """Long tensors too: they are received in place."""
    x = rows(3, count)
    for y in (
        ask_http(server, authority.trusting(), x),
        ask_triton_http(server, authority.trusting(), x),
        ask_triton_grpc(server, authority, x),
    ):
        np.testing.assert_array_equal(y, file(x))


def test_grpc_is_negotiated_and_old_versions_of_tls_are_refused(
    server: Server, authority: Authority
):
    context = authority.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    for port, protocol in ((server.ports().grpc, "h2"), (server.ports().http, "http/1.1")):
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() == protocol
            assert wrapped.version() == "TLSv1.3"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(authority.file)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", server.ports().http), PATIENCE_S) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(sock, server_hostname="localhost")


def test_who_speaks_no_tls_is_sent_away_and_the_others_are_served(
    server: Server, authority: Authority, file: ModelFile
):
    for port in (server.ports().http, server.ports().grpc):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                assert not sock.recv(4096).startswith(b"HTTP/1.1 200")
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    np.testing.assert_array_equal(ask_http(server, authority.trusting(), rows(1)), file(rows(1)))


def test_a_thousand_handshakes_that_are_given_up_leave_nothing(
    server: Server, authority: Authority, file: ModelFile
):
    ports = server.ports()
    before = len(fds(server.dispatcher_pid))
    for number in range(1000):
        port = ports.grpc if number % 2 else ports.http
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01"[: number % 9])
            if number % 4 == 0:  # reset instead of an orderly end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    np.testing.assert_array_equal(ask_http(server, authority.trusting(), rows(1)), file(rows(1)))
    wait_until(lambda: len(fds(server.dispatcher_pid)) <= before, "the connections closed")


def test_a_refused_grpc_connection_can_read_why_and_ends(server: Server, authority: Authority):
    """TLS cannot close one direction only."""
    context = authority.trusting()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.ports().grpc), PATIENCE_S) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(b"x" * 64)
        told = b""
        while received := wrapped.recv(4096):
            told += received
        assert b"not an HTTP/2 connection preface" in told


def test_a_client_with_a_certificate_is_answered(
    closed: Server, authority: Authority, file: ModelFile
):
    client, x = authority.issue("client"), rows(5)
    for y in (
        ask_http(closed, authority.trusting(client), x),
        ask_triton_http(closed, authority.trusting(client), x),
        ask_triton_grpc(closed, authority, x, client),
    ):
        np.testing.assert_array_equal(y, file(x))


@pytest.fixture(params=["none", "expired", "of another authority"])
def refused(
    request: pytest.FixtureRequest, authority: Authority, tmp_path: Path
) -> Iterator[Pair | None]:
    match request.param:
        case "expired":
            return authority.issue("expired", lasts=-timedelta(minutes=1))
        case "of another authority":
            return Authority(tmp_path, "other").issue("stranger")
    return None


def test_a_client_without_a_valid_certificate_is_refused(
    closed: Server, authority: Authority, refused: Pair | None
):
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask_http(closed, authority.trusting(refused), rows(1))
    with pytest.raises(Exception, match="UNAVAILABLE"):
        ask_triton_grpc(closed, authority, rows(1), refused)


def test_a_server_of_another_authority_is_not_trusted(server: Server, tmp_path: Path):
    other = Authority(tmp_path, "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        ask_http(server, other.trusting(), rows(1))
    with pytest.raises(Exception, match="UNAVAILABLE"):
        ask_triton_grpc(server, other, rows(1))


def shown(server: Server, port: int) -> int:
    """The serial number of the certificate that new connections see."""
    return serial(ssl.get_server_certificate(("127.0.0.1", port)).encode())


def test_replaced_certificates_are_used_and_connections_live_on(
    authority: Authority, tmp_path: Path, file: ModelFile
):
    pair = authority.issue("rotated")
    with serve(tmp_path / "run", pair) as server:
        server.apply(one(file))
        ports = server.ports()
        context = authority.trusting()
        connection = http.client.HTTPSConnection("127.0.0.1", ports.http, context=context)
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        with grpc_client.InferenceServerClient(
            f"127.0.0.1:{ports.grpc}", creds=credentials
        ) as channel:
            for y in (
                ask_again(connection, rows(1)),
                infer_grpc(channel, MODEL, rows(1)).as_numpy("y"),
            ):
                np.testing.assert_array_equal(y, file(rows(1)))
            sock = connection.sock
            assert shown(server, ports.http) == serial(pair.certificate)

            # Half of a replacement: a key without its certificate changes nothing.
            first, following = serial(pair.certificate), authority.issue("following")
            second = following.certificate.read_bytes()
            pair.key.write_bytes(following.key.read_bytes())
            wait_until(lambda: "are not used" in server.log(), "the unusable pair noticed")
            assert shown(server, ports.http) == shown(server, ports.grpc) == first

            pair.certificate.write_bytes(second)
            for port in (ports.http, ports.grpc):
                wait_until(lambda p=port: shown(server, p) == serial(second), "the new certificate")
            np.testing.assert_array_equal(ask_again(connection, rows(2)), file(rows(2)))
            assert connection.sock is sock, "the connection was not ended"
            y = infer_grpc(channel, MODEL, rows(2)).as_numpy("y")
            np.testing.assert_array_equal(y, file(rows(2)))
        connection.close()


def test_an_authority_that_is_replaced_opens_to_its_clients_only(tmp_path: Path, file: ModelFile):
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(old.file.read_bytes())
    mine, yours = old.issue("mine"), new.issue("yours")
    pair = old.issue("server")
    with serve(tmp_path / "run", pair, f"--tls-client-ca={trusted}") as server:
        server.apply(one(file))
        np.testing.assert_array_equal(ask_http(server, old.trusting(mine), rows(1)), file(rows(1)))
        trusted.write_bytes(new.file.read_bytes())

        def taken(client: Pair) -> bool:
            try:
                ask_http(server, old.trusting(client), rows(1))
            except (OSError, http.client.HTTPException):
                return False
            return True

        wait_until(lambda: taken(yours), "clients of the new authority taken")
        assert not taken(mine)


def test_servers_prove_themselves_to_each_other(
    authority: Authority, tmp_path: Path, file: ModelFile
):
    """One has no instance and asks the other; a third one, whose certificate is of somebody else, is not asked."""
    pair = authority.issue("node")
    mutual = f"--tls-client-ca={authority.file}", f"--peer-ca={authority.file}"
    strange = Authority(tmp_path, "strange")
    foreign = f"--tls-client-ca={strange.file}", f"--peer-ca={strange.file}"
    with (
        serve(tmp_path / "first", pair, *mutual) as first,
        serve(tmp_path / "second", pair, *mutual) as second,
        serve(tmp_path / "third", strange.issue("node3"), *foreign) as third,
    ):
        second.apply(one(file))
        third.apply(one(file))
        asked = member("a", file, instances=0, peers=peers(second), max_batch=100_000)
        first.apply(target(service("m", asked)))
        client = authority.trusting(authority.issue("client"))
        first.wait_for(lambda r: r.services[0].ready, "the peer found")
        np.testing.assert_array_equal(ask_http(first, client, rows(2)), file(rows(2)))
        assert forwarded(first, "a") == 1

        stranger = member("a", file, instances=0, peers=peers(third), max_batch=100_000)
        first.apply(target(service("m", stranger)), wait=False)
        first.wait_for(lambda r: not r.services[0].ready, "the stranger not taken for a peer")

        # The certificates of all of them are replaced: calls go on.
        first.apply(target(service("m", asked)), wait=False)
        authority.issue("node")
        for server in (first, second):
            wait_until(lambda s=server: "have changed" in s.log(), "the replacement noticed")
        first.wait_for(lambda r: r.services[0].ready, "the peer found again")
        np.testing.assert_array_equal(ask_http(first, client, rows(4)), file(rows(4)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tls-cert={good}.crt"], "needs its key"),
        (["--tls-client-ca={ca}"], "server with one"),
        (["--tls-cert={good}.crt", "--tls-key=/nowhere"], "cannot read /nowhere"),
        (["--tls-cert={good}.crt", "--tls-key={other}.key"], "no certificate with its key"),
        (["--tls-cert={ca}", "--tls-key={ca}"], "no certificate with its key"),
        (
            ["--tls-cert={good}.crt", "--tls-key={good}.key", "--tls-client-ca={good}.key"],
            "no certificates",
        ),
    ],
)
def test_files_of_no_use_end_the_server_and_are_named(
    authority: Authority, folder: Path, tmp_path: Path, options: list[str], reason: str
):
    for name in ("good", "other"):
        authority.issue(name)
    names = {"good": folder / "good", "other": folder / "other", "ca": authority.file}
    command = supervisor_command(tmp_path / "run", [each.format(**names) for each in options])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 78, ended.stderr
    assert reason in ended.stderr
