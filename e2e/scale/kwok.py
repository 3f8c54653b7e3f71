"""Fake nodes: objects of the API that kwok keeps Ready, and whose pods it says are Running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e.native.build import tool

GPUS = 8
LABEL = ("tessera.dev/fake", "h100")
"""On every node: what the pool selects."""
_MARK = ("kwok.x-k8s.io/node", "fake")

_CONDITIONS = """\
      {{ $now := Now }}
      conditions:
      {{ range NodeConditions }}
      - {type: {{ .type }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }}, message: {{ .message | Quote }},
         lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $.metadata.creationTimestamp | Quote }}}
      {{ end }}
"""
# Kubelets write a status that did not change every five minutes, and renew their Leases meanwhile.
_STAGES = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
CONDITIONS---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-heartbeat}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: In, values: ["True"]}
  delay: {durationMilliseconds: 270000, jitterDurationMilliseconds: 330000}
  next:
    statusTemplate: |
CONDITIONS---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      phase: Running
      startTime: {{ $now | Quote }}
      conditions:
      {{ range $type := (list "Initialized" "Ready" "ContainersReady") }}
      - {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: true, restartCount: 0, state: {running: {startedAt: {{ $now | Quote }}}}}
      {{ end }}
      {{ with PodIPsWith .spec.nodeName false ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) }}
      podIP: {{ index . 0 | Quote }}
      podIPs: [{ip: {{ index . 0 | Quote }}}]
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-delete}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
"""


def command(kubeconfig: Path, folder: Path) -> list[str | Path]:
    """What starts kwok for the nodes of ``nodes``; its stages are written into ``folder``."""
    stages = folder / "stages.yaml"
    stages.write_text(_STAGES.replace("CONDITIONS", _CONDITIONS))
    return [
        tool("kwok"),
        f"--kubeconfig={kubeconfig}",
        f"--config={stages}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={'='.join(_MARK)}",
        "--node-lease-duration-seconds=40",
    ]


def nodes(count: int) -> Iterator[dict[str, Any]]:
    """Node objects as kubelets of GPU nodes register them."""
    resources = {
        "cpu": "112",
        "memory": "1800Gi",
        "pods": "110",
        "ephemeral-storage": "2000Gi",
        "nvidia.com/gpu": str(GPUS),
    }
    for index in range(count):
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"h100-{index:03d}",
                "labels": {"kubernetes.io/hostname": f"h100-{index:03d}", LABEL[0]: LABEL[1]},
                "annotations": {_MARK[0]: _MARK[1]},
            },
            "spec": {"podCIDR": f"10.{128 + index // 256}.{index % 256}.0/24"},
            "status": {"capacity": resources, "allocatable": resources},
        }
