"""Nodes that are about to go, as their taints announce it. Pure.

A drain, a node autoscaler and a spot notice all say so on the node before they end its pods. Whatever runs there
moves first, while it still answers. Pods that tolerate such a taint do not keep the node, so tolerations do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessera_operator.kinds import Document, Key


@dataclass(frozen=True, slots=True)
class Notice:
    """A taint that says that its node goes."""

    key: str
    by: str
    source: str
    """Where whoever sets it says so."""


_NTH = "https://pkg.go.dev/github.com/aws/aws-node-termination-handler/pkg/node"
NOTICES = (
    Notice(
        "node.kubernetes.io/unschedulable",
        "kubectl cordon and drain",
        "https://kubernetes.io/docs/reference/labels-annotations-taints/#node-kubernetes-io-unschedulable",
    ),
    Notice(
        "node.kubernetes.io/out-of-service",
        "whoever declares a node dead",
        "https://kubernetes.io/docs/reference/labels-annotations-taints/#node-kubernetes-io-out-of-service",
    ),
    Notice(
        "ToBeDeletedByClusterAutoscaler",
        "Cluster Autoscaler",
        "https://pkg.go.dev/k8s.io/autoscaler/cluster-autoscaler/utils/taints#pkg-constants",
    ),
    Notice(
        "karpenter.sh/disrupted",
        "Karpenter",
        "https://github.com/kubernetes-sigs/karpenter/blob/v1.14.1/pkg/apis/v1/taints.go",
    ),
    Notice("aws-node-termination-handler/spot-itn", "a spot notice of EC2", _NTH),
    Notice("aws-node-termination-handler/rebalance-recommendation", "EC2", _NTH),
    Notice("aws-node-termination-handler/scheduled-maintenance", "EC2", _NTH),
    Notice("aws-node-termination-handler/asg-lifecycle-termination", "EC2 Auto Scaling", _NTH),
    Notice(
        "cloud.google.com/impending-node-termination",
        "a notice of GKE",
        "https://cloud.google.com/kubernetes-engine/docs/concepts/handle-disruption-gpu-tpu",
    ),
    Notice(
        "remediator.kubernetes.azure.com/unschedulable",
        "a scheduled event of AKS",
        "https://learn.microsoft.com/azure/aks/node-auto-drain",
    ),
    Notice(
        "ignore-taint.cluster-autoscaler.kubernetes.io/oke-impending-node-termination",
        "Cluster Autoscaler on OKE",
        "https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/cloudprovider/oci/nodepools/consts/annotations.go",
    ),
)
_KEYS = frozenset(each.key for each in NOTICES)


def departing(documents: Mapping[Key, Document]) -> frozenset[str]:
    """Names of the Nodes that are announced to go, or are being deleted."""
    return frozenset(
        key[2]
        for key, node in documents.items()
        if key[0] == "Node"
        and (
            node["metadata"].get("deletionTimestamp")
            or any(each["key"] in _KEYS for each in node["spec"].get("taints") or ())
        )
    )
