"""A whole Kubernetes of real nodes on one Linux machine: no container engine, no image registry, no virtual machine.

Every node has what a node has, its own containerd, kubelet, kube-proxy, cores and network; only the kernel is
shared. Nodes can be cut off, killed and revived, and the API server stopped and started, as a test says. What a
cluster makes is named for its slot, and is removed when it ends and, if its run was killed, before the next start.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from e2e.native import build, cleaning
from e2e.native.addresses import SLOTS, Addresses
from e2e.native.cgroups import Cgroup
from e2e.native.control_plane import ADMIN, ControlPlane
from e2e.native.network import Network, inside
from e2e.native.node import Machine
from e2e.native.node_files import PAUSE, Place, kube_proxy
from e2e.native.processes import Process, free_ports, run, wait_until
from e2e.native.static_image import static_image

_LOCKS = Path("/run/lock")
_MANAGER = "system:kube-controller-manager"
_SCHEDULER = "system:kube-scheduler"
_PROXY = "system:kube-proxy"
_KUBELETS = "system:nodes"
_READY_S = 90.0
_LONGEST_COMMAND_S = 600.0
_CORES_PER_NODE = 2
_MIB = 1 << 20


class NativeCluster:
    """A running cluster, made by ``cluster``; what it offers is described in e2e/environment.py."""

    def __init__(
        self, plane: ControlPlane, machines: tuple[Machine, ...], kubectl: Path, folder: Path
    ) -> None:
        self.access = plane.access()
        self.kubeconfig = self.access.kubeconfig(folder / "kubeconfig")
        self.folder = folder
        self.host = urlsplit(self.access.url).hostname
        cache = folder / "kubectl-cache"
        self._kubectl = (kubectl, f"--kubeconfig={self.kubeconfig}", f"--cache-dir={cache}")
        self._plane = plane
        self._machines = {each.place.name: each for each in machines}

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self._machines)

    def node(self, name: str) -> Machine:
        return self._machines[name]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return run(*self._kubectl, *arguments, stdin=stdin, timeout_s=_LONGEST_COMMAND_S)

    def load_image(self, archive: Path) -> None:
        machines = self._machines.values()
        with ThreadPoolExecutor(len(machines)) as pool:  # unpacking takes most of it
            for done in [pool.submit(each.load_image, archive) for each in machines]:
                done.result()

    def fetch(self, url: str, timeout_s: float = 5.0) -> str:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            text: str = answer.read().decode()
        return text

    def stop_api_server(self) -> None:
        self._plane.stop_api_server()

    def start_api_server(self) -> None:
        self._plane.start_api_server()


@contextmanager
def cluster(folder: Path, nodes: int = 2) -> Iterator[NativeCluster]:
    """A fresh cluster of ``nodes`` Ready nodes with its data and logs in ``folder``, an empty folder.

    Raises RuntimeError when something does not start, with the end of its log.
    """
    binaries, coredns = build.kubernetes(), build.tool("coredns")
    folder = folder.resolve()
    names = [f"node-{number}" for number in range(1, nodes + 1)]
    with ExitStack() as stack:
        addresses = stack.enter_context(_slot(folder))
        stack.enter_context(cleaning.settings_kept())
        stack.callback(cleaning.clear, addresses, folder)
        group = Cgroup(f"{addresses.name}/control-plane").create()
        network = Network(addresses, nodes)
        network.create()
        plane = ControlPlane(
            binaries,
            folder,
            address=addresses.host,
            services=addresses.services,
            hosts=("localhost", addresses.api_service),
            users={_MANAGER: (), _SCHEDULER: (), _PROXY: ()}
            | {f"system:node:{name}": (_KUBELETS,) for name in names},
            group=group,
        )
        stack.enter_context(plane.running())
        programs = _Programs(binaries, folder, plane, addresses, network, group, stack)
        programs.start_controllers()
        programs.start_names(coredns)
        machines = programs.start_nodes(names)
        running = NativeCluster(plane, machines, binaries / "kubectl", folder)
        _wait_for_nodes(running)
        programs.start_proxy(names[0])
        stack.callback(Cgroup(addresses.name).kill)  # nobody needs them to end in good order
        yield running


@contextmanager
def _slot(folder: Path) -> Iterator[Addresses]:
    """A slot of its own for as long as it is held, without what an earlier run left in it.

    Raises RuntimeError when all slots are taken.
    """
    _LOCKS.mkdir(exist_ok=True)
    for slot in range(SLOTS):
        addresses = Addresses(slot)
        with (_LOCKS / f"{addresses.name}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            lock.seek(0)
            cleaning.clear(addresses, Path(lock.read() or folder))
            lock.truncate(0)
            lock.write(str(folder))
            lock.flush()
            yield addresses
            return
    raise RuntimeError(f"all {SLOTS} slots for clusters are taken by runs on this machine")


@dataclass(frozen=True, slots=True)
class _Programs:
    """Starts the programs around one API server; ``stack`` ends those that belong to no node."""

    binaries: Path
    folder: Path
    plane: ControlPlane
    addresses: Addresses
    network: Network
    group: Cgroup
    stack: ExitStack

    def start_controllers(self) -> None:
        ports = free_ports(2)
        manager = (
            "--use-service-account-credentials",
            f"--root-ca-file={self.plane.ca}",
            f"--service-account-private-key-file={self.plane.service_accounts}",
            "--node-monitor-grace-period=15s",
            "--node-monitor-period=1s",
            "--horizontal-pod-autoscaler-sync-period=2s",
        )
        for name, user, port, options in (
            ("kube-controller-manager", _MANAGER, ports[0], manager),
            ("kube-scheduler", _SCHEDULER, ports[1], ()),
        ):
            self._start(
                name,
                self.binaries / name,
                f"--kubeconfig={self._kubeconfig(name, user)}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                "--leader-elect=false",
                *options,
            )

    def start_names(self, coredns: Path) -> None:
        """DNS for pods. It knows Services only: no pod of a test may need a name of the Internet."""
        configuration = self.folder / "Corefile"
        configuration.write_text(
            f""".:53 {{
    bind {self.addresses.dns}
    errors
    kubernetes cluster.local {{
        kubeconfig {self._kubeconfig("coredns", ADMIN)}
        ttl 5
    }}
}}
"""
        )
        self._start_at_switch("coredns", coredns, "-conf", configuration)

    def start_nodes(self, names: list[str]) -> tuple[Machine, ...]:
        """They are Ready some seconds later."""
        pause = static_image("pause", PAUSE, self.folder / "pause.tar")
        machines: list[Machine] = []
        for place in _places(self.addresses, self.network, self.folder, names):
            number = len(machines) + 1
            machine = Machine(self.binaries, place, self.network, number, self.plane.port)
            self.stack.callback(machine.end)
            kubelet = self.plane.access(f"system:node:{place.name}")
            machine.start(pause, kubelet, self.plane.access(_PROXY))
            machines.append(machine)
        return tuple(machines)

    def start_proxy(self, node: str) -> None:
        """Finds pods for the ClusterIPs that the host calls; a proxy is of some node, which must be there."""
        name = "kube-proxy"
        configuration = self.folder / f"{name}.yaml"
        kubeconfig = self._kubeconfig(name, _PROXY)
        configuration.write_text(kube_proxy(node, self.addresses.pods, kubeconfig))
        self._start_at_switch(name, self.binaries / name, f"--config={configuration}")

    def _kubeconfig(self, program: str, user: str) -> Path:
        return self.plane.access(user).kubeconfig(self.folder / f"{program}.kubeconfig")

    def _start_at_switch(self, name: str, *command: str | Path) -> None:
        self._start(name, *inside(self.network.switch), *command)

    def _start(self, name: str, *command: str | Path) -> None:
        log = self.folder / f"{name}.log"
        self.stack.enter_context(Process(name, command, log, group=self.group))


def _places(
    addresses: Addresses, network: Network, folder: Path, names: list[str]
) -> Iterator[Place]:
    own, all_cores = _shares(len(names)), range(os.cpu_count() or 1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB
    for number, (name, cores) in enumerate(zip(names, own, strict=True), start=1):
        yield Place(
            name=name,
            address=addresses.node(number),
            pods=addresses.pods_of(number),
            all_pods=addresses.pods,
            dns=addresses.dns,
            namespace=network.node(number),
            folder=folder / name,
            cgroup=f"{addresses.name}/{name}",
            foreign_cores=tuple(core for core in all_cores if core not in cores),
            foreign_mib=memory - memory // len(names),
        )


def _shares(nodes: int) -> list[range]:
    """Cores of each node: apart from each other, so that pods which pin cores do not fight over them."""
    cores = os.cpu_count() or 1
    each = cores // nodes
    if each < _CORES_PER_NODE:  # too few to be shared out
        return [range(cores)] * nodes
    return [range(number * each, (number + 1) * each) for number in range(nodes)]


def _wait_for_nodes(running: NativeCluster) -> None:
    for name in running.nodes:
        running.node(name).wait_until(partial(_is_ready, running, name), _READY_S)
    account = ("get", "serviceaccount", "default", "--ignore-not-found", "--output=name")
    wait_until(lambda: bool(running.kubectl(*account)), _READY_S, "pods can be made")


def _is_ready(running: NativeCluster, node: str) -> bool:
    path = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return running.kubectl("get", "node", node, "--ignore-not-found", path) == "True"


def _main(folder: Path) -> None:
    """Keep a cluster for experiments until a signal to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    folder.mkdir(parents=True, exist_ok=True)
    with cluster(folder) as running:
        print(f"export KUBECONFIG={running.kubeconfig}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
