"""A certificate authority for one cluster: TLS between API server, kubelets and clients."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=30)
_SKEW = datetime.timedelta(hours=1)


class Authority:
    """Signs certificates; ``certificate`` is the file that others trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("tessera-e2e", ())
        extensions = [
            x509.BasicConstraints(ca=True, path_length=0),
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()),
            _usage(ca=True),
        ]
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(self._signed(self._name, self._key, extensions))

    def issue(
        self,
        name: str,
        *,
        groups: Sequence[str] = (),
        hosts: Sequence[str] = (),
        calls: bool = False,
    ) -> tuple[Path, Path]:
        """Certificate and key files for user ``name`` of ``groups``, or for a server at ``hosts``.

        ``calls``: the server shows it to other servers too.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if hosts else []
        if calls or not hosts:
            purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        extensions: list[Any] = [
            x509.BasicConstraints(ca=False, path_length=None),
            x509.ExtendedKeyUsage(purposes),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
            _usage(ca=False),
        ]
        if hosts:
            extensions.append(x509.SubjectAlternativeName([_host(each) for each in hosts]))
        certificate = self._folder / f"{name}.crt"
        certificate.write_bytes(self._signed(_name(name, groups), key, extensions))
        return certificate, new_key(self._folder / f"{name}.key", key)

    def _signed(self, subject: Any, key: Any, extensions: Sequence[Any]) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _VALID)
        )
        for extension in extensions:
            critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
            builder = builder.add_extension(extension, critical=critical)
        pem: bytes = builder.sign(self._key, hashes.SHA256()).public_bytes(
            serialization.Encoding.PEM
        )
        return pem


def new_key(path: Path, key: Any = None) -> Path:
    """Write ``key``, or a new one, where only its owner reads it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path


def _name(common: str, groups: Sequence[str]) -> Any:
    """Kubernetes reads the common name as the user and the organisations as its groups."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, ca: bool) -> Any:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
