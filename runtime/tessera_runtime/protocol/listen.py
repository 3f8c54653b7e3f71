"""Listening sockets whose failure names the address."""

from __future__ import annotations

import errno
import os
import socket

BACKLOG = 1024
_WINDOW = 128 * 1024
"""Bytes that a client may send at once on a new connection. A reader that takes more than half of its window at once
has to tell the client that there is room again, a packet beside each answer; a tensor of some ten KiB is not to."""


class PortTaken(OSError):
    """The address cannot be listened on; the text names it."""


def listen_on(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises PortTaken.

    A ``shared`` one leaves the port to other shared ones of the same user, among which the kernel spreads
    connections. It is only bound, so that it is given none until somebody accepts on it.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, address = found[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise _named(error, host, port) from error
    try:
        # Connections of a server that just ended may still be in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Raises the buffer of what is accepted and leaves it to grow, which a size of our own (SO_RCVBUF) would not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WINDOW)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        sock.bind(address)
        if not shared:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _named(error, host, port) from error
    return sock


def _named(error: OSError, host: str, port: int) -> PortTaken:
    number = error.errno or errno.EADDRNOTAVAIL
    reason = error.strerror or os.strerror(number)
    return PortTaken(number, f"cannot listen on port {port} of {host or 'any address'}: {reason}")
