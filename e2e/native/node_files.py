"""The configuration files of one node, as text: pure, so that what a node is told can be read in one place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from e2e.native import gpu_runtime

PAUSE = "localhost/pause:1"
GPU_RUNTIME = "nvidia-runtime"
"""A program, below the node's folder."""
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is: all that differs between the nodes of a cluster."""

    name: str
    address: str
    pods: str
    """CIDR of its pods."""
    all_pods: str
    """CIDR of the pods of all nodes."""
    dns: str
    namespace: str
    """Network namespace."""
    folder: Path
    cgroup: str
    foreign_cores: tuple[int, ...]
    """Cores of the machine that are not for its pods; none where the nodes share all of them."""
    foreign_mib: int
    """Memory of the machine that is not for its pods."""

    @property
    def socket(self) -> Path:
        """Of containerd."""
        return self.folder / "run" / "c.sock"


def files(place: Place, ca: Path) -> dict[str, str]:
    """Texts by their paths in the node's folder; ``ca`` signed what the API server shows to the kubelet."""
    return {
        "cni/10-pods.conflist": json.dumps(_pod_network(place)),
        "containerd.toml": _containerd(place),
        GPU_RUNTIME: gpu_runtime.program(place.folder),
        "kubelet.yaml": yaml.safe_dump(_kubelet(place, ca)),
        "kube-proxy.yaml": kube_proxy(
            place.name, place.all_pods, place.folder / "kube-proxy.kubeconfig"
        ),
    }


def kube_proxy(node: str, all_pods: str, kubeconfig: Path) -> str:
    """Of the proxy that runs as ``node``; what comes from outside of ``all_pods`` gets its address."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": all_pods,
            "conntrack": {"maxPerCore": 0},  # the limit is the machine's, not the node's
            "detectLocalMode": "ClusterCIDR",
            "hostnameOverride": node,
            "mode": "iptables",
        }
    )


def _pod_network(place: Place) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": place.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(place.folder / "pod-addresses"),
    }
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,  # a pod may call itself by the address of its Service
        "ipam": addresses,
    }
    return {"cniVersion": "0.4.0", "name": place.namespace, "plugins": [bridge]}


def _containerd(place: Place) -> str:
    folder = place.folder
    cni = next((each for each in _CNI_FOLDERS if (each / "bridge").exists()), _CNI_FOLDERS[0])
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE, as in many containers, no score can be lowered and every pod
    # would fail. netns_mounts_under_state_dir: all mounts of the node are below its folder, where they are cleaned.
    return f"""\
version = 2
root = "{folder}/containerd"
state = "{folder}/run"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{place.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{folder}/cni"
{_runtime("runc", "runc", folder)}
{_runtime(gpu_runtime.HANDLER, folder / GPU_RUNTIME, folder)}
"""


def _runtime(handler: str, program: str | Path, folder: Path) -> str:
    table = f'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}'
    return f"""\
[{table}]
runtime_type = "io.containerd.runc.v2"
[{table}.options]
BinaryName = "{program}"
SystemdCgroup = false
Root = "{folder}/run/runc"
"""


def _kubelet(place: Place, ca: Path) -> dict[str, Any]:
    cores = {
        # Only the static policy keeps pods off cores; `strict` is for those without cores of their own.
        "cpuManagerPolicy": "static",
        "cpuManagerPolicyOptions": {"strict-cpu-reservation": "true"},
        "reservedSystemCPUs": ",".join(map(str, place.foreign_cores)),
    }
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": place.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.cgroup}",
        "clusterDNS": [place.dns],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{place.socket}",
        # A developer's disk may be nearly full; tests fill no disks.
        "evictionHard": {
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "failCgroupV1": False,
        "failSwapOn": False,
        # A node that is cut off is NotReady in some 15 s instead of 50 s, see the controller manager's flags.
        "nodeLeaseDurationSeconds": 12,
        "nodeStatusUpdateFrequency": "3s",
        "oomScoreAdj": 0,
        "podLogsDir": str(place.folder / "pod-logs"),
        # A changed Secret is in the pods that mount it within some 15 s instead of 90 s.
        "syncFrequency": "10s",
        "systemReserved": {"memory": f"{place.foreign_mib}Mi"},
        "volumePluginDir": str(place.folder / "volume-plugins"),
        **(cores if place.foreign_cores else {}),
    }
