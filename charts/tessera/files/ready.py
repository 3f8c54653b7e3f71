"""`helm test`: the operator says that it is ready, and the API server knows ModelServices."""

import json
import os
import ssl
import urllib.request
from pathlib import Path


def address(service: str) -> str:
    """Host and port of a Service. Every pod is told, also where there is no cluster DNS."""
    host = os.environ[f"{service}_SERVICE_HOST"]
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{os.environ[f'{service}_SERVICE_PORT']}"


account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
with urllib.request.urlopen(f"http://{address('TESSERA_OPERATOR')}/readyz", timeout=10) as answer:
    print("operator:", answer.status, answer.read().decode(errors="replace").strip())

services = urllib.request.Request(
    f"https://{address('KUBERNETES')}/apis/tessera.dev/v1alpha1/modelservices?limit=1",
    headers={"Authorization": f"Bearer {(account / 'token').read_text()}"},
)
trusted = ssl.create_default_context(cafile=account / "ca.crt")
with urllib.request.urlopen(services, timeout=10, context=trusted) as answer:
    print("ModelServices are served, the first ones:", len(json.load(answer)["items"]))
