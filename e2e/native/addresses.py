"""Names and addresses of one cluster on one machine, so that several can run beside each other.

A cluster takes one of four slots; everything it calls by a name or an address follows from the slot. Addresses are
of 198.18.0.0/15, which RFC 2544 sets aside for benchmarks: neither private networks nor VPNs route it.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOTS = 4


@dataclass(frozen=True, slots=True)
class Addresses:
    """What the cluster in slot ``slot``, from 0 to 3, is called and where its parts are."""

    slot: int

    @property
    def name(self) -> str:
        """Of its cgroup and, with a suffix, of its network namespaces."""
        return f"tessera-e2e-{self.slot}"

    @property
    def link(self) -> str:
        """The host's interface to the nodes; interface names have at most 15 characters."""
        return f"tessera{self.slot}"

    @property
    def host(self) -> str:
        """The API server, and whatever else a test runs for pods to reach."""
        return f"198.18.{self.slot}.1"

    @property
    def dns(self) -> str:
        return f"198.18.{self.slot}.2"

    @property
    def services(self) -> str:
        return f"198.18.{64 + 16 * self.slot}.0/20"

    @property
    def api_service(self) -> str:
        """The ClusterIP of ``kubernetes.default``: Kubernetes takes the first of the range."""
        return f"198.18.{64 + 16 * self.slot}.1"

    @property
    def pods(self) -> str:
        """Of all nodes."""
        return f"198.19.{32 * self.slot}.0/19"

    def node(self, number: int) -> str:
        """The InternalIP of node ``number``, counted from 1."""
        return f"198.18.{self.slot}.{10 + number}"

    def pods_of(self, number: int) -> str:
        return f"198.19.{32 * self.slot + number}.0/24"
