"""TLS of the front ends, and of calls to peers: certificates that are replaced while the server runs.

Whoever issues certificates replaces the files long before they expire. They are read again when they change, and new
connections get the new ones; a pair that does not fit, as half-way through a replacement, changes nothing.

    TlsInvalid      a file cannot be read, is no PEM, or key and certificate do not belong together
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""Most that a client may take to prove that it speaks TLS."""

CLOSE_S = 5.0
"""Most that a client may take to say goodbye."""

HTTP_PROTOCOLS = ("http/1.1",)
GRPC_PROTOCOLS = ("h2",)


class TlsInvalid(Exception):
    """The files are of no use; the text names them."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. What is None is not used."""

    certificate: Path | None = None
    """Of the server, with what leads to its authority; also what it shows to peers that ask for one."""
    key: Path | None = None
    client_ca: Path | None = None
    """Clients have to show a certificate of these authorities."""
    peer_ca: Path | None = None
    """Peers have to show one of these; calls to them are in clear without."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise TlsInvalid("a certificate needs its key, and a key its certificate")
        if self.client_ca is not None and self.certificate is None:
            raise TlsInvalid("clients can only be asked for certificates by a server with one")

    def read(self) -> tuple[bytes | None, ...]:
        """All contents. Raises TlsInvalid."""
        paths = (self.certificate, self.key, self.client_ca, self.peer_ca)
        try:
            return tuple(None if path is None else path.read_bytes() for path in paths)
        except OSError as error:
            raise TlsInvalid(f"cannot read {error.filename}: {error.strerror}") from error


class Tls:
    """What the files say now."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsInvalid."""
        self._files = files
        self._refused: tuple[bytes | None, ...] | None = None
        """What was found to be of no use, so that it is said once."""
        self._contents = files.read()
        self.http, self.grpc = _contexts(files)

    @property
    def peers(self) -> grpc.ChannelCredentials | None:
        """Of calls to peers; None for calls in clear."""
        certificate, key, _, authorities = self._contents
        if authorities is None:
            return None
        return grpc.ssl_channel_credentials(authorities, key, certificate)

    def renew(self) -> bool:
        """Look at the files; True when they have changed to something that can be used."""
        contents: tuple[bytes | None, ...] = ()
        try:
            contents = self._files.read()
            if contents == self._contents:
                return False
            contexts = _contexts(self._files)
            if contents != self._files.read():
                return False  # they are being replaced: the next look sees all of it
        except TlsInvalid as error:
            if contents != self._refused:
                log.error("the new certificates are not used: %s", error)
            self._refused = contents
            return False
        self._contents = contents
        self.http, self.grpc = contexts
        log.info("the certificates have changed")
        return True


def _contexts(files: TlsFiles) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """For HTTP and gRPC; None for connections in clear. Raises TlsInvalid."""
    if files.certificate is None:
        return None, None
    return _context(files, HTTP_PROTOCOLS), _context(files, GRPC_PROTOCOLS)


def _context(files: TlsFiles, protocols: tuple[str, ...]) -> ssl.SSLContext:
    assert files.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client may not have the server compute key after key on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(protocols)
    try:
        # Without a password a key that needs one is refused, instead of asking a terminal that is not there.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:
        found = f"{files.certificate} and {files.key}"
        raise TlsInvalid(f"{found}: no certificate with its key: {error}") from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise TlsInvalid(f"{files.client_ca}: no certificates: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed is not checked again, and authorities may have changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context
