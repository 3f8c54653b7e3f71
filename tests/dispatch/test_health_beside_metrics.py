"""Probes of Kubernetes show no certificate: health is also told where metrics are, in clear."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from support.model_files import ModelFile
from support.server import running_server
from support.targets import member, service
from support.targets import server as target


def test_health_is_that_of_the_server(tmp_path: Path):
    with running_server(tmp_path / "run") as server:
        port = server.ports().metrics

        def status(path: str) -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert status("/v2/health/live") == 200
        assert status("/v2/health/ready") == 503, "nobody has said what is wanted"
        file = ModelFile(tmp_path / "model.py")
        server.apply(target(service("m", member("a", file))))
        assert status("/v2/health/ready") == 200
        assert status("/metrics") == 200
