"""Where models may not come from: addresses behind which a tenant could reach what is not his.

The problem: a model's URI is chosen by a tenant and fetched by the agent, from inside the cluster's network.
Link-local and metadata addresses hand out the node's own cloud identity, and loopback is the agent's own pod.
A name or a redirect may lead there as well as the URI itself, and every store has a client library of its own.

The approach: one rule at the place that all of them pass. CPython raises the audit event ``socket.connect``
(PEP 578) with the address just before a socket is connected, after names and redirects are resolved, and what
a hook raises ends the attempt. Connections of the main thread, where the agent talks to the API server, are not
fetches and are left alone. A library that connects without Python's sockets would not be seen: none of those
that ``fetch`` uses does, Hugging Face's native one is switched off.
"""

from __future__ import annotations

import os
import sys
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tessera_runtime.models.errors import AddressForbidden

METADATA = (
    # Those that are not link-local, where 169.254.169.254 and its kind are.
    ip_network("fd00:ec2::/32"),  # Amazon EC2 over IPv6: fd00:ec2::254, and its neighbours
    ip_network("100.100.100.200/32"),  # Alibaba Cloud
    ip_network("168.63.129.16/32"),  # Azure's host agent
    ip_network("192.0.0.192/32"),  # Oracle Cloud, classic
)
"""Addresses at which a cloud serves metadata or identity to its machines, as the vendors document them."""

_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


def forbidden(address: str, *, allow_loopback: bool) -> str | None:
    """Why a model may not come from the IP ``address``; None when it may. Private ranges are allowed: stores
    inside a cluster have such addresses.
    """
    try:
        found = _plain(ip_address(address.partition("%")[0]))
    except ValueError:
        return "not an IP address"
    if found.is_link_local:
        return "a link-local address"
    if any(found in network for network in METADATA):
        return "a metadata address"
    if (found.is_loopback or found.is_unspecified) and not allow_loopback:
        return "a loopback address"
    return None


def guard(*, allow_loopback: bool) -> None:
    """From now on no thread but the main one connects to a forbidden address. Cannot be undone."""
    main = threading.main_thread().ident

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "socket.connect" or threading.get_ident() == main:
            return
        address = arguments[1]
        if isinstance(address, tuple) and isinstance(address[0], str):
            why = forbidden(address[0], allow_loopback=allow_loopback)
            if why is not None:
                raise AddressForbidden(
                    f"its host is or redirects to {address[0]}, {why}: models may not come from there"
                )

    os.environ["HF_HUB_DISABLE_XET"] = "1"
    sys.addaudithook(hook)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
