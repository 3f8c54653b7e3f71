"""The network of a cluster: every node in a network namespace of its own, one switch between them and the host.

Nodes that shared the host's namespace would share its firewall, its ports and one kube-proxy, and could not be cut
off one by one. So each has its own interface, rules and pod network; the host is one more station on the switch and
routes pod and service addresses to the nodes, which makes both reachable for tests. The switch has a namespace too,
so that no rule of the host's firewall looks at what nodes say to each other; a kube-proxy in it finds pods for what
the host calls, whichever nodes are up. Removing the namespaces removes all.
"""

from __future__ import annotations

from pathlib import Path

from e2e.native.addresses import SLOTS, Addresses
from e2e.native.processes import run

KUBELET_PORT = 10250
_NAMESPACES = Path("/run/netns")
_BRIDGE_RULES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_SWITCH = "nodes"


class Network:
    """The switch and the nodes' links of one cluster of ``nodes`` nodes."""

    def __init__(self, addresses: Addresses, nodes: int) -> None:
        self._addresses = addresses
        self._numbers = range(1, nodes + 1)

    @property
    def switch(self) -> str:
        """The namespace of the switch."""
        return self._addresses.name

    def node(self, number: int) -> str:
        """The namespace of node ``number``."""
        return f"{self._addresses.name}-node-{number}"

    def create(self) -> None:
        """Raises RuntimeError with what the kernel refused."""
        if not _BRIDGE_RULES.exists():
            run(
                "modprobe", "br_netfilter"
            )  # without it pods of one node cannot call each other's Services
        name, link, host = self.switch, self._addresses.link, self._addresses.host
        _namespace(name)
        _set(name, _BRIDGE_RULES, 0)  # what is only switched meets no rules
        _ip("-n", name, "link", "add", _SWITCH, "type", "bridge")
        _ip("-n", name, "address", "add", f"{self._addresses.dns}/24", "dev", _SWITCH)
        _ip("-n", name, "link", "set", _SWITCH, "up")
        _ip("link", "add", link, "type", "veth", "peer", "name", "host", "netns", name)
        _ip("-n", name, "link", "set", "host", "master", _SWITCH, "up")
        _ip("address", "add", f"{host}/24", "dev", link)
        _ip("link", "set", link, "up")
        for number in self._numbers:
            self._plug_in(number)
        for number in self._numbers:
            route = ("route", "add", self._addresses.pods_of(number), "via")
            address = self._addresses.node(number)
            _ip(*route, address)
            _ip("-n", name, *route, address)
            for other in self._numbers:
                if other != number:
                    _ip("-n", self.node(other), *route, address)
        _ip("route", "add", self._addresses.services, "via", self._addresses.dns)

    def power(self, number: int, *, on: bool) -> None:
        """Connect node ``number`` to the switch or unplug it."""
        _ip("-n", self.switch, "link", "set", f"node-{number}", "up" if on else "down")

    def cut(self, number: int, api_port: int, *, off: bool) -> None:
        """Drop, or drop no more, everything between the API server and node ``number`` with its pods."""
        for rule in cut_rules(self._addresses.host, api_port):
            command = ("iptables", "-w", "-t", "mangle", "-A" if off else "-D", *rule)
            run(*inside(self.node(number)), *command)

    def _plug_in(self, number: int) -> None:
        namespace, port = self.node(number), f"node-{number}"
        _namespace(namespace)
        peer = ("peer", "name", port, "netns", self.switch)
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", *peer)
        _ip("-n", self.switch, "link", "set", port, "master", _SWITCH, "up")
        _ip("-n", namespace, "address", "add", f"{self._addresses.node(number)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "route", "add", "default", "via", self._addresses.host)


def remove(addresses: Addresses) -> None:
    """Remove the network of the cluster in this slot, or what is left of one; its processes must be gone."""
    if Path(f"/sys/class/net/{addresses.link}").exists():
        _ip("link", "delete", addresses.link)
    for path in _NAMESPACES.glob(f"{addresses.name}*"):
        _ip("netns", "delete", path.name)


def exists() -> bool:
    """Whether a cluster in any slot has a network."""
    return any((_NAMESPACES / Addresses(slot).name).exists() for slot in range(SLOTS))


def cut_rules(api: str, api_port: int) -> tuple[tuple[str, ...], ...]:
    """Rules of a node that part it and its pods from the API server at ``api``, both ways.

    For the mangle table: it sees the server's own address where pods wrote that of its Service, and kube-proxy
    leaves it alone.
    """
    drop = ("--jump", "DROP")
    leaving = ("POSTROUTING", "--destination", api, "--protocol", "tcp")
    coming = ("PREROUTING", "--source", api, "--protocol", "tcp")
    return (
        (*leaving, "--dport", str(api_port), *drop),
        (*coming, "--sport", str(api_port), *drop),
        (*leaving, "--sport", str(KUBELET_PORT), *drop),
        (*coming, "--dport", str(KUBELET_PORT), *drop),
    )


def inside(namespace: str) -> tuple[str, ...]:
    """What to write before a command for it to run in a network namespace."""
    return ("nsenter", f"--net={_NAMESPACES / namespace}", "--")


def _namespace(name: str) -> None:
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _set(name, _FORWARDING, 1)


def _set(namespace: str, setting: Path, value: int) -> None:
    run(*inside(namespace), "sh", "-c", f"echo {value} > {setting}")


def _ip(*arguments: str) -> None:
    run("ip", *arguments)
