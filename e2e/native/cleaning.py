"""Leaves nothing behind: what a cluster wrote outside of its processes, also when its run was killed.

The same steps run before a cluster starts and after it ends, and each looks at what there is instead of remembering
what was made.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.native import network
from e2e.native.addresses import Addresses
from e2e.native.cgroups import Cgroup
from e2e.native.processes import run

_BULKY = ("containerd", "kubelet", "pod-addresses", "volume-plugins")
_CNI_RESULTS = Path("/var/lib/cni/results")
_LOG_LINKS = Path("/var/log/containers")
_SOCKETS = Path("/run/containerd")
_PLUGINS = Path("/var/lib/kubelet/device-plugins")
_SHARED = (
    _PLUGINS,
    _PLUGINS.parent,
    _LOG_LINKS,
    _CNI_RESULTS,
    _CNI_RESULTS.parent,
    _SOCKETS / "s",
    _SOCKETS / "runc",
    _SOCKETS,
)
"""Folders whose paths are fixed; removed when empty."""
# What a kubelet sets for the whole machine.
_SETTINGS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def clear(addresses: Addresses, folder: Path) -> None:
    """End and remove everything of the cluster in this slot; logs and written configuration stay in ``folder``.

    Raises RuntimeError when something cannot be ended or unmounted; nothing is deleted below a mount.
    """
    group = Cgroup(addresses.name)
    group.kill()
    network.remove(addresses)
    for node in folder.glob("node-*"):
        forget_containers(node)
        for sandbox in node.glob("containerd/io.containerd.grpc.v1.cri/sandboxes/*"):
            for result in _CNI_RESULTS.glob(f"*-{sandbox.name}-*"):
                result.unlink()
        for name in _BULKY:
            shutil.rmtree(node / name, ignore_errors=True)
    shutil.rmtree(folder / "etcd", ignore_errors=True)
    for link in _LOG_LINKS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    group.remove()
    _remove_shared()


def forget_containers(node: Path) -> None:
    """Remove what a restart of a machine removes, from the folder of a node without processes: mounts and sockets.

    Raises RuntimeError when something stays mounted.
    """
    for shim in node.glob("run/io.containerd.runtime.v2.task/k8s.io/*/address"):
        Path(shim.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    for mount in _mounts(node):
        run("umount", "--lazy", mount)
    if left := _mounts(node):
        raise RuntimeError(f"still mounted: {', '.join(left)}")
    shutil.rmtree(node / "run", ignore_errors=True)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restores on exit what kubelets set for the whole machine."""
    paths = [path for name in _SETTINGS if (path := Path("/proc/sys") / name).exists()]
    before = {path: path.read_text() for path in paths}
    try:
        yield
    finally:
        for path, text in before.items():
            if path.read_text() != text:
                path.write_text(text)


def _remove_shared() -> None:
    """What is at fixed paths, unless another cluster or the machine's own kubelet uses it."""
    if network.exists():
        return
    plugins = _PLUGINS / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(plugins))
        except ConnectionRefusedError:
            plugins.unlink()
        except FileNotFoundError:
            pass
    if not plugins.exists():
        (_PLUGINS / "kubelet_internal_checkpoint").unlink(missing_ok=True)
    for path in _SHARED:
        try:
            path.rmdir()
        except OSError:
            pass  # not empty, or not there


def _mounts(folder: Path) -> list[str]:
    """Mount points below ``folder``, the last mounted first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        if point.startswith(f"{folder}{os.sep}"):
            found.append(point)
    return found[::-1]
