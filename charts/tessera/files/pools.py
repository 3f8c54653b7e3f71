"""After an installation or an upgrade: the RuntimePools of the values, by server-side apply.

Helm looks every kind up before it makes anything, so one release cannot hold objects beside their CRD.
"""

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

RETRY_S, GIVE_UP_S = 2.0, 60.0
account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
host = os.environ["KUBERNETES_SERVICE_HOST"]
host = f"[{host}]" if ":" in host else host
server = f"https://{host}:{os.environ['KUBERNETES_SERVICE_PORT']}"
headers = {
    "Authorization": f"Bearer {(account / 'token').read_text()}",
    "Content-Type": "application/apply-patch+yaml",
}
trusted = ssl.create_default_context(cafile=account / "ca.crt")

for pool in json.loads(os.environ["POOLS"]):
    path = f"/apis/{pool['apiVersion']}/runtimepools/{pool['metadata']['name']}"
    url = f"{server}{path}?fieldManager=helm&force=true&fieldValidation=Strict"
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        apply = urllib.request.Request(url, json.dumps(pool).encode(), headers, method="PATCH")
        try:
            with urllib.request.urlopen(apply, timeout=10, context=trusted) as answer:
                print(pool["metadata"]["name"], answer.status)
            break
        except OSError as failed:
            said = failed.read().decode() if isinstance(failed, urllib.error.HTTPError) else ""
            # 404: the CRD is so new that it is not served yet.
            final = isinstance(failed, urllib.error.HTTPError) and failed.code in (
                400,
                401,
                403,
                422,
            )
            if final or time.monotonic() > deadline:
                raise SystemExit(f"{pool['metadata']['name']}: {failed}: {said}") from failed
            time.sleep(RETRY_S)
