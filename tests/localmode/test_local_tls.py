"""`tessera serve` over TLS, as a user runs it."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path

from support.certificates import Authority
from support.local import TESSERA
from support.model_files import ModelFile
from support.server import wait_until

SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: scaled, namespace: vision}
spec:
  members:
  - {name: double, model: {uri: "file://./double.py", format: Python}, batch: {max: 2}}
  slo: {objectives: [{target: 500ms, percent: "99"}]}
"""


def test_a_service_is_served_over_tls_and_its_address_says_so(tmp_path: Path):
    ModelFile(tmp_path / "double.py", scale=2.0)
    service = tmp_path / "service.yaml"
    service.write_text(SERVICE)
    authority = Authority(tmp_path)
    pair, client = authority.issue("server"), authority.issue("client")
    state, log = tmp_path / "state", tmp_path / "serve.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [
                *(*TESSERA, "serve", "-f", str(service), f"--state-dir={state}"),
                *("--http=0", "--grpc=0", "--metrics=0"),
                *(f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}"),
                f"--tls-client-ca={authority.file}",
            ],
            stdout=written,
            stderr=written,
        )
    try:
        wait_until(
            lambda: "ready: " in log.read_text() or process.poll() is not None, log.read_text
        )
        status = subprocess.run(
            [*TESSERA, "status", f"--state-dir={state}", "-o", "json"],
            capture_output=True,
            check=True,
            timeout=60,
        )
        scheme, _, address = json.loads(status.stdout)["http"].partition("://")
        assert scheme == "https"
        connection = http.client.HTTPSConnection(address, context=authority.trusting(client))
        given = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        connection.request("POST", "/v2/models/scaled/infer", json.dumps({"inputs": [given]}))
        [output] = json.loads(connection.getresponse().read())["outputs"]
        connection.close()
        assert output["data"] == [2, 4, 6, 8]
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
