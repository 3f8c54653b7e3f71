"""The certificates of one server: which files, and who has to know when they change."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tessera_runtime import server_options
from tessera_runtime.dispatch.peers import Channels
from tessera_runtime.protocol.grpc_server import GrpcServer
from tessera_runtime.protocol.http_server import HttpServer
from tessera_runtime.protocol.peer_client import PeerSecurity
from tessera_runtime.protocol.tls import Tls, TlsFiles

LOOK_S = 2.0
"""Between two looks at the files: soon enough for who waits for it, and four small files cost nothing."""


def add_options(arguments: argparse.ArgumentParser) -> None:
    """Of the dispatcher; all files are PEM, and are read again when they change."""
    options = arguments.add_argument_group("TLS of HTTP and gRPC; in clear without")
    server_options.add(options, *server_options.TLS_FILES)
    options.add_argument(
        "--peer-ca",
        type=Path,
        metavar="FILE",
        help="call peers over TLS: their certificates are of one of these authorities",
    )
    options.add_argument(
        "--peer-name",
        default="tessera-runtime",
        metavar="NAME",
        help="that is in the certificate of every peer",
    )


def read(arguments: argparse.Namespace) -> Tls:
    """Raises TlsInvalid."""
    return Tls(
        TlsFiles(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, arguments.peer_ca)
    )


def security(tls: Tls, peer_name: str) -> PeerSecurity | None:
    """Of calls to peers now."""
    credentials = tls.peers
    return None if credentials is None else PeerSecurity(credentials, peer_name)


async def follow(
    tls: Tls, peer_name: str, http: HttpServer, grpc: GrpcServer, channels: Channels
) -> None:
    """For ever: have new connections use what the files say."""
    while True:
        await asyncio.sleep(LOOK_S)
        if tls.renew():
            http.renew(tls.http)
            grpc.renew(tls.grpc)
            channels.renew(security(tls, peer_name))
