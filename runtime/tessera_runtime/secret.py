"""Who may speak to a server's sockets: whoever can read the file beside them.

Workers run as the server's user, and those on a GPU may make Unix sockets: nothing else keeps them from connecting to a
path that they know. But they are kept from files (:mod:`tessera_runtime.worker.confine`). So the supervisor leaves a secret
in the directory of the sockets, and who connects says it first. Servers know its digest only: a worker is a fork of
one of them, memory and all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
from pathlib import Path

SIZE = 64
"""Bytes of the secret: hexadecimal digits, so that it can be a line."""

PATIENCE_S = 1.0
"""Most that whoever has connected may take to say it."""


def secret_path(run_dir: Path) -> Path:
    return run_dir / "secret"


def make_secret(run_dir: Path) -> str:
    """Leave a new secret in ``run_dir`` and return its digest."""
    path = secret_path(run_dir)
    path.unlink(missing_ok=True)
    secret = secrets.token_hex(SIZE // 2).encode()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    return digest_of(secret)


def secret_beside(socket_path: str) -> bytes:
    """What to say on the socket at ``socket_path``. Raises OSError."""
    return secret_path(Path(socket_path).parent).read_bytes()


def digest_of(secret: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(secret).hexdigest()


def matches(secret: bytes | bytearray, digest: str) -> bool:
    return hmac.compare_digest(digest_of(secret), digest)


def says_secret(sock: socket.socket, digest: str) -> bool:
    """Whether the first packet on ``sock`` is the secret, of which nothing is left in this process."""
    said = bytearray(SIZE)
    sock.settimeout(PATIENCE_S)
    try:
        return sock.recv_into(said) == SIZE and matches(said, digest)
    except OSError:
        return False
    finally:
        said[:] = bytes(SIZE)
        sock.settimeout(None)
