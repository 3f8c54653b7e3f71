"""Where models may come from, and as whom they are read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tessera_runtime.models.credentials import storage_options
from tessera_runtime.models.errors import CredentialsInvalid
from tessera_runtime.models.guard import METADATA, forbidden


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("8.8.8.8", None),
        ("10.0.0.7", None),
        ("172.16.3.4", None),
        ("192.168.1.1", None),
        ("2600::1", None),
        ("fd12:3456::1", None),
        ("169.254.169.254", "link-local"),
        ("169.254.170.2", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("metadata.google.internal", "not an IP address"),
    ],
)
def test_addresses_that_models_may_not_come_from(address: str, why: str | None) -> None:
    found = forbidden(address, allow_loopback=False)
    assert found is None if why is None else found is not None and why in found


def test_loopback_can_be_allowed_and_metadata_cannot() -> None:
    assert forbidden("127.0.0.1", allow_loopback=True) is None
    for network in METADATA:
        assert forbidden(str(network.network_address), allow_loopback=True) is not None


GUARDED = """
import sys, tempfile, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import FetchError
from tessera_runtime.models.guard import guard

class Redirects(BaseHTTPRequestHandler):
    def log_message(self, *_): ...
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.end_headers()
    do_HEAD = do_GET

server = HTTPServer(("127.0.0.1", 0), Redirects)
threading.Thread(target=server.serve_forever, daemon=True).start()
guard(allow_loopback=sys.argv[1] == "allow")
uri = sys.argv[2].replace("SERVER", f"127.0.0.1:{server.server_port}")
options = {"anon": True, "endpoint_url": "http://169.254.169.254"} if uri.startswith("s3") else None

def fetch():
    try:
        ModelCache(tempfile.mkdtemp(), 1 << 20, pause=lambda _: None).fetch(uri, None, options)
    except FetchError as error:
        print(type(error).__name__, error)

thread = threading.Thread(target=fetch)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("loopback", "uri", "said"),
    [
        ("deny", "http://SERVER/m.onnx", "127.0.0.1, a loopback address"),
        ("deny", "http://localhost:1/m.onnx", "a loopback address"),
        ("allow", "http://SERVER/m.onnx", "169.254.169.254, a link-local address"),
        ("allow", "http://169.254.169.254/m.onnx", "169.254.169.254, a link-local address"),
        ("allow", "s3://bucket/m.onnx", "169.254.169.254, a link-local address"),
    ],
    ids=["address", "name", "redirect", "metadata", "another store"],
)
def test_a_guarded_process_fetches_from_no_forbidden_address(
    loopback: str, uri: str, said: str
) -> None:
    """In a process of its own: the guard cannot be taken back."""
    found = subprocess.run(
        [sys.executable, "-c", GUARDED, loopback, uri],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert found.stdout.startswith("AddressForbidden"), found
    assert said in found.stdout


def test_without_a_secret_every_store_is_read_as_nobody() -> None:
    assert storage_options("https", None) == {}
    assert storage_options("s3", None) == {"anon": True}
    assert storage_options("gs", None) == {"token": "anon"}
    assert storage_options("az", None) == {"anon": True}
    assert storage_options("hf", None) == {"token": False}


@pytest.mark.parametrize(
    ("scheme", "secret", "options"),
    [
        ("https", {"authorization": "Bearer t"}, {"headers": {"Authorization": "Bearer t"}}),
        (
            "http",
            {"username": "u", "password": "p"},
            {"headers": {"Authorization": "Basic dTpw"}},
        ),
        (
            "s3",
            {
                "AWS_ACCESS_KEY_ID": "k",
                "AWS_SECRET_ACCESS_KEY": "s",
                "AWS_SESSION_TOKEN": "t",
                "AWS_ENDPOINT_URL": "https://store",
                "AWS_REGION": "eu",
            },
            {
                "key": "k",
                "secret": "s",
                "token": "t",
                "endpoint_url": "https://store",
                "client_kwargs": {"region_name": "eu"},
            },
        ),
        (
            "s3",
            {"AWS_ENDPOINT_URL": "https://store"},
            {"anon": True, "endpoint_url": "https://store"},
        ),
        (
            "gs",
            {"gcloud-application-credentials.json": json.dumps({"type": "service_account"})},
            {"token": {"type": "service_account"}},
        ),
        (
            "az",
            {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "k"},
            {"account_name": "a", "account_key": "k", "anon": False},
        ),
        ("hf", {"HF_TOKEN": "t"}, {"token": "t"}),
    ],
)
def test_a_secret_speaks_for_its_own_scheme(scheme: str, secret: dict, options: dict) -> None:
    assert storage_options(scheme, secret) == options


@pytest.mark.parametrize(
    ("scheme", "secret", "words"),
    [
        ("s3", {"HF_TOKEN": "hunter2"}, "found the keys HF_TOKEN; s3:// takes AWS_ACCESS_KEY_ID"),
        ("s3", {}, "found the keys none"),
        ("s3", {"AWS_ACCESS_KEY_ID": "hunter2"}, "found no AWS_SECRET_ACCESS_KEY"),
        ("https", {"username": "hunter2"}, "found no password"),
        (
            "gs",
            {"gcloud-application-credentials.json": '{"type": "external_account"}'},
            "service_account",
        ),
        ("oci", {"a": "hunter2"}, "takes no credentials"),
    ],
)
def test_a_secret_that_does_not_fit_is_said_without_its_values(
    scheme: str, secret: dict, words: str
) -> None:
    with pytest.raises(CredentialsInvalid) as caught:
        storage_options(scheme, secret)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
