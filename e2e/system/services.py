"""ModelServices of tests: what is asked for, what became of it, and where clients find it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tritonclient.grpc as grpc_client
from e2e.chart import Object
from e2e.system.load import Target

if TYPE_CHECKING:
    from e2e.system.installation import Installation

SERVING_S = 60.0
"""From an object to answers: models are fetched, measured, planned and loaded. It takes some ten seconds."""


def model_service(namespace: str, name: str, members: Mapping[str, str], **spec: object) -> Object:
    """A ModelService of ONNX models, by URI. ``spec`` replaces parts of it.

    The target is wide: these tests are about who answers, and the machine may be busy with other things.
    """
    ensemble = {"ensemble": {"combine": "Mean"}} if len(members) > 1 else {}
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": [
                {"name": member, "model": {"uri": uri, "format": "ONNX"}, "batch": {"max": 8}}
                for member, uri in members.items()
            ],
            **ensemble,
            "slo": {"objectives": [{"target": "2s", "percent": "99"}]},
            "traffic": {"requestsPerSecond": 20},
            **spec,
        },
    }


@dataclass(frozen=True)
class Service:
    """One ModelService."""

    system: Installation
    namespace: str
    name: str

    @property
    def served_name(self) -> str:
        return f"{self.namespace}.{self.name}"

    def document(self) -> Object:
        found = self.system.read("ModelService", self.name, self.namespace)
        assert found is not None, f"no ModelService {self.served_name}"
        return found

    def condition(self, kind: str) -> Object:
        """Empty where there is none yet for the present generation."""
        document = self.document()
        for each in (document.get("status") or {}).get("conditions") or ():
            present = each.get("observedGeneration") == document["metadata"]["generation"]
            if each["type"] == kind and present:
                found: Object = each
                return found
        return {}

    def says(self, kind: str, status: str = "True", reason: str = "") -> bool:
        found = self.condition(kind)
        return found.get("status") == status and reason in ("", found["reason"])

    def addresses(self) -> set[str]:
        """Pods that clients are sent to."""
        slices = self.system.objects(
            "EndpointSlice", self.namespace, f"kubernetes.io/service-name={self.name}"
        )
        return {
            address
            for each in slices
            for endpoint in each.get("endpoints") or ()
            if endpoint["conditions"].get("ready")
            for address in endpoint["addresses"]
        }

    def homes(self) -> dict[str, set[str]]:
        """By member the nodes where it has instances that answer."""
        found: dict[str, set[str]] = {}
        for node in self.system.objects("RuntimeNode"):
            for device in (node.get("status") or {}).get("devices") or ():
                for each in device.get("instances") or ():
                    if each["service"] == self.served_name and each["ready"]:
                        found.setdefault(each["member"], set()).add(node["metadata"]["name"])
        return found

    def nodes(self) -> set[str]:
        """Nodes where something of it answers."""
        return set().union(*self.homes().values())

    def most_per_second(self) -> float:
        """Requests that what is planned now is good for, as its condition says: ``…, 96.3 at most; …``."""
        message: str = self.condition("Planned")["message"]
        return float(message.partition(" at most")[0].split()[-1])

    def target(self, address: str = "", *, short: bool = True) -> Target:
        """Where clients find it: by the Service, or at the pod with ``address``.

        ``short``: over HTTP they call it as they call the host; otherwise, and over gRPC, by its full name.
        """
        if address:
            return Target(address, self.host, self.served_name, self.served_name, 8000, 8001)
        found = self.system.read("Service", self.name, self.namespace)
        assert found is not None, f"no Service {self.served_name}"
        model = self.name if short else self.served_name
        return Target(found["spec"]["clusterIP"], self.host, model, self.served_name)

    @property
    def host(self) -> str:
        return f"{self.name}.{self.namespace}.svc"

    # What is done to it

    def change(self, **spec: object) -> None:
        """Merge ``spec`` into the present one."""
        self.system.kubectl(
            *("patch", "msvc", self.name, f"--namespace={self.namespace}", "--type=merge"),
            f"--patch={json.dumps({'spec': spec})}",
        )

    def change_model(self, uri: str, member: int = 0) -> None:
        patch = [{"op": "replace", "path": f"/spec/members/{member}/model/uri", "value": uri}]
        self.system.kubectl(
            *("patch", "msvc", self.name, f"--namespace={self.namespace}", "--type=json"),
            f"--patch={json.dumps(patch)}",
        )

    # What is waited for

    def wait_for(
        self, kind: str, status: str = "True", reason: str = "", timeout_s: float = SERVING_S
    ) -> None:
        """A condition of the present generation."""
        self.system.wait(
            f"{self.served_name}: {kind} is {status} {reason}",
            lambda: self.says(kind, status, reason),
            timeout_s,
        )

    def wait_until_settled(self, timeout_s: float = SERVING_S) -> None:
        """Its present generation serves, as planned, and nothing is under way."""
        self.system.wait(
            f"{self.served_name} is as planned",
            lambda: (
                self.says("Ready") and self.says("Placed") and self.says("Progressing", "False")
            ),
            timeout_s,
        )

    def wait_until_serving(self, timeout_s: float = SERVING_S) -> None:
        """It is settled, and a client that comes now gets through."""
        self.wait_until_settled(timeout_s)
        self.system.wait(f"{self.served_name} answers", self.is_reached, timeout_s)

    def is_reached(self) -> bool:
        """Whether the Service leads to a server that says the model is ready."""
        target = self.target()
        channel = grpc_client.InferenceServerClient(f"{target.address}:{target.grpc}")
        try:
            return bool(channel.is_model_ready(target.served_name, client_timeout=2.0))
        except grpc_client.InferenceServerException:
            return False
        finally:
            channel.close()
